"""Noise levels into what layers are modulated by: per token, per sample, or the other modality's.

Shape letters: b batch, n tokens, s samples, d width, v modulation vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from nava_lab.blocks.base import EXCHANGE, ExchangeLevels, tag
from nava_lab.layers.modulation import LevelEmbedding
from nava_lab.streams import TEXT, Stream, finite_in_padding

Levels = Mapping[str, Tensor]


def finite(level: Float[Tensor, "b *n"], stream: Stream) -> Float[Tensor, "b *n"]:
    """Levels with something finite for tokens that are padding."""
    return finite_in_padding(level, stream.valid) if level.ndim == 2 and stream.valid is not None else level


def of_samples(level: Float[Tensor, "b *n"], stream: Stream) -> Float[Tensor, " s"]:
    """Each sample's noise level: the highest of its tokens, for clean ones are given and not noisy."""
    if level.ndim == 1:
        return level
    if stream.packing is not None:
        none = level.new_zeros(len(stream.packing.lengths))
        return none.scatter_reduce(0, stream.packing.ids[0], level[0], "amax")
    if not level.shape[1]:
        return level.new_zeros(len(level))
    return (level if stream.valid is None else level.masked_fill(~stream.valid, 0.0)).amax(-1)


def over_tokens(values: Shaped[Tensor, "s *v"], stream: Stream) -> Shaped[Tensor, "b _ *v"]:
    """Something that each sample has, shaped to meet a stream's tokens."""
    return values.unsqueeze(1) if stream.packing is None else values[stream.packing.ids]


def embedded(
    modules: Mapping[str, nn.Module], x: Mapping[str, Tensor], row: Mapping[str, Stream], levels: Levels
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Level embeddings ``b 1|n d`` and modulation vectors ``b 1|n v d`` per modality; the text's level is 0.

    Equal levels through a shared embedding are one tensor, by which blocks know that one set of vectors serves all.
    """
    vectors: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    seen: list[tuple[Tensor, nn.Module, tuple[Tensor, Tensor]]] = []
    for name, part in x.items():
        level = finite(levels[name], row[name]) if name != TEXT else part.new_zeros(part.shape[0])
        module = modules[name]
        made = next((made for tensor, owner, made in seen if tensor is level and owner is module), None)
        if made is None:
            made = module(level if level.ndim == 2 else level.unsqueeze(-1))
            seen.append((level, module, made))
        packing = row[name].packing if name != TEXT else None
        if packing is not None and level.ndim == 1:  # each packed token has its sample's level
            made = (made[0].squeeze(1)[packing.ids], made[1].squeeze(1)[packing.ids])
        found[name], vectors[name] = made
    return found, vectors


class Exchange(nn.Module):
    """What bridges that are modulated by noise level start from, for all layers (LTX-2's cross-attention AdaLN)."""

    def __init__(self, wanted: ExchangeLevels, widths: Mapping[str, int], features: int):
        super().__init__()
        self.whose = wanted.whose
        parts = (wanted.scales, wanted.gates)
        self.scales, self.gates = (
            nn.ModuleDict(
                {name: tag(LevelEmbedding(widths[name], features, count), EXCHANGE, name) for name, count in part if count}
            )
            for part in parts
        )

    def forward(self, row: Mapping[str, Stream], levels: Levels) -> dict[str, Tensor]:
        """Vectors ``b 1|n v d`` of every modality that meets another in this batch."""
        found = {}
        for name in self.scales:
            others = [of_samples(levels[other], row[other]) for other in row if other != name]
            if name not in row or not others:
                continue
            level, stream = finite(levels[name], row[name]), row[name]
            if self.whose == "other":
                level = torch.stack(others).amax(0)
            parts = [
                part[name](level if level.ndim == 2 else level.unsqueeze(-1))[1]
                for part in (self.scales, self.gates)
                if name in part
            ]
            made = torch.cat(parts, -2)
            found[name] = over_tokens(made.squeeze(1), stream) if level.ndim == 1 else made
        return found


class Prompt(nn.Module):
    """What the text is modulated by where layers modulate it (LTX-2.3's prompt AdaLN)."""

    def __init__(self, widths: Mapping[str, int], split: bool, features: int):
        super().__init__()
        names = list(widths) if split else ["shared"]
        first = next(iter(widths.values()))
        self.parts = nn.ModuleDict({name: LevelEmbedding(widths.get(name, first), features, 2) for name in names})
        for name in names if split else ():
            self.parts[name].owner = name  # type: ignore[assignment]

    def forward(self, row: Mapping[str, Stream], levels: Levels, text: Stream) -> dict[str, Tensor]:
        found = {}
        for name, stream in row.items():
            module = self.parts[name if name in self.parts else "shared"]
            made = module(of_samples(levels[name], stream).unsqueeze(-1))[1]
            found[name] = over_tokens(made.squeeze(1), text)
        return found
