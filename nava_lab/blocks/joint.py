"""One softmax over all modalities of the sequence.

With everything shared it is a fusion layer of NAVA or, with text in the sequence, a layer of a fully unified model; with
some of its weights kept per modality it is NAVA's alignment layer (arXiv 2605.30073) or an outer layer of MagiHuman.

    x += gate * attention(modulate(norm(x)))
    x += text_attention(norm(x))                      (text="cross")
    x += gate * feed_forward(modulate(norm(x)))
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from nava_lab.blocks.base import Dims, Given, Hidden, Spans
from nava_lab.blocks.options import BlockOptions
from nava_lab.blocks.sublayers import FeedForward, Modulation, Norms, SelfAttention, TextAttention
from nava_lab.layers.modulation import modulate
from nava_lab.registry import blocks, nearest

KEEP = ("attention", "text", "feed_forward", "norms", "modulation")


@blocks.register("joint")
@dataclass(frozen=True, kw_only=True)
class Joint(BlockOptions):
    """Joint attention over all modalities, weights shared or kept per modality.

    Attributes:
        per_modality: what each modality keeps to itself, out of attention (q, k, v, o and their norms), text (the same of
            the text cross-attention), feed_forward, norms, modulation.
    """

    per_modality: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "per_modality", tuple(self.per_modality))
        for part in self.per_modality:
            if part not in KEEP:
                raise ValueError(f"a joint block cannot keep '{part}' per modality; {nearest(part, list(KEEP))}")
            if self._lacking(part):
                raise ValueError(f"per_modality={part}: a block with {self._lacking(part)} has none to keep; leave it out")

    def _lacking(self, part: str) -> str:
        """The choices by which the block has no such part; empty where it has it."""
        text, modulated = self.text == "cross", self.modulation == "adaln"
        if part == "text":
            return "" if text else "text=none"
        if part == "modulation":
            return "" if modulated else "modulation=none"
        # A modulated norm has no weights of its own; the one before the text has.
        return "text=none and modulation=adaln" if part == "norms" and modulated and not text else ""

    def without_text(self) -> Joint:
        bare = replace(self, text="none", per_modality=())
        return replace(bare, per_modality=tuple(part for part in self.per_modality if not bare._lacking(part)))

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
