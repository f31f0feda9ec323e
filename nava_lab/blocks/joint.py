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
from nava_lab.blocks.sublayers import FeedForward, Modulation, Norms, SelfAttention, TextAttention, attended, fed, told
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
        text, modulated = self.text == "cross", self.modulation != "none"
        if part == "text":
            return "" if text else "text=none"
        if part == "modulation":
            return "" if modulated else "modulation=none"
        # A modulated norm has no weights of its own; the one before the text may have.
        if part == "norms" and modulated and not (text and self.text_norm == "affine"):
            return f"text={self.text}, text_norm={self.text_norm} and modulation={self.modulation}"
        return ""

    def without_text(self) -> Joint:
        bare = replace(self, text="none", text_modulation=False, per_modality=())
        return replace(bare, per_modality=tuple(part for part in self.per_modality if not bare._lacking(part)))

    def build(self, dims: Dims) -> nn.Module:
        return JointBlock(self, dims)


class JointBlock(nn.Module):
    def __init__(self, config: Joint, dims: Dims):
        super().__init__()
        names, keep = dims.names, set(config.per_modality)
        dims.one_size(names)
        modulated = config.modulation != "none"
        self.modulation = Modulation(names, dims, "modulation" in keep, config) if modulated else None
        self.norm1 = Norms(names, dims, "norms" in keep, not modulated, config.norm)
        self.attention = SelfAttention(names, dims, "attention" in keep, config)
        reads = config.text == "cross"
        self.text_norm = Norms(names, dims, "norms" in keep, config.text_norm == "affine", config.norm) if reads else None
        self.text = TextAttention(names, dims, "text" in keep, config) if reads else None
        self.norm2 = Norms(names, dims, "norms" in keep, not modulated, config.norm)
        self.feed_forward = FeedForward(names, dims, "feed_forward" in keep, config)

    def forward(self, x: Hidden, given: Given) -> dict[str, Tensor]:
        spans = Spans.of(x)
        row = spans.pack(x)
        vectors = self.modulation(given, spans) if self.modulation is not None else []
        row = attended(self, row, spans, given, vectors)
        row = told(self, row, spans, given, vectors)
        return spans.unpack(fed(self, row, spans, vectors))
