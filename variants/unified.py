"""Fully unified (daVinci-MagiHuman): text, audio and video in one attention space, one set of weights for all.

As in MagiHuman, nobody need be told the noise level: with ``level_input=none layers.modulation=none layers.head_gates=1`` it is
read off the tokens, and a sigmoid gate per head takes the modulation's place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nava_lab.blocks.joint import Joint
from nava_lab.models.variant import Stage, Variant
from nava_lab.registry import variants


@variants.register("unified")
@dataclass(frozen=True)
class Unified(Variant):
    """One row of text, audio and video tokens through shared layers."""

    text_place: str = field(default="sequence", metadata={"choices": ("cross", "sequence")})

    def stages(self) -> Sequence[Stage]:
        return [Stage(Joint(**self.layers.shared()), self.depth, "one space")]
