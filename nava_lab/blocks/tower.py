"""Each modality attends within itself; a bridge carries what one tower knows to the other.

x += bridge(x)                                     all modalities, from the same snapshot (a bridge "at the start")
x += gate * attention(modulate(norm(x)))           each modality alone
x += text_attention(norm(x))                       (text="cross", unless the bridge reads the text too)
x += bridge(x)                                     (a bridge "in the middle")
x += gate * feed_forward(modulate(norm(x)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nava_lab.blocks.base import EXCHANGE, Dims, ExchangeLevels, Given, Hidden, PerModality, Spans, idle, tag
from nava_lab.blocks.cross_bridge import Cross
from nava_lab.blocks.options import BlockOptions
from nava_lab.blocks.sublayers import FeedForward, Modulation, Norms, SelfAttention, TextAttention, attended, fed, told
from nava_lab.layers.modulation import Vector
from nava_lab.registry import blocks


@blocks.register("tower")
@dataclass(frozen=True, kw_only=True)
class Tower(BlockOptions):
    """Separate towers with a bridge between them: Ovi, LTX-2, MOVA. Widths may differ.

    Attributes:
        bridge: a registered bridge, or None for towers that never meet in this layer.
        experts: modalities whose tower exists twice, for low and for high noise levels (MOVA's video, as Wan2.2 A14B's).
        boundary: the noise level from which the second one serves.
    """

    bridge: Any = field(default_factory=Cross)
    experts: tuple[str, ...] = ()
    boundary: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.boundary < 1:
            raise ValueError(f"boundary={self.boundary} must lie between noise levels 0 and 1")
        object.__setattr__(self, "experts", tuple(self.experts))

    def without_bridge(self) -> Tower:
        return replace(self, bridge=None)

    def exchange_levels(self, names: tuple[str, ...]) -> ExchangeLevels | None:
        return None if self.bridge is None else self.bridge.exchange_levels(names)

    def build(self, dims: Dims) -> nn.Module:
        return TowerBlock(self, dims)


class _Storey(nn.Module):
    """One modality's part of the block."""

    def __init__(self, config: Tower, dims: Dims):
        super().__init__()
        names = dims.names
        modulated = config.modulation != "none"
        self.modulation = Modulation(names, dims, False, config) if modulated else None
        self.norm1 = Norms(names, dims, False, not modulated, config.norm)
        self.attention = SelfAttention(names, dims, False, config)
        reads = config.text == "cross" and not (config.bridge is not None and config.bridge.reads_text)
        self.text_norm = Norms(names, dims, False, config.text_norm == "affine", config.norm) if reads else None
        self.text = TextAttention(names, dims, False, config) if reads else None
        self.norm2 = Norms(names, dims, False, not modulated, config.norm)
        self.feed_forward = FeedForward(names, dims, False, config)

    def vectors(self, given: Given, spans: Spans) -> list[Vector]:
        return [] if self.modulation is None else self.modulation(given, spans)

    def before_bridge(self, x: Tensor, spans: Spans, given: Given, vectors: Sequence[Vector]) -> Tensor:
        x = attended(self, x, spans, given, vectors)
        return told(self, x, spans, given, vectors)

    def after_bridge(self, x: Tensor, spans: Spans, given: Given, vectors: Sequence[Vector]) -> Tensor:
        return fed(self, x, spans, vectors)


class _Experts(nn.Module):
    """Two storeys, for samples of low and of high noise level; both are computed, and each sample takes its own."""

    def __init__(self, config: Tower, dims: Dims):
        super().__init__()
        self.low, self.high = _Storey(config, dims), idle(_Storey(config, dims))

    def vectors(self, given: Given, spans: Spans) -> tuple[list[Vector], list[Vector]]:
        assert given.high is not None
        return self.low.vectors(given, spans), self.high.vectors(given.high, spans)

    def before_bridge(self, x: Tensor, spans: Spans, given: Given, vectors: Sequence[Any]) -> Tensor:
        low = self.low.before_bridge(x, spans, given, vectors[0])
        high = self.high.before_bridge(x, spans, given.high, vectors[1])
        return torch.where(given.high_noise[spans.order[0]], high, low)

    def after_bridge(self, x: Tensor, spans: Spans, given: Given, vectors: Sequence[Any]) -> Tensor:
        low = self.low.after_bridge(x, spans, given, vectors[0])
        high = self.high.after_bridge(x, spans, given.high, vectors[1])
        return torch.where(given.high_noise[spans.order[0]], high, low)


class TowerBlock(nn.Module):
    def __init__(self, config: Tower, dims: Dims):
        super().__init__()

        def storey(name: str) -> nn.Module:
            return (_Experts if name in config.experts else _Storey)(config, dims.only((name,)))

        self.storeys = PerModality(dims.names, True, storey)
        self.bridge = None
        if config.bridge is not None:
            self.bridge = tag(config.bridge.build(dims, config), EXCHANGE)
            self.at, self.bridge_reads_text = config.bridge.at, config.bridge.reads_text

    def forward(self, x: Hidden, given: Given) -> dict[str, Tensor]:
        x = self._bridged(x, given, "start")
        spans = {name: Spans({name: part.shape[1]}) for name, part in x.items()}
        storeys = {name: self.storeys[name] for name in x}
        vectors = {name: storey.vectors(given, spans[name]) for name, storey in storeys.items()}
        y: Hidden = {name: storey.before_bridge(x[name], spans[name], given, vectors[name]) for name, storey in storeys.items()}
        y = self._bridged(y, given, "middle")
        return {name: storey.after_bridge(y[name], spans[name], given, vectors[name]) for name, storey in storeys.items()}

    def _bridged(self, x: Hidden, given: Given, at: str) -> Hidden:
        if self.bridge is None or at != self.at or (len(x) < 2 and not self.bridge_reads_text):
            return x
        received = self.bridge(x, given)
        return {name: part + received[name] for name, part in x.items()}
