"""LTX-2: a wide video and a narrow audio tower, exchanging in every layer, gated by the other stream's noise level.

Parameter-free RMS norms; scales, shifts and gates of the exchange by noise level, from one reading for all layers and a table of
five vectors per layer and stream; a clock in seconds whose frequencies run across all heads, half a turn in 20 s and in 64
patches. Version 2.3 (``size=2.3``) adds gates per head, modulation of the text and its reading, and takes the text in each
stream's width from connectors outside. diffusers 0.42's 2.0 gates by the stream's own level unless told
``use_cross_timestep``; the released sampler tells it, and the default here is the other's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nava_lab.blocks.options import Ends, Traits
from nava_lab.layers.rotary import Clock
from nava_lab.models.latents import audio, joint, video
from nava_lab.models.towers import Bridge, towers
from nava_lab.models.variant import LEVEL_INPUTS, Published, Size, Stage, Variant
from nava_lab.registry import variants
from nava_lab.streams import TextSpec

FASTEST = math.pi * 10_000  # over the reach, per second or patch


@variants.register("ltx2")
@dataclass(frozen=True)
class Ltx2(Variant):
    """LTX-2 as released: unequal towers, dedicated exchanges gated by the other stream's noise level.

    Attributes:
        bridge: how and where the towers exchange.
    """

    bridge: Bridge = field(default_factory=lambda: Bridge(gate="level", norm="rms", affine=False))
    level_input: str = field(default="per_modality", metadata={"choices": LEVEL_INPUTS})
    width_share: dict[str, float] = field(default_factory=lambda: {"audio": 0.5})
    ratio: float = 4.0
    layers: Traits = field(default_factory=lambda: Traits(norm="rms", text_norm="plain"))
    clock: Clock = field(default_factory=lambda: Clock(hz=FASTEST / 20, patch_hz=FASTEST / 64, layout="spread"))
    ends: Ends = field(default_factory=lambda: Ends(level_features=256))

    def stages(self) -> Sequence[Stage]:
        return towers(self, self.bridge)

    @classmethod
    def published(cls) -> Mapping[str, Published]:
        size = Size(4096, 16384)
        seen, heard = video(128, 8, 32), audio(128, 25.0, stride=4)
        fields = {"depth": 48, "heads": 32, "clock.first_frame": True}
        later = {"layers.head_gates": 2.0, "layers.text_modulation": True, "bridge.head_gates": 2.0, "ends.text": "none"}
        return {
            "2.0": Published(joint(seen, heard, TextSpec(1024, features=3840)), size, fields, "diffusers' default constructor"),
            "2.3": Published(joint(seen, heard, TextSpec(1024, features=4096 + 2048)), size, fields | later, "released config"),
        }
