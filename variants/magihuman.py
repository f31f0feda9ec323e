"""daVinci-MagiHuman: text, video and audio in one row of tokens; weights per modality in the first and last 4 of 40 layers.

No modulation and no timestep: the noise level is read off the tokens, and a sigmoid gate per head takes the modulation's
place. The first 4 layers have a GELU feed-forward of 20480, all others SwiGLU of 13652 (two thirds of 20480, in multiples of
4: .6666 of it, rounded). RMS norms with weights, qk-norm within heads, 5 query heads to a key and value head (8 for 40),
no biases. Its audio stands
at the frame rate with a factor 1/4, the video's latent rate: one clock in seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nava_lab.blocks.joint import Joint
from nava_lab.blocks.options import Ends, Traits
from nava_lab.layers.feed_forward import KINDS
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
        first_feed_forward: the feed-forward of the first of them; ``layers.feed_forward`` is that of all others.
        first_share: its width per width of the model's feed-forward; ``layers.hidden_share`` is that of all others.
    """

    outer_fraction: float = 0.2
    keep: tuple[str, ...] = ("attention", "feed_forward", "norms")
    first_feed_forward: str = field(default="gelu", metadata={"choices": KINDS})
    first_share: float = 1.0
    text_place: str = field(default="sequence", metadata={"choices": TEXT_PLACES})
    level_input: str = field(default="none", metadata={"choices": LEVEL_INPUTS})
    ratio: float = 4.0
    layers: Traits = field(
        default_factory=lambda: Traits(
            modulation="none",
            feed_forward="swiglu",
            hidden_share=0.6666,
            norm="rms",
            qk_norm="head",
            query_group=5,
            head_gates=1.0,
            bias=False,
        )
    )
    clock: Clock = field(default_factory=lambda: Clock(hz=0.0))
    ends: Ends = field(default_factory=lambda: Ends(text="linear", norm="rms", bias=False))

    def stages(self) -> Sequence[Stage]:
        if not 0 <= self.outer_fraction <= 1:
            raise ValueError(f"variant.outer_fraction={self.outer_fraction} must lie between 0 and 1")
        outer = min(math.ceil(self.depth * self.outer_fraction / 2), self.depth // 2)
        if not outer:
            why = f"of {self.depth} layers variant.outer_fraction={self.outer_fraction:g} makes none an outer one"
            self.unread(("keep", "first_feed_forward", "first_share"), why)
        middle = Joint(**self.layers.shared())
        last = replace(middle, per_modality=self.keep)
        first = replace(last, feed_forward=self.first_feed_forward, hidden_share=self.first_share)
        stages = [Stage(first, outer, "in"), Stage(middle, self.depth - 2 * outer, "one space"), Stage(last, outer, "out")]
        return [stage for stage in stages if stage.layers]

    @classmethod
    def published(cls) -> Mapping[str, Published]:
        interface = joint(wan22_video(), audio(64, 24.0), TextSpec(512, features=3584))
        return {"released": Published(interface, Size(5120, 20480), {"depth": 40, "heads": 40}, "released config")}
