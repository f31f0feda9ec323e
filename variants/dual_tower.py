"""Dual tower (Ovi, LTX-2, MOVA): audio and video each in a tower of its own, aligned by exchanges between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nava_lab.models.towers import Bridge, towers
from nava_lab.models.variant import LEVEL_INPUTS, Stage, Variant
from nava_lab.registry import variants


@variants.register("dual_tower")
@dataclass(frozen=True)
class DualTower(Variant):
    """Two towers that exchange by cross-attention in every layer; text by cross-attention in both.

    Attributes:
        bridge: how and where the towers exchange.
    """

    bridge: Bridge = field(default_factory=Bridge)
    level_input: str = field(default="per_modality", metadata={"choices": LEVEL_INPUTS})

    def stages(self) -> Sequence[Stage]:
        return towers(self, self.bridge)
