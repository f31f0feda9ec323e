"""What all worlds of flashes and sounds share: a stage that shows and plays a script, and finds the events again.

A world of this kind says what happens (``script``), in which words (``vocabulary``), and nothing else.

Shape letters: b batch, k events (padded), l words, t frames, h w pixels, n objects and timbres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from nava_lab.conditioning.text import WordTokenizer, text_stream
from nava_lab.rng import uniform
from nava_lab.streams import Batch, Interface, ModalitySpec, Stream, time_positions
from nava_lab.worlds.base import Clip, Events, Mark, World, positive, whole
from nava_lab.worlds.pulses import Counts, Decoder, Pulse, counts_of, draw_onsets, merge_kinds
from nava_lab.worlds.scene import COLOURS, Scene, sonify

VIDEO_DECAY, AUDIO_DECAY = 0.150, 0.080  # seconds
MARGIN = (0.10, 0.20)  # no onset so close to the clip's start and end
GAP = 0.25  # least seconds between onsets
VIDEO_SCALE, AUDIO_SCALE = 1.0, 3.0  # so that a pulse stands out of the noise equally in both modalities


@dataclass(frozen=True)
class Script:
    """What happens in each clip of a batch.

    Attributes:
        seen: flashes; their kind is the object.
        heard: sounds; their kind is the timbre.
        words: ``b l`` ids of the caption, padding last.
        extra: what the world's metrics must know besides; never shown to a model.
    """

    seen: Events
    heard: Events
    words: Int[Tensor, "b l"]
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Staged(World):
    """Base of the worlds that are shown on a stage.

    Attributes:
        duration_s: length of a clip.
        video_hz: frames per second.
        audio_hz: envelope frames per second.
        size: pixels along an edge of the square picture.
        bands: frequency bands of the sound.
        video_patch: pixels along an edge of a video token; ``size`` makes one token per frame.
        audio_patch: envelope frames per audio token.
    """

    duration_s: float = 2.0
    video_hz: float = 12.5
    audio_hz: float = 50.0
    size: int = 16
    bands: int = 16
    video_patch: int = 16
    audio_patch: int = 4

    counts_kinds: ClassVar[str] = "classes"  # the field that says how many kinds of object there are

    def __post_init__(self) -> None:
        positive(self, "duration_s", "video_hz", "audio_hz", "size", "bands", "video_patch", "audio_patch")
        whole(self, self.duration_s * self.video_hz, "the number of video frames")
        whole(self, self.duration_s * self.audio_hz / self.audio_patch, "the number of audio tokens")
        whole(self, self.size / self.video_patch, "the number of patches along an edge")
        if self.duration_s <= sum(MARGIN):
            raise ValueError(f"world.duration_s={self.duration_s} must exceed {sum(MARGIN):g} s")
        if not 1 <= self.kinds <= len(COLOURS):
            raise ValueError(f"world.{self.counts_kinds}={self.kinds} must lie between 1 and {len(COLOURS)}")
        _ = self.scene  # which refuses timbres that do not fit
        _ = self.most  # and this a density that does not

    # What a world answers

    @property
    def kinds(self) -> int:
        """Objects, and as many timbres."""
        return int(getattr(self, self.counts_kinds))

    @property
    def most(self) -> int:
        """Events of the fullest clip, in either modality."""
        raise TypeError(f"{type(self).__name__} does not say how many events a clip may have")

    @property
    def vocabulary(self) -> tuple[Sequence[str], int]:
        """The words of its captions, and the longest caption's length."""
        raise TypeError(f"{type(self).__name__} does not say its words")

    def script(self, split: str, index: Int[Tensor, " b"]) -> Script:
        """What happens in these clips."""
        raise TypeError(f"{type(self).__name__} does not say what happens")

    # Drawing

    def counting(self, density: float, beside: int = 0) -> Counts:
        """How many events clips have with so many per second; ``beside``: further ones that must fit in."""
        return counts_of(density, self.duration_s, self.duration_s - sum(MARGIN), GAP, beside)

    def counts(self, draw: Float[Tensor, " b"], density: float, beside: int = 0) -> Int[Tensor, " b"]:
        """Each clip's number of events from a uniform draw."""
        return self.counting(density, beside)(draw)

    def moments(self, split: str, index: Tensor, counts: Tensor, most: int, what: str = "") -> Events:
        """Events of kind 0 at latent moments, with amplitudes of .7 to 1; ``what`` tells apart several such draws."""
        span = (MARGIN[0], self.duration_s - MARGIN[1])
        onsets, real = draw_onsets(self.seed(split, f"{what}onsets"), index, counts, most, span, GAP)
        amplitude = (0.7 + 0.3 * uniform(self.seed(split, f"{what}amplitudes"), index, most)) * real
        return Events(onsets, torch.zeros_like(onsets, dtype=torch.long), amplitude, real)

    # Showing

    @property
    def video_pulse(self) -> Pulse:
        return Pulse(VIDEO_DECAY, self.video_hz, round(self.duration_s * self.video_hz))

    @property
    def audio_pulse(self) -> Pulse:
        return Pulse(AUDIO_DECAY, self.audio_hz, round(self.duration_s * self.audio_hz))

    @cached_property
    def scene(self) -> Scene:
        return Scene(self.kinds, self.size, self.bands)

    @cached_property
    def tokenizer(self) -> WordTokenizer:
        return WordTokenizer(*self.vocabulary)

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

    def batch(self, split: str, index: Tensor) -> Batch:
        script = self.script(split, index)
        extra = {
            f"{name}_{part}": getattr(events, part)
            for name, events in (("video", script.seen), ("audio", script.heard))
            for part in ("seconds", "kind", "amplitude", "real")
        }
        return Batch(self.tokens(*self.shown(script)), text_stream(script.words), index, {**extra, **script.extra})

    def shown(self, script: Script) -> tuple[Float[Tensor, "b t h w 3"], Float[Tensor, "b s f"]]:
        """Objects lit by their flashes, on black; and the envelopes of the bands."""
        light = self.video_pulse.traces(script.seen, self.kinds).float()
        loud = self.audio_pulse.traces(script.heard, self.kinds).float()
        video = mixed(light, self.scene.pictures(light.device).flatten(1))
        return video.unflatten(-1, (self.size, self.size, 3)), mixed(loud, self.scene.timbres(loud.device))

    def captions(self, split: str, index: Tensor) -> list[str]:
        """What the text says of these clips."""
        return self.tokenizer.read(self.script(split, index).words)

    def marks(self, split: str, index: Tensor) -> list[list[Mark]]:
        script = self.script(split, index)
        parts = (("video", script.seen, self.scene.colours), ("audio", script.heard, self.scene.timbre_names))
        found: list[list[Mark]] = []
        for row in range(len(index)):
            marks = [
                Mark(name, names[int(events.kind[row, k])], float(events.seconds[row, k]))
                for name, events, names in parts
                for k in events.real[row].nonzero().flatten().tolist()
            ]
            found.append(sorted(marks, key=lambda mark: mark.seconds))
        return found

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

    # Finding again

    def untokenize(self, streams: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Token values back to pictures and envelopes, the inverse of ``tokens``."""
        grid, p = self.size // self.video_patch, self.video_patch
        video = rearrange(streams["video"], "b (t y x) (p q c) -> b t (y p) (x q) c", y=grid, x=grid, p=p, q=p)
        return video / VIDEO_SCALE, rearrange(streams["audio"], "b n (p f) -> b (n p) f", f=self.bands) / AUDIO_SCALE

    def events(self, streams: Mapping[str, Tensor]) -> dict[str, Events]:
        video, audio = self.untokenize(streams)
        light = torch.einsum("bthwc,khwc->bkt", video, self.scene.picture_readers(video.device))
        loud = torch.einsum("btf,kf->bkt", audio, self.scene.timbre_readers(audio.device))
        decode = Decoder(most=self.most + 2)
        return {
            "video": merge_kinds([decode(self.video_pulse, light[:, kind]) for kind in range(self.kinds)]),
            "audio": merge_kinds([decode(self.audio_pulse, loud[:, kind]) for kind in range(self.kinds)]),
        }

    def clip(self, streams: Mapping[str, Tensor], row: int) -> Clip:
        video, audio = self.untokenize({name: part[row : row + 1].float().cpu() for name, part in streams.items()})
        frames = (self.scene.background + (1 - self.scene.background) * video[0]).clamp(0, 1)
        sound, rate = sonify(audio[0].clamp(min=0).numpy(), self.audio_hz)
        return Clip((frames.numpy() * 255).astype(np.uint8), self.video_hz, sound, rate)


def of_kind(events: Events, kind: Int[Tensor, "b *k"]) -> Events:
    """The same events with their kinds, one per clip (``b``) or one each (``b k``)."""
    each = kind.unsqueeze(-1).expand_as(events.real) if kind.ndim == 1 else kind
    return Events(events.seconds, each, events.amplitude, events.real)


def only(events: Events, real: Tensor) -> Events:
    """Those of the events that ``real`` (``b k``) marks."""
    return Events(events.seconds, events.kind, events.amplitude * real, events.real & real)


def mixed(traces: Float[Tensor, "b n t"], shapes: Float[Tensor, "*b n p"]) -> Float[Tensor, "b t p"]:
    """The sum over kinds of trace times shape, added up one by one: a matrix product's order depends on the batch.

    Shapes are every clip's, or each clip's own.
    """
    each = [traces[:, kind, :, None] * shapes[..., kind, None, :] for kind in range(traces.shape[1])]
    total = each[0]
    for part in each[1:]:
        total += part
    return total
