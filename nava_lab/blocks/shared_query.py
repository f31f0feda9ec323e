"""Ovi's bridge: the exchange rides on the reading of the text.

    q = query(norm(x));  received = output( attention(q, text) + attention(rotate(q), rotate(k(norm(source)))) )

Queries and output are those of the text cross-attention; only keys, values and their norms are the exchange's own. All
modalities read the same snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nava_lab.attention.projections import Heads, Output
from nava_lab.blocks.base import CONDITIONING, EXCHANGE, Dims, ExchangeLevels, Given, Hidden, PerModality, choose, tag
from nava_lab.blocks.cross_bridge import DIRECTIONS, Cross
from nava_lab.blocks.options import Traits
from nava_lab.layers.norms import norm
from nava_lab.layers.rotary import rotate
from nava_lab.registry import bridges
from nava_lab.streams import TEXT


@bridges.register("shared_query")
@dataclass(frozen=True)
class SharedQuery:
    """The text cross-attention's queries also ask the other tower; its output projects the sum (Ovi).

    Attributes:
        rotary: positions in the exchange, as in self-attention; the text is read without.
        directions: "both", or "a->b" for one way.
        gate: "none", or "learned", a gate per channel of the heads that starts closed.
    """

    rotary: bool = True
    directions: str = field(default="both", metadata={"choices": DIRECTIONS})
    gate: str = field(default="none", metadata={"choices": ("none", "learned")})

    reads_text = True
    at = "middle"

    def __post_init__(self) -> None:
        choose(self.gate, "gate", ("none", "learned"))

    def exchange_levels(self, names: tuple[str, ...]) -> ExchangeLevels | None:
        return None

    def build(self, dims: Dims, traits: Traits) -> nn.Module:
        if traits.text_modulation:
            raise ValueError("a bridge that shares the text's queries has no text_modulation: its query serves two readings")
        sources = {
            name: [source for source, target in Cross(directions=self.directions).pairs(dims.names) if target == name]
            for name in dims.names
        }
        readers = PerModality(dims.names, True, lambda name: _Reader(self, dims, traits, name, sources[name]))
        return _SharedQueryBridge(self, readers)


class _SharedQueryBridge(nn.Module):
    kind = "shared_query"

    def __init__(self, config: SharedQuery, readers: PerModality):
        super().__init__()
        self.config = config
        self.readers = readers

    def forward(self, x: Hidden, given: Given) -> dict[str, Tensor]:
        return {name: self.readers[name](name, x, given) for name in x}


class _Reader(nn.Module):
    """What one modality receives, of the text and of the others."""

    part = "text"

    def __init__(self, config: SharedQuery, dims: Dims, traits: Traits, name: str, sources: list[str]):
        super().__init__()
        width, heads, head_dim = dims.widths[name], dims.heads[name], dims.head_dim(name)
        self.rotary, self.shape = config.rotary, (heads, head_dim)
        self.text_norm = norm(traits.norm, width, traits.text_norm == "affine")
        self.query = Heads(width, heads, head_dim, traits.qk_norm, traits.bias)
        self.output = Output(width, heads, head_dim, traits.bias, traits.head_gates)
        self.key = self.value = None
        if getattr(traits, "text", "cross") == "cross":
            self.key = Heads(width, heads, head_dim, traits.qk_norm, traits.bias)
            self.value = Heads(width, heads, head_dim, "none", traits.bias)
        for part in (self.text_norm, self.query, self.output, self.key, self.value):
            if part is not None:
                tag(part, CONDITIONING, name)
        self.fusion = nn.ModuleDict()
        for source in sources:
            closed = config.gate == "learned"
            self.fusion[source] = tag(_Fusion(dims.widths[source], heads, head_dim, traits, closed), EXCHANGE, source)

    def forward(self, name: str, x: Hidden, given: Given) -> Tensor:
        asking = self.text_norm(x[name])
        query = self.query(asking)
        heads, seen = query.new_zeros(()), None
        if self.key is not None:
            visible = given.visible((name,), (TEXT,))
            text = given.text[name]
            heads = given.attend(query, self.key(text), self.value(text), visible)
            seen = torch.ones_like(query[..., :1, 0], dtype=torch.bool) if visible is None else visible.sees
        for source, fusion in self.fusion.items():
            if source in x:
                visible = given.visible((name,), (source,))
                heads = heads + fusion(query, x[source], (name, source), given, visible, self.rotary)
                sees = torch.ones_like(query[..., :1, 0], dtype=torch.bool) if visible is None else visible.sees
                seen = sees if seen is None else seen | sees
        if seen is None:
            return x[name].new_zeros(())
        return self.output(heads, asking) * seen


class _Fusion(nn.Module):
    """Keys and values of the exchange: an affine norm of the source, and two projections of it."""

    part = "exchange"

    def __init__(self, width: int, heads: int, head_dim: int, traits: Traits, closed: bool):
        super().__init__()
        self.norm = norm(traits.norm, width, True)
        self.key = Heads(width, heads, head_dim, traits.qk_norm, traits.bias)
        self.value = Heads(width, heads, head_dim, "none", traits.bias)
        self.gate = nn.Parameter(torch.zeros(heads, head_dim)) if closed else None

    def forward(
        self, query: Tensor, source: Tensor, names: tuple[str, str], given: Given, visible: object, rotary: bool
    ) -> Tensor:
        normed = self.norm(source)
        key = self.key(normed)
        if rotary:
            heads, head_dim = query.shape[-2:]
            query, key = (
                rotate(part, given.rotary((name,), head_dim, heads=heads)) for part, name in zip((query, key), names, strict=True)
            )
        made = given.attend(query, key, self.value(normed), visible)  # type: ignore[arg-type]
        return made if self.gate is None else made * self.gate
