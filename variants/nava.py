"""NAVA (arXiv 2605.30073) as released: 10 alignment layers, 20 fusion layers, audio embedded by convolutions.

The released configuration keeps attention, text cross-attention and modulation per modality in alignment layers and shares
norms and feed-forward, which gives 6,296,995,520 parameters; the paper's drawing of separate feed-forwards gives 7,178,034,880
(``variant.keep=[attention,text,modulation,feed_forward,norms]``). Its factor .24 on audio frequencies is (24 / 4) / 25, one
clock in seconds at the video's latent rate, tokens at the start of their stretch of time.

The 30 layers' ablation (all fusion, all alignment, 20 + 10) was counted with 20 audio channels: ``size=20ch``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nava_lab.blocks.options import Ends
from nava_lab.layers.rotary import Clock
from nava_lab.models.alignment import aligned
from nava_lab.models.latents import UMT5, audio, joint, wan22_video
from nava_lab.models.placement import OWN
from nava_lab.models.variant import Published, Size, Stage, Variant
from nava_lab.registry import variants


@variants.register("nava")
@dataclass(frozen=True)
class Nava(Variant):
    """NAVA as released: alignment layers, then fusion layers, one clock, convolutions before the audio.

    Attributes:
        align_fraction: share of the layers that align, rounded to whole layers.
        placement: where they sit: early, late, sandwich or interleaved.
        keep: what an alignment layer keeps per modality.
        align_text: whether the alignment layers read the text.
    """

    align_fraction: float = 1 / 3
    placement: str = field(default="early", metadata={"choices": OWN})
    keep: tuple[str, ...] = ("attention", "text", "modulation")
    align_text: bool = True
    ratio: float = 14 / 3
    clock: Clock = field(default_factory=lambda: Clock(hz=0.0, anchor="start"))
    ends: Ends = field(default_factory=lambda: Ends(conv=("audio",), level_features=256))

    def stages(self) -> Sequence[Stage]:
        return aligned(self, self.align_fraction, self.placement, self.keep, self.align_text)

    @classmethod
    def published(cls) -> Mapping[str, Published]:
        size = Size(3072, 14336)
        speakers = replace(UMT5, references=2, timbre=192)
        fields = {"depth": 30, "heads": 24}
        return {
            "released": Published(joint(wan22_video(), audio(128, 25.0), speakers), size, fields, "released config"),
            "20ch": Published(joint(wan22_video(), audio(20, 25.0), speakers), size, fields, "config of the ablation"),
        }
