"""Fully unified (daVinci-MagiHuman): text, audio and video in one attention space, one set of weights for all."""

from collections.abc import Sequence
from dataclasses import dataclass

from nava_lab.blocks.joint import Joint
from nava_lab.models.variant import Stage, Variant
from nava_lab.registry import variants


@variants.register("unified")
@dataclass(frozen=True)
class Unified(Variant):
    """One row of text, audio and video tokens through shared layers.

    Attributes:
        time_input: tell the noise level by modulation (AdaLN); without it, as in MagiHuman, the level must be read off the
            tokens and a sigmoid gate per head takes the modulation's place.
    """

    time_input: bool = True

    text_place = "sequence"

    @property
    def level_input(self) -> str:  # type: ignore[override]
        return "shared" if self.time_input else "none"

    def stages(self) -> Sequence[Stage]:
        modulation = "adaln" if self.time_input else "none"
        block = Joint(text="none", modulation=modulation, head_gates=not self.time_input)
        return [Stage(block, self.depth, "one space")]
