"""MOVA: a Wan2.2 A14B video tower (two experts by noise level), a narrow audio tower, conditional bridges between them.

The bridge stands before each of the first 30 pairs of layers, the last 10 layers are video's alone. Its video configuration is
assumed to be Wan2.2 I2V A14B (36 channels in, 16 out, text 4096) and its bridge comes from a third party's defaults; the totals,
32,656,733,440 and 18,367,832,256 active, agree with the published 32 B and 18 B. Towers count their own tokens; in bridges the
audio's tokens count 0, 1, 2, ... and a video step f_a / f_v of them (21.5 / 6 = 3.58): one clock, whose unit is the audio's step.
Both experts are computed here and each sample takes its own: no tensor's value decides what runs. Parameters count both, the
FLOPs of a sample (and ``budget.flops``) the one that it takes; what the other costs here, `nava describe` tells apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nava_lab.blocks.options import Ends
from nava_lab.layers.rotary import Clock
from nava_lab.models.latents import audio, joint, video
from nava_lab.models.towers import Bridge, towers
from nava_lab.models.variant import LEVEL_INPUTS, Published, Size, Stage, Variant
from nava_lab.registry import variants

AUDIO_RATIO = 8960 / 1536  # 5.83; the video's is 13824 / 5120 = 2.7


@variants.register("mova")
@dataclass(frozen=True)
class Mova(Variant):
    """MOVA as released: a deep wide video tower with two experts, a narrow audio tower, bridges at the start of layers.

    Attributes:
        bridge: how and where the towers exchange.
        experts: whether video's tower exists twice, for low and for high noise levels.
        boundary: the noise level from which the second serves.
        video_alone: video's last layers beyond audio's depth, per layer of both.
    """

    bridge: Bridge = field(default_factory=lambda: Bridge(kind="conditional"))
    experts: bool = True
    boundary: float = 0.9
    video_alone: float = 1 / 3
    level_input: str = field(default="per_modality", metadata={"choices": LEVEL_INPUTS})
    width_share: dict[str, float] = field(default_factory=lambda: {"audio": 0.3})
    ratio: float = 2.7
    ratio_share: dict[str, float] = field(default_factory=lambda: {"audio": AUDIO_RATIO / 2.7})
    clock: Clock = field(default_factory=lambda: Clock(hz=0.0, unit="audio", anchor="start", index=True))
    ends: Ends = field(default_factory=lambda: Ends(level_features=256))

    def stages(self) -> Sequence[Stage]:
        if self.video_alone < 0:
            raise ValueError(f"variant.video_alone={self.video_alone} must not be negative")
        if not self.experts and self.boundary != 0.9:
            raise ValueError(f"variant.boundary={self.boundary} parts two experts, and variant.experts=false has one")
        experts = ("video",) if self.experts else ()
        paired = towers(self, self.bridge, experts=experts, boundary=self.boundary)
        alone = round(self.depth * self.video_alone)
        last = Stage(replace(paired[0].block, bridge=None), alone, "video alone", only=("video",), counted_by="video_alone")  # type: ignore[type-var]
        return [*paired, *([last] if alone else [])]

    @classmethod
    def published(cls) -> Mapping[str, Published]:
        found = Published(
            joint(video(16 * 4, 4, 8 * 2, context=20 * 4), audio(128, 21.5)),
            Size(5120, 13824),
            {"depth": 30, "head_dim": 128},
            "assumed Wan2.2 I2V A14B; a third party's bridge defaults",
        )
        one = replace(found, fields={**found.fields, "experts": False})
        return {"released": found, "active": one}
