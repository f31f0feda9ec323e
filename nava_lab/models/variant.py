"""The sentence in which a variant describes itself: stages of blocks, and what surrounds them.

A variant is a frozen dataclass in ``variants/`` that answers with its stages. It has no forward pass and is never named
outside its own file: the denoiser, the budget solver and the command line read only what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nava_lab.blocks.base import BlockConfig, choose
from nava_lab.layers.rotary import Clock

TEXT_PLACES = ("cross", "sequence")
LEVEL_INPUTS = ("shared", "per_modality", "none")


@dataclass(frozen=True)
class Stage:
    """``layers`` equal blocks in a row.

    Attributes:
        block: what each layer is.
        layers: how many.
        label: what the stage is for.
        text: whether its layers read the text. Where they do not, the text is hidden from the generated modalities, be it
            outside the sequence or in it, and a block that can do without its text sublayer is built without.
    """

    block: BlockConfig
    layers: int
    label: str = ""
    text: bool = True

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise ValueError(f"a stage cannot have {self.layers} layers")

    @property
    def config(self) -> BlockConfig:
        """The block as it is built."""
        without_text = getattr(self.block, "without_text", None)
        return self.block if self.text or without_text is None else without_text()


@dataclass(frozen=True)
class Size:
    """What a budget decides.

    Attributes:
        width: the model width, of the widest modality where they differ.
        hidden: its feed-forward width.
    """

    width: int
    hidden: int


@dataclass(frozen=True)
class Variant:
    """What every variant has; subclasses add their own fields and answer ``stages``.

    Attributes:
        depth: layers in all.
        heads: attention heads; 0 chooses the count that makes a head nearest to 32 channels (64 from width 512, 128 from
            2048).
        text_after: layers that come before the text does: they do not read it, whatever the stages say.
        ratio: the feed-forward ratio that the budget solver aims for before it fits the rest.
        clock: seconds to rotary angles.
    """

    depth: int = 6
    heads: int = 0
    text_after: int = 0
    ratio: float = 3.0
    clock: Clock = field(default_factory=Clock)

    # What a subclass may answer differently; not fields, for they are what makes a family.
    text_place = "cross"  # "cross": read from outside; "sequence": its tokens join the row
    level_input = "shared"  # one noise-level embedding for all, one "per_modality", or "none"

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}: a variant needs at least one layer")
        if self.heads < 0 or not self.ratio > 0:
            raise ValueError(f"heads={self.heads} must not be negative and ratio={self.ratio} must be positive")
        if not 0 <= self.text_after < self.depth:
            most = self.depth - 1
            raise ValueError(f"variant.text_after={self.text_after}: of {self.depth} layers, 0 to {most} can go without text")
        choose(self.text_place, "text_place", TEXT_PLACES)
        choose(self.level_input, "level_input", LEVEL_INPUTS)

    def stages(self) -> Sequence[Stage]:
        raise TypeError(f"{type(self).__name__} does not say its stages")

    def plan(self) -> list[Stage]:
        """The stages as they are built: no text in the first ``text_after`` layers."""
        plan: list[Stage] = []
        left = self.text_after
        for stage in self.stages():
            before = min(left, stage.layers)
            left -= before
            parts = (replace(stage, layers=before, text=False), replace(stage, layers=stage.layers - before))
            plan += [part for part in parts if part.layers]
        return plan

    def widths(self, width: int, modalities: Sequence[str]) -> Mapping[str, int]:
        """Each modality's model width; equal unless a variant answers otherwise."""
        return dict.fromkeys(modalities, width)

    def heads_for(self, width: int) -> int:
        """The number of heads at a width, always with an even number of channels each."""
        if self.heads:
            return self.heads
        if width % 2:
            raise ValueError(f"a model width must be even, not {width}")
        target = 32 if width < 512 else 64 if width < 2048 else 128
        counts = [count for count in range(1, width // 2 + 1) if width % (2 * count) == 0]
        return min(counts, key=lambda count: (abs(width / count - target), count))


def legal_width_step(width: int) -> int:
    """Widths come in multiples of this, so that every size divides into heads (and matrix tiles, where that matters)."""
    return 8 if width < 256 else 32 if width < 512 else 64 if width < 2048 else 128
