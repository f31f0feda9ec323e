"""Fully unified (daVinci-MagiHuman): text, audio and video in one attention space, one set of weights for all."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    text_place: str = field(default="sequence", metadata={"choices": ("cross", "sequence")})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.time_input:
            object.__setattr__(self, "level_input", "none")

    def stages(self) -> Sequence[Stage]:
        chosen = self.layers.shared()
        if not self.time_input:
            chosen |= {"modulation": "none", "head_gates": self.layers.head_gates or 1.0}
        return [Stage(Joint(**chosen), self.depth, "one space")]
