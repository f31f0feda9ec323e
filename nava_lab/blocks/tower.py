"""Each modality attends within itself; a bridge carries what one tower knows to the other.

x += gate * attention(modulate(norm(x)))           each modality alone
x += text_attention(norm(x))                       (text="cross")
x += bridge(x)                                     all modalities, from the same snapshot
x += gate * feed_forward(modulate(norm(x)))
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from nava_lab.blocks.base import EXCHANGE, Dims, Given, Hidden, PerModality, Spans, tag
from nava_lab.blocks.cross_bridge import Cross
from nava_lab.blocks.options import BlockOptions
from nava_lab.blocks.sublayers import FeedForward, Modulation, Norms, SelfAttention, TextAttention
from nava_lab.layers.modulation import modulate
from nava_lab.registry import blocks


@blocks.register("tower")
@dataclass(frozen=True, kw_only=True)
class Tower(BlockOptions):
    """Separate towers with a bridge between them: Ovi, LTX-2, MOVA. Widths may differ.

    Attributes:
        bridge: a registered bridge, or None for towers that never meet in this layer.
    """

    bridge: Any = field(default_factory=Cross)

    def without_bridge(self) -> Tower:
        return replace(self, bridge=None)

    def build(self, dims: Dims) -> nn.Module:
        return TowerBlock(self, dims)


class _Storey(nn.Module):
    """One modality's part of the block."""

    def __init__(self, config: Tower, dims: Dims):
        super().__init__()
        names = dims.names
        adaln = config.modulation == "adaln"
        self.modulation = Modulation(names, dims, False) if adaln else None
        self.norm1 = Norms(names, dims, False, affine=not adaln)
        self.attention = SelfAttention(names, dims, False, config.qk_norm, config.kv_heads, config.head_gates, config.bias)
        self.text_norm = Norms(names, dims, False, affine=True) if config.text == "cross" else None
        self.text = (
            TextAttention(names, dims, False, config.qk_norm, config.head_gates, config.bias) if config.text == "cross" else None
        )
        self.norm2 = Norms(names, dims, False, affine=not adaln)
        self.feed_forward = FeedForward(names, dims, False, config.feed_forward, config.bias)

    def before_bridge(self, x: Tensor, spans: Spans, given: Given, vectors: list[Tensor] | None) -> Tensor:
        if vectors is None:
            x = x + self.attention(self.norm1(x, spans), spans, given)
        else:
            shift, scale, gate = vectors[:3]
            x = x + gate * self.attention(modulate(self.norm1(x, spans), shift, scale), spans, given)
        if self.text is None or self.text_norm is None:
            return x
        return x + self.text(self.text_norm(x, spans), spans, given)

    def after_bridge(self, x: Tensor, spans: Spans, vectors: list[Tensor] | None) -> Tensor:
        if vectors is None:
            return x + self.feed_forward(self.norm2(x, spans), spans)
        shift, scale, gate = vectors[3:]
        return x + gate * self.feed_forward(modulate(self.norm2(x, spans), shift, scale), spans)


class TowerBlock(nn.Module):
    def __init__(self, config: Tower, dims: Dims):
        super().__init__()
        self.storeys = PerModality(dims.names, True, lambda name: _Storey(config, dims.only((name,))))
        self.bridge = None if config.bridge is None else tag(config.bridge.build(dims), EXCHANGE)

    def forward(self, x: Hidden, given: Given) -> dict[str, Tensor]:
        spans = {name: Spans({name: part.shape[1]}) for name, part in x.items()}
        storeys = {name: self.storeys[name] for name in x}
        vectors = {
            name: None if storey.modulation is None else storey.modulation(given, spans[name]) for name, storey in storeys.items()
        }
        y = {name: storey.before_bridge(x[name], spans[name], given, vectors[name]) for name, storey in storeys.items()}
        if self.bridge is not None and len(y) > 1:
            received = self.bridge(y, given)
            y = {name: part + received[name] for name, part in y.items()}
        return {name: storey.after_bridge(y[name], spans[name], vectors[name]) for name, storey in storeys.items()}
