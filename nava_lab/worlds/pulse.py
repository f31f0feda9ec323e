"""World ``pulse``: one object flashes and sounds at the same moments; nothing but the other modality tells when.

    time      0.0       0.5       1.0       1.5       2.0 s
    video     . . . # + . . . . . . # + . . . . # + . . .     brightness of the object, one frame per 80 ms
    audio     ......|\\..............|\\...........|\\.......    energy in the object's bands, one frame per 20 ms
    text      "red disc"                                      the class only, never the time

The caption fixes colour, place and timbre; count, onsets and amplitudes are drawn per clip. So a model that generates the
two modalities without looking across gets each right and their timing wrong: sync is what the exchange is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from nava_lab.conditioning.text import WordTokenizer, text_stream
from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.streams import Batch, Interface, ModalitySpec, Stream, time_positions
from nava_lab.worlds.base import Clip, Events, World, positive, whole
from nava_lab.worlds.pulses import Decoder, Pulse, draw_onsets, merge_kinds
from nava_lab.worlds.scene import Scene, sonify

VIDEO_DECAY, AUDIO_DECAY = 0.150, 0.080  # seconds
MARGIN = (0.10, 0.20)  # no onset so close to the clip's start and end
GAP = 0.25  # least seconds between onsets
VIDEO_SCALE, AUDIO_SCALE = 1.0, 3.0  # so that a pulse stands out of the noise equally in both modalities


@worlds.register("pulse")
@dataclass(frozen=True)
class PulseWorld(World):
    """Flashes with sounds at latent moments; text names the class only.

    Attributes:
        density: mean events per second; a clip has 1 to ``2 density duration_s - 1`` of them, equally likely.
        classes: kinds of object, each with its colour, place and timbre (at most 8).
        duration_s: length of a clip.
        video_hz: frames per second.
        audio_hz: envelope frames per second.
        size: pixels along an edge of the square picture.
        bands: frequency bands of the sound.
        video_patch: pixels along an edge of a video token; ``size`` makes one token per frame.
        audio_patch: envelope frames per audio token.
    """

    density: float = 1.5
    classes: int = 4
    duration_s: float = 2.0
    video_hz: float = 12.5
    audio_hz: float = 50.0
    size: int = 16
    bands: int = 16
    video_patch: int = 16
    audio_patch: int = 4

    version = "pulse-1"
    metrics = ("sync", "events", "loss")
    headline = "sync_auc"

    def __post_init__(self) -> None:
        positive(
            self,
            "density",
            "classes",
            "duration_s",
            "video_hz",
            "audio_hz",
            "size",
            "bands",
            "video_patch",
            "audio_patch",
        )
        whole(self, self.duration_s * self.video_hz, "the number of video frames")
        whole(self, self.duration_s * self.audio_hz / self.audio_patch, "the number of audio tokens")
        whole(self, self.size / self.video_patch, "the number of patches along an edge")
        if self.duration_s <= sum(MARGIN):
            raise ValueError(f"world.duration_s={self.duration_s} must exceed {sum(MARGIN):g} s")
        if self.most > 1 + (self.duration_s - sum(MARGIN)) / GAP:
            fits = (1 + (self.duration_s - sum(MARGIN)) // GAP + 1) / 2 / self.duration_s
            raise ValueError(f"world.density={self.density} does not fit events {GAP} s apart; at most {fits:g}")

    @property
    def most(self) -> int:
        """Events of the fullest clip."""
        return max(1, round(2 * self.density * self.duration_s) - 1)

    @property
    def video_pulse(self) -> Pulse:
        return Pulse(VIDEO_DECAY, self.video_hz, round(self.duration_s * self.video_hz))

    @property
    def audio_pulse(self) -> Pulse:
        return Pulse(AUDIO_DECAY, self.audio_hz, round(self.duration_s * self.audio_hz))

    @property
    def scene(self) -> Scene:
        return Scene(self.classes, self.size, self.bands)

    @property
    def tokenizer(self) -> WordTokenizer:
        return WordTokenizer([word for caption in self.scene.captions for word in caption.split()], 2)

    def interface(self) -> Interface:
        grid = self.size // self.video_patch
        audio_tokens = self.audio_pulse.frames // self.audio_patch
        return Interface(
            {
                "video": ModalitySpec(
                    3 * self.video_patch**2, self.video_pulse.frames * grid**2, 1 / self.video_hz, (grid, grid)
                ),
                "audio": ModalitySpec(self.bands * self.audio_patch, audio_tokens, self.audio_patch / self.audio_hz),
            },
            self.tokenizer.spec,
        )

    def truth(self, split: str, index: Tensor) -> Events:
        """The events of these clips; the same ones in picture and sound."""
        numbers = uniform(self.seed(split, "clip"), index, 2)
        counts = 1 + (numbers[:, 0] * self.most).long()
        kind = (numbers[:, 1] * self.classes).long()
        span = (MARGIN[0], self.duration_s - MARGIN[1])
        onsets, real = draw_onsets(self.seed(split, "onsets"), index, counts, self.most, span, GAP)
        amplitude = (0.7 + 0.3 * uniform(self.seed(split, "amplitudes"), index, self.most)) * real
        return Events(onsets, kind.unsqueeze(-1).expand_as(onsets), amplitude, real)

    def batch(self, split: str, index: Tensor) -> Batch:
        events = self.truth(split, index)
        kind = events.kind[:, 0]
        pictures, timbres = self.scene.pictures(index.device), self.scene.timbres(index.device)
        light = self.video_pulse.trace(events.seconds, events.amplitude).float()
        loud = self.audio_pulse.trace(events.seconds, events.amplitude).float()
        video = light[:, :, None, None, None] * pictures[kind][:, None]
        audio = loud[:, :, None] * timbres[kind][:, None]
        ids = torch.tensor([self.tokenizer([caption]).tokens[0].tolist() for caption in self.scene.captions])
        return Batch(
            self.tokens(video, audio),
            text_stream(ids.to(index.device)[kind]),
            index,
            {"kind": kind, "onsets": events.seconds, "real": events.real},
        )

    def captions(self, split: str, index: Tensor) -> list[str]:
        """What the text says of these clips."""
        return [self.scene.captions[kind] for kind in self.truth(split, index).kind[:, 0].tolist()]

    def tokens(self, video: Tensor, audio: Tensor) -> dict[str, Stream]:
        """Pictures ``b t h w 3`` and envelopes ``b t bands`` as scaled tokens."""
        p = self.video_patch
        spec = self.interface().modalities
        values = {
            "video": rearrange(video, "b t (y p) (x q) c -> b (t y x) (p q c)", p=p, q=p) * VIDEO_SCALE,
            "audio": rearrange(audio, "b (n p) f -> b n (p f)", p=self.audio_patch) * AUDIO_SCALE,
        }
        return {
            name: Stream(part, time_positions(part.shape[1], spec[name].seconds, spec[name].grid, part.device))
            for name, part in values.items()
        }

    def untokenize(self, streams: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Token values back to pictures and envelopes, the inverse of ``tokens``."""
        grid = self.size // self.video_patch
        video = rearrange(
            streams["video"],
            "b (t y x) (p q c) -> b t (y p) (x q) c",
            y=grid,
            x=grid,
            p=self.video_patch,
            q=self.video_patch,
        )
        return video / VIDEO_SCALE, rearrange(streams["audio"], "b n (p f) -> b (n p) f", f=self.bands) / AUDIO_SCALE

    def events(self, streams: Mapping[str, Tensor]) -> dict[str, Events]:
        video, audio = self.untokenize(streams)
        light = torch.einsum("bthwc,khwc->bkt", video, self.scene.picture_readers(video.device))
        loud = torch.einsum("btf,kf->bkt", audio, self.scene.timbre_readers(audio.device))
        decode = Decoder(most=self.most + 2)
        return {
            "video": merge_kinds([decode(self.video_pulse, light[:, kind]) for kind in range(self.classes)]),
            "audio": merge_kinds([decode(self.audio_pulse, loud[:, kind]) for kind in range(self.classes)]),
        }

    def clip(self, streams: Mapping[str, Tensor], row: int) -> Clip:
        video, audio = self.untokenize({name: part[row : row + 1].float().cpu() for name, part in streams.items()})
        frames = (self.scene.background + (1 - self.scene.background) * video[0]).clamp(0, 1)
        sound, rate = sonify(audio[0].clamp(min=0).numpy(), self.audio_hz)
        return Clip((frames.numpy() * 255).astype(np.uint8), self.video_hz, sound, rate)
