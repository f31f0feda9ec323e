"""Ovi: two equal towers from Wan2.2 5B, exchanging through the text cross-attention's queries in every layer.

The exchange adds keys, values and their norms alone (``2 (d² + d) + 3 d`` per block and tower) and is summed with what is read
of the text, ungated. Published audio factor .19676 on counted tokens, where the rates (24 / 4 against 31.25 a second) give
.192: the two clocks part by 2.5 %, so the sandbox's default is one clock in seconds and the published size has the factor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nava_lab.blocks.options import Ends
from nava_lab.layers.rotary import Clock
from nava_lab.models.latents import audio, joint, wan22_video
from nava_lab.models.towers import Bridge, towers
from nava_lab.models.variant import LEVEL_INPUTS, Published, Size, Stage, Variant
from nava_lab.registry import variants


@variants.register("ovi")
@dataclass(frozen=True)
class Ovi(Variant):
    """Ovi as released: two Wan towers of equal size, an exchange on the text's queries, convolutions before the audio.

    Attributes:
        bridge: how and where the towers exchange.
    """

    bridge: Bridge = field(default_factory=lambda: Bridge(kind="shared_query"))
    level_input: str = field(default="per_modality", metadata={"choices": LEVEL_INPUTS})
    ratio: float = 14 / 3
    clock: Clock = field(default_factory=lambda: Clock(hz=0.0, anchor="start"))
    ends: Ends = field(default_factory=lambda: Ends(conv=("audio",), level_features=256))

    def stages(self) -> Sequence[Stage]:
        return towers(self, self.bridge)

    @classmethod
    def published(cls) -> Mapping[str, Published]:
        fields = {"depth": 30, "heads": 24, "clock.index": True, "clock.scale": {"audio": 0.19676}}
        return {"released": Published(joint(wan22_video(), audio(20, 31.25)), Size(3072, 14336), fields, "released config")}
