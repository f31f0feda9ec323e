"""Noise levels into a network: sinusoids, an MLP, and scale-shift-gate modulation (DiT, Peebles & Xie 2023).

Wan's economy: one projection from the level's embedding to six vectors serves the whole model, and each block adds a
learned table of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from nava_lab.layers.fused import gated_spans, modulated_spans


def level_features(level: Float[Tensor, "*b"], width: int, fastest: float = 1000.0) -> Float[Tensor, "*b w"]:
    """Cosines and sines of a noise level in [0, 1], with frequencies from ``fastest`` down to ``fastest / 10000``."""
    half = width // 2
    frequencies = fastest * torch.exp(-math.log(10_000) * torch.arange(half, device=level.device, dtype=torch.float32) / half)
    angle = level.float().unsqueeze(-1) * frequencies
    return torch.cat((angle.cos(), angle.sin()), -1)


class LevelEmbedding(nn.Module):
    """A noise level as one vector and as the ``vectors`` modulation vectors that every block starts from (0: none does)."""

    def __init__(self, width: int, features: int = 256, vectors: int = 6):
        super().__init__()
        self.features = features
        self.vectors = vectors
        first, second = nn.Linear(features, width), nn.Linear(width, width)
        last = zeroed(width, vectors * width) if vectors else nn.Identity()
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)
        self.projection = nn.Sequential(nn.SiLU(), last) if vectors else None

    def forward(self, level: Float[Tensor, "b n"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n v d"]]:
        embedded = self.mlp(level_features(level, self.features).to(next(self.parameters()).dtype))
        if self.projection is None:
            return embedded, embedded.new_zeros(*embedded.shape[:2], 0, embedded.shape[-1])
        return embedded, self.projection(embedded).unflatten(-1, (self.vectors, -1))


def zeroed(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ModulationTable(nn.Module):
    """A block's own offset to the modulation vectors; in a block of six: shift, scale, gate, twice (of nine: a third time).

    Shifts and scales begin at 0 and gates at ``gate``, so that a fresh block is a plain pre-norm block.
    """

    def __init__(self, width: int, vectors: int = 6, gate: float = 1.0):
        super().__init__()
        start = torch.zeros(vectors, width)
        start[2::3] = gate
        self.table = nn.Parameter(start)

    def forward(self, signal: Float[Tensor, "b n v d"]) -> tuple[Tensor, ...]:
        return (signal + self.table).unbind(-2)


class OwnModulation(nn.Module):
    """A block's own projection of the level's embedding to its modulation vectors (DiT), begun like a table."""

    def __init__(self, width: int, vectors: int = 6, gate: float = 1.0):
        super().__init__()
        self.vectors = vectors
        self.linear = zeroed(width, vectors * width)
        with torch.no_grad():
            self.linear.bias.view(vectors, width)[2::3] = gate

    def forward(self, embedded: Float[Tensor, "b n d"]) -> tuple[Tensor, ...]:
        return self.linear(silu(embedded)).unflatten(-1, (self.vectors, -1)).unbind(-2)


@dataclass(frozen=True)
class PerSpan:
    """A modulation vector of a packed row whose spans of tokens have each their own.

    ``modulate`` and ``gated`` take it span by span; in a plain formula (``x * (1 + scale) + shift``) it is written out.

    Attributes:
        lengths: tokens of each span; they add up to the row.
        parts: ``b 1|length d`` each.
    """

    lengths: tuple[int, ...]
    parts: tuple[Tensor, ...]

    def written_out(self) -> Float[Tensor, "b n d"]:
        """One vector for each token."""
        return torch.cat([part.expand(-1, length, -1) for part, length in zip(self.parts, self.lengths, strict=True)], 1)

    def __add__(self, other: Tensor | float | int) -> Tensor:
        return self.written_out() + other

    def __mul__(self, other: Tensor | float | int) -> Tensor:
        return self.written_out() * other

    __radd__, __rmul__ = __add__, __mul__


Vector = Tensor | PerSpan  # "b 1|n d"


def modulate(x: Float[Tensor, "b n d"], shift: Vector, scale: Vector) -> Float[Tensor, "b n d"]:
    """``shift + x (1 + scale)``."""
    if isinstance(shift, PerSpan) and isinstance(scale, PerSpan):
        return modulated_spans(x, shift.lengths, shift.parts, scale.parts)
    return modulated_spans(x, x.shape[1:2], (shift,), (scale,))  # type: ignore[arg-type]


def gated(x: Float[Tensor, "b n d"], gate: Vector, y: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """``x + gate y``."""
    lengths, gates = (gate.lengths, gate.parts) if isinstance(gate, PerSpan) else (x.shape[1:2], (gate,))
    return gated_spans(x, y, lengths, gates)
