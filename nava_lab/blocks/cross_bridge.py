"""Bridges of dedicated cross-attentions, one per direction, all from the same snapshot (LTX-2's exchange, MOVA's bridge).

Only time orders its tokens: rotary angles come from seconds on all channels of a head, so a token finds what happens at
the same moment in the other modality, whatever the two rates.

    received = gate * attention(modulate(norm(x)), modulate(norm(source)))        modulated where gate="level"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor, nn

from nava_lab.attention.projections import QK_NORMS
from nava_lab.blocks.base import EXCHANGE, Dims, ExchangeLevels, Given, Hidden, choose, tag
from nava_lab.blocks.options import Traits
from nava_lab.blocks.sublayers import CrossAttention
from nava_lab.layers.modulation import ModulationTable, modulate
from nava_lab.layers.norms import NORMS, norm
from nava_lab.registry import bridges

GATES = ("none", "learned", "level")
DIRECTIONS = ("both", "audio->video", "video->audio")


@bridges.register("cross")
@dataclass(frozen=True)
class Cross:
    """Cross-attention from every modality to every other, each direction with weights of its own.

    Attributes:
        qk_norm: "full", "head" or "none".
        head_gates: sigmoid gates per head, computed from the token that asks: 0 for none, else the factor.
        rotary: time positions in the exchange; without them it only carries what, not when.
        directions: "both", or "a->b" for one way, such as "audio->video" (audio informs video).
        inner: heads and width of the attention: of the "narrow" one of the two (LTX-2), or of the "reader" (MOVA).
        normed: "both" ends, or only the "source" (MOVA).
        norm: "layer" or "rms".
        affine: whether the norms have weights.
        gate: "none"; "learned", a gate per channel that starts closed; "level", scales, shifts and gates by noise level (LTX-2).
        level: whose noise level that is: of the modality at the "other" end, or the tokens' "own".
        at: in the "middle" of a layer, after the text, or at its "start" (MOVA).
    """

    qk_norm: str = field(default="full", metadata={"choices": QK_NORMS})
    head_gates: float = 0.0
    rotary: bool = True
    directions: str = field(default="both", metadata={"choices": DIRECTIONS})
    inner: str = field(default="narrow", metadata={"choices": ("narrow", "reader")})
    normed: str = field(default="both", metadata={"choices": ("both", "source")})
    norm: str = field(default="layer", metadata={"choices": NORMS})
    affine: bool = True
    gate: str = field(default="none", metadata={"choices": GATES})
    level: str = field(default="other", metadata={"choices": ("other", "own")})
    at: str = field(default="middle", metadata={"choices": ("middle", "start")})

    reads_text = False

    @property
    def on_one_clock(self) -> bool:
        """Whether it turns by one clock for all, whatever the towers count."""
        return self.rotary

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_gates", float(self.head_gates))
        for value, name, allowed in (
            (self.qk_norm, "qk_norm", QK_NORMS),
            (self.inner, "inner", ("narrow", "reader")),
            (self.normed, "normed", ("both", "source")),
            (self.norm, "norm", NORMS),
            (self.gate, "gate", GATES),
            (self.level, "level", ("other", "own")),
            (self.at, "at", ("middle", "start")),
        ):
            choose(value, name, allowed)
        if self.directions != "both" and len(self.directions.split("->")) != 2:
            raise ValueError(f"directions={self.directions} is neither 'both' nor of the form 'audio->video'")
        if self.level != "other" and self.gate != "level":
            raise ValueError(f"level={self.level} says whose noise level gates an exchange, and gate={self.gate} reads none")

    def pairs(self, names: tuple[str, ...]) -> list[tuple[str, str]]:
        """The (source, target) pairs among these modalities."""
        wanted = list(permutations(names, 2))
        if self.directions == "both":
            return wanted
        source, target = self.directions.split("->")
        if (source, target) not in wanted:
            raise ValueError(f"directions={self.directions}: the towers are {', '.join(names)}")
        return [(source, target)]

    def exchange_levels(self, names: tuple[str, ...]) -> ExchangeLevels | None:
        """What the denoiser must make of the noise levels for it; None for nothing."""
        if self.gate != "level":
            return None
        pairs = self.pairs(names)
        scales = tuple((name, 2 * sum(name in pair for pair in pairs)) for name in names)
        return ExchangeLevels(self.level, scales, tuple((name, sum(target == name for _, target in pairs)) for name in names))

    def build(self, dims: Dims, traits: Traits) -> nn.Module:
        return CrossBridge(self, dims)


@bridges.register("conditional")
@dataclass(frozen=True)
class Conditional(Cross):
    """MOVA's conditional bridge: the reader's heads and width, only the source is normed, at the start of a layer."""

    inner: str = field(default="reader", metadata={"choices": ("narrow", "reader")})
    normed: str = field(default="source", metadata={"choices": ("both", "source")})
    at: str = field(default="start", metadata={"choices": ("middle", "start")})


class CrossBridge(nn.Module):
    kind = "cross"

    def __init__(self, config: Cross, dims: Dims):
        super().__init__()
        self.config = config
        self.rotary, self.normed = config.rotary, config.normed
        self.norms = nn.ModuleDict()
        self.readers = nn.ModuleDict()
        pairs = config.pairs(dims.names)
        for source, target in pairs:
            inner = target if config.inner == "reader" else min((source, target), key=lambda name: dims.widths[name])
            reader = CrossAttention(
                dims.widths[target],
                dims.widths[source],
                dims.heads[inner],
                dims.head_dim(inner),
                config.qk_norm,
                config.head_gates,
            )
            for part, owner in (
                (reader.query, target),
                (reader.output, target),
                (reader.key, source),
                (reader.value, source),
            ):
                part.owner = owner  # type: ignore[assignment]
            self.readers[f"{source}_to_{target}"] = reader
        wanted = [name for pair in pairs for name in pair] if config.normed == "both" else [source for source, _ in pairs]
        for name in dict.fromkeys(wanted):
            self.norms[name] = tag(norm(config.norm, dims.widths[name], config.affine), EXCHANGE, name)
        self.pairs = tuple(pairs)
        self.gates = None
        if config.gate == "learned":
            self.gates = nn.ParameterDict({f"{source}_to_{target}": torch.zeros(dims.widths[target]) for source, target in pairs})
        self.tables = nn.ModuleDict()
        levels = config.exchange_levels(dims.names)
        if levels is not None:
            self._make_tables(levels, dims)

    def _make_tables(self, levels: ExchangeLevels, dims: Dims) -> None:
        """Of each modality scale and shift for every direction it takes part in, the first modality's readings first, then
        the gates of what it receives: of two modalities the five vectors of LTX-2, in its order."""
        self.scale_at: dict[tuple[str, tuple[str, str]], int] = {}
        self.gate_at: dict[tuple[str, str], int] = {}
        ordered = sorted(self.pairs, key=lambda pair: dims.names.index(pair[1]))
        gates = dict(levels.gates)
        for name, count in levels.scales:
            self.tables[name] = tag(_ExchangeTable(dims.widths[name], count, gates[name]), EXCHANGE, name)
            own = [pair for pair in ordered if name in pair]
            self.scale_at |= {(name, pair): 2 * place for place, pair in enumerate(own)}
            self.gate_at |= {pair: count + place for place, pair in enumerate(pair for pair in own if pair[1] == name)}

    def forward(self, x: Hidden, given: Given) -> dict[str, Tensor]:
        """What each modality receives, zeros where nothing is sent."""
        normed = {name: self.norms[name](part) for name, part in x.items() if name in self.norms}
        vectors = {name: table(given.exchange[name]) for name, table in self.tables.items() if name in x}
        received = {name: part.new_zeros(()) for name, part in x.items()}
        for pair in self.pairs:
            source, target = pair
            if source not in x or target not in x:
                continue
            told, asking = normed[source], normed[target] if self.normed == "both" else x[target]
            if vectors:
                told = self._modulated(told, vectors, source, pair)
                asking = self._modulated(asking, vectors, target, pair)
            made = self._read(pair, told, asking, given)
            if vectors:
                made = made * vectors[target][self.gate_at[pair]]
            received[target] = received[target] + made
        return received

    def _modulated(self, x: Tensor, vectors: Mapping[str, tuple[Tensor, ...]], name: str, pair: tuple[str, str]) -> Tensor:
        at = self.scale_at[name, pair]
        scale, shift = vectors[name][at : at + 2]
        return modulate(x, shift, scale)

    def _read(self, pair: tuple[str, str], told: Tensor, asking: Tensor, given: Given) -> Tensor:
        source, target = pair
        reader = self.readers[f"{source}_to_{target}"]
        tables = None
        if self.rotary:
            heads, head_dim = reader.query.shape
            tables = tuple(given.rotary((side,), head_dim, time_only=True, heads=heads) for side in (target, source))
        received = reader(asking, told, given, given.visible((target,), (source,)), tables)
        return received if self.gates is None else received * self.gates[f"{source}_to_{target}"]


class _ExchangeTable(ModulationTable):
    """Scales and shifts that begin at 0, then gates that begin at 1."""

    def __init__(self, width: int, scales: int, gates: int):
        super().__init__(width, scales + gates, 0.0)
        with torch.no_grad():
            self.table[scales:] = 1.0
