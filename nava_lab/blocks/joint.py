"""One softmax over all modalities of the sequence.

With everything shared it is a fusion layer of NAVA or, with text in the sequence, a layer of a fully unified model; with
some of its weights kept per modality it is NAVA's alignment layer (arXiv 2605.30073) or an outer layer of MagiHuman.

    x += gate * attention(modulate(norm(x)))
    x += text_attention(norm(x))                      (text="cross")
    x += gate * feed_forward(modulate(norm(x)))
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nava_lab.attention.projections import QK_NORMS
from nava_lab.blocks.base import Dims, Given, Hidden, Spans, choose
from nava_lab.blocks.sublayers import FeedForward, Modulation, Norms, SelfAttention, TextAttention
from nava_lab.layers.feed_forward import KINDS
from nava_lab.layers.modulation import modulate
from nava_lab.registry import blocks, nearest

KEEP = ("attention", "text", "feed_forward", "norms", "modulation")


@blocks.register("joint")
@dataclass(frozen=True)
class Joint:
    """Joint attention over all modalities, weights shared or kept per modality.

    Attributes:
        per_modality: what each modality keeps to itself, out of attention (q, k, v, o and their norms), text (the same of
            the text cross-attention), feed_forward, norms, modulation.
        text: "cross" reads the text by cross-attention; "none" does not (it may be part of the sequence).
        modulation: "adaln" for scale, shift and gate by noise level; "none" for a block that is told no time.
        feed_forward: "gelu" or "swiglu".
        qk_norm: "full" (over all heads), "head" (within each) or "none".
        kv_heads: key-value heads for grouped queries; 0 gives every query head its own.
        head_gates: a sigmoid gate per head, computed from the token.
        bias: biases in the linear layers.
    """

    per_modality: tuple[str, ...] = ()
    text: str = "cross"
    modulation: str = "adaln"
    feed_forward: str = "gelu"
    qk_norm: str = "full"
    kv_heads: int = 0
    head_gates: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_modality", tuple(self.per_modality))
        for part in self.per_modality:
            if part not in KEEP:
                raise ValueError(f"a joint block cannot keep '{part}' per modality; {nearest(part, list(KEEP))}")
        choose(self.text, "text", ("cross", "none"))
        choose(self.modulation, "modulation", ("adaln", "none"))
        choose(self.feed_forward, "feed_forward", KINDS)
        choose(self.qk_norm, "qk_norm", QK_NORMS)

    def build(self, dims: Dims) -> nn.Module:
        return JointBlock(self, dims)


class JointBlock(nn.Module):
    def __init__(self, config: Joint, dims: Dims):
        super().__init__()
        names, keep = dims.names, set(config.per_modality)
        if not dims.same(names):
            raise ValueError(
                f"a joint block needs one width and head count for all modalities, not {dict(dims.widths)}; "
                "give the tower block different widths"
            )
        adaln = config.modulation == "adaln"
        self.modulation = Modulation(names, dims, "modulation" in keep) if adaln else None
        self.norm1 = Norms(names, dims, "norms" in keep, affine=not adaln)
        self.attention = SelfAttention(
            names, dims, "attention" in keep, config.qk_norm, config.kv_heads, config.head_gates, config.bias
        )
        self.text_norm = Norms(names, dims, "norms" in keep, affine=True) if config.text == "cross" else None
        self.text = (
            TextAttention(names, dims, "text" in keep, config.qk_norm, config.head_gates, config.bias)
            if config.text == "cross"
            else None
        )
        self.norm2 = Norms(names, dims, "norms" in keep, affine=not adaln)
        self.feed_forward = FeedForward(names, dims, "feed_forward" in keep, config.feed_forward, config.bias)

    def forward(self, x: Hidden, given: Given) -> dict[str, Tensor]:
        spans = Spans.of(x)
        row = spans.pack(x)
        if self.modulation is None:
            row = row + self.attention(self.norm1(row, spans), spans, given)
            row = self._read_text(row, spans, given)
            return spans.unpack(row + self.feed_forward(self.norm2(row, spans), spans))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(given, spans)
        row = row + gate1 * self.attention(modulate(self.norm1(row, spans), shift1, scale1), spans, given)
        row = self._read_text(row, spans, given)
        return spans.unpack(row + gate2 * self.feed_forward(modulate(self.norm2(row, spans), shift2, scale2), spans))

    def _read_text(self, row: Tensor, spans: Spans, given: Given) -> Tensor:
        if self.text is None or self.text_norm is None:
            return row
        return row + self.text(self.text_norm(row, spans), spans, given)
