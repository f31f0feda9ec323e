"""Dual tower (Ovi, LTX-2, MOVA): audio and video each in a tower of its own, aligned by exchanges between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nava_lab.blocks.cross_bridge import Cross
from nava_lab.blocks.tower import Tower
from nava_lab.models.variant import Stage, Variant
from nava_lab.registry import variants


@variants.register("dual_tower")
@dataclass(frozen=True)
class DualTower(Variant):
    """Two towers that exchange by cross-attention in every layer; text by cross-attention in both.

    Attributes:
        exchange_every: layers from one exchange to the next; the first layer has one.
        bridge_directions: "both", "audio->video" or "video->audio".
        bridge_rotary: whether the exchange knows when each token is.
    """

    exchange_every: int = 1
    bridge_directions: str = field(default="both", metadata={"choices": ("both", "audio->video", "video->audio")})
    bridge_rotary: bool = True

    level_input = "per_modality"

    def stages(self) -> Sequence[Stage]:
        if self.exchange_every < 1:
            raise ValueError(f"variant.exchange_every={self.exchange_every} must be at least 1")
        bridged = Tower(bridge=Cross(directions=self.bridge_directions, rotary=self.bridge_rotary))
        stages: list[Stage] = []
        for start in range(0, self.depth, self.exchange_every):
            stages.append(Stage(bridged, 1, "towers with exchange"))
            alone = min(self.exchange_every, self.depth - start) - 1
            if alone:
                stages.append(Stage(bridged.without_bridge(), alone, "towers alone"))
        return stages
