"""Align, then fuse (NAVA, arXiv 2605.30073): modality-aware layers let audio and video correspond, shared layers fuse them."""

from collections.abc import Sequence
from dataclasses import dataclass

from nava_lab.blocks.joint import Joint
from nava_lab.models.variant import Stage, Variant
from nava_lab.registry import variants


@variants.register("align_then_fuse")
@dataclass(frozen=True)
class AlignThenFuse(Variant):
    """Joint audio-video attention throughout; the first layers keep weights per modality, the rest share them.

    Text is an external condition, read by cross-attention in every layer.

    Attributes:
        align_fraction: share of the layers that align (NAVA: 10 of 30), rounded to whole layers.
        keep: what an alignment layer keeps per modality: attention, text, feed_forward, norms, modulation. NAVA shares
            norms and feed-forward.
        align_text: whether the alignment layers read the text; without it audio and video first correspond on their own.
    """

    align_fraction: float = 1 / 3
    keep: tuple[str, ...] = ("attention", "text", "modulation")
    align_text: bool = True

    def stages(self) -> Sequence[Stage]:
        if not 0 <= self.align_fraction <= 1:
            raise ValueError(f"variant.align_fraction={self.align_fraction} must lie between 0 and 1")
        align = round(self.depth * self.align_fraction)
        stages = [
            Stage(Joint(per_modality=tuple(self.keep)), align, "align", text=self.align_text),
            Stage(Joint(), self.depth - align, "fuse"),
        ]
        return [stage for stage in stages if stage.layers]
