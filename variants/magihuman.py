"""daVinci-MagiHuman: text, video and audio in one row of tokens; weights per modality in the first and last 4 of 40 layers.

No modulation and no timestep: the noise level is read off the tokens, and a sigmoid gate per head takes the modulation's
place. The first 4 layers have a GELU feed-forward of 20480, all others SwiGLU of 13652 (two thirds of 20480, in multiples of
4: .6666 of it, rounded). RMS norms with weights, qk-norm within heads, 8 key-value heads for 40, no biases. Its audio stands
at the frame rate with a factor 1/4, the video's latent rate: one clock in seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nava_lab.blocks.joint import Joint
from nava_lab.blocks.options import Ends, Traits
from nava_lab.layers.rotary import Clock
from nava_lab.models.latents import audio, joint, wan22_video
from nava_lab.models.variant import LEVEL_INPUTS, TEXT_PLACES, Published, Size, Stage, Variant
from nava_lab.registry import variants
from nava_lab.streams import TextSpec


@variants.register("magihuman")
@dataclass(frozen=True)
class MagiHuman(Variant):
    """daVinci-MagiHuman as released: one row for text, video and audio, outer layers with weights per modality, no timestep.

    Attributes:
        outer_fraction: share of the layers that keep weights per modality, half of them first and half last (8 of 40).
        keep: what they keep.
        gated_share: width of the gated feed-forwards per width of the plain ones in the first layers.
    """

    outer_fraction: float = 0.2
    keep: tuple[str, ...] = ("attention", "feed_forward", "norms")
    gated_share: float = 0.6666
    text_place: str = field(default="sequence", metadata={"choices": TEXT_PLACES})
    level_input: str = field(default="none", metadata={"choices": LEVEL_INPUTS})
    ratio: float = 4.0
    layers: Traits = field(
        default_factory=lambda: Traits(modulation="none", norm="rms", qk_norm="head", kv_heads=8, head_gates=1.0, bias=False)
    )
    clock: Clock = field(default_factory=lambda: Clock(hz=0.0))
    ends: Ends = field(default_factory=lambda: Ends(text="linear", norm="rms", bias=False))

    def stages(self) -> Sequence[Stage]:
        if not 0 <= self.outer_fraction <= 1:
            raise ValueError(f"variant.outer_fraction={self.outer_fraction} must lie between 0 and 1")
        outer = min(math.ceil(self.depth * self.outer_fraction / 2), self.depth // 2)
        gated = self.layers.shared() | {"feed_forward": "swiglu", "hidden_share": self.gated_share}
        first = Joint(per_modality=self.keep, **self.layers.shared())
        last, middle = Joint(per_modality=self.keep, **gated), Joint(**gated)
        stages = [Stage(first, outer, "in"), Stage(middle, self.depth - 2 * outer, "one space"), Stage(last, outer, "out")]
        return [stage for stage in stages if stage.layers]

    @classmethod
    def published(cls) -> Mapping[str, Published]:
        interface = joint(wan22_video(), audio(64, 24.0), TextSpec(512, features=3584))
        return {"released": Published(interface, Size(5120, 20480), {"depth": 40, "heads": 40}, "released config")}
