"""Align, then fuse (NAVA, arXiv 2605.30073): modality-aware layers let audio and video correspond, shared layers fuse them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nava_lab.models.alignment import aligned
from nava_lab.models.placement import OWN
from nava_lab.models.variant import Stage, Variant
from nava_lab.registry import variants


@variants.register("align_then_fuse")
@dataclass(frozen=True)
class AlignThenFuse(Variant):
    """Joint audio-video attention throughout; the first layers keep weights per modality, the rest share them.

    Text is an external condition, read by cross-attention in every layer.

    Attributes:
        align_fraction: share of the layers that align (NAVA: 10 of 30), rounded to whole layers.
        placement: where they sit: early, late, sandwich or interleaved.
        keep: what an alignment layer keeps per modality: attention, text, feed_forward, norms, modulation. NAVA shares
            norms and feed-forward.
        align_text: whether the alignment layers read the text; without it audio and video first correspond on their own.
    """

    align_fraction: float = 1 / 3
    placement: str = field(default="early", metadata={"choices": OWN})
    keep: tuple[str, ...] = ("attention", "text", "modulation")
    align_text: bool = True

    def stages(self) -> Sequence[Stage]:
        return aligned(self, self.align_fraction, self.placement, self.keep, self.align_text)
