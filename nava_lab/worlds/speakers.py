"""World ``speakers``: faces speak in turn, and each turn is to sound like the reference that belongs to it.

    time      0.0       0.5       1.0       1.5       2.0 s
    video     . . . R R R R . B B B B B . . R R R . . . .     whose mouth is open, as wide as the sound is loud
    audio     ......aaaaaaaa..bbbbbbbbbb....aaaaaa........    one voice per face: formants over the bands
    text      "red voice 0.3s 0.7s blue voice 0.8s 1.3s red voice 1.5s 1.8s"
                    ^ref 0              ^ref 1              ^ref 2        the i-th reference belongs to the i-th "voice"

The text states who speaks and when, to the boundary; how wide and loud within a span is latent. How a speaker sounds is
told by the references alone, and the test's voices never occur in training. A model that hears the references but binds them
to no span gets one of K voices right by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nava_lab.conditioning.text import MarkingTokenizer
from nava_lab.conditioning.timbre import with_references
from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.streams import Batch, Interface, References, Stream, onto
from nava_lab.worlds.base import Events, Mark, levels, positive
from nava_lab.worlds.staged import Script, Staged, mixed
from nava_lab.worlds.voices import LOUDNESS, Voices

BIN_S = 0.1  # spans begin and end on these
SHORTEST, BETWEEN, EDGE = 3, 1, 1  # bins of a span at least, between two spans, and before the first and after the last
SYLLABLE_S = 0.25  # least length of a syllable
DEPTH = 0.5  # how far the mouth closes between syllables
FACE, MOUTH = 0.3, 0.7  # brightness of a face at rest, and of an open mouth on top


@worlds.register("speakers")
@dataclass(frozen=True)
class SpeakersWorld(Staged):
    """Turns of speech with a reference timbre each.

    Attributes:
        spans: turns of speech in a clip, as many as fit into it; 2 and 4 in the levels.
        voices: speakers of a clip, each with a face and a voice, at least 1 and at most ``spans``; all of them speak.
        missing: chance that a span's reference is not given.
    """

    spans: int = 4
    voices: int = 2
    missing: float = 0.0

    version = "speakers-1"
    metrics = ("timbre", "loss")
    headline = "timbre_kappa"
    climbs_with = ("conditioning.timbre_in_span=true",)  # else cross-attention cannot tell whose voice is whose
    counts_kinds = "voices"
    LEVELS = levels(voices=(2, 2, 4), spans=(2, 4, 4))

    def __post_init__(self) -> None:
        positive(self, "spans", "voices")
        if not 1 <= self.voices <= self.spans:
            raise ValueError(f"world.voices={self.voices} must lie between 1 and world.spans={self.spans}: every speaker speaks")
        if not 0 <= self.missing <= 1:
            raise ValueError(f"world.missing={self.missing} must lie in [0, 1]")
        if self.slack < 0:
            raise ValueError(f"world.spans={self.spans} do not fit into world.duration_s={self.duration_s}")
        _ = self.bank
        super().__post_init__()

    @property
    def most(self) -> int:
        return self.spans

    @property
    def bins(self) -> int:
        return int(self.duration_s / BIN_S + 1e-6)

    @property
    def slack(self) -> int:
        """Bins that are left to lengthen spans and pauses."""
        return self.bins - self.spans * SHORTEST - (self.spans - 1) * BETWEEN - 2 * EDGE

    @cached_property
    def bank(self) -> Voices:
        return Voices(self.bands, self.voices)

    @property
    def _times(self) -> list[str]:
        return [f"{number * BIN_S:.6g}s" for number in range(self.bins + 1)]

    @property
    def vocabulary(self) -> tuple[Sequence[str], int]:
        return [*self.scene.colours, "voice", *self._times], 4 * self.spans

    @cached_property
    def tokenizer(self) -> MarkingTokenizer:
        return MarkingTokenizer(*self.vocabulary, mark="voice")

    def interface(self) -> Interface:
        plain = super().interface()
        return replace(plain, text=replace(plain.text, references=self.spans, timbre=self.bands))

    # What happens

    def _turns(self, split: str, index: Tensor) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b m"], Int[Tensor, "b m"]]:
        """First and last bin (exclusive) of each span, and who speaks."""
        draws = uniform(self.seed(split, "spans"), index, self.slack)
        # What is left over is dealt out in single bins: to the start, each span, each pause, and the end.
        places = (draws * (2 * self.spans + 1)).long()
        room = torch.nn.functional.one_hot(places, 2 * self.spans + 1).sum(1)
        least = onto(torch.tensor([EDGE, *([SHORTEST, BETWEEN] * self.spans)[:-1], EDGE]), index.device)
        edges = (room + least).cumsum(1)
        who = uniform(self.seed(split, "turns"), index, 2 * self.spans)
        anyone = (who[:, : self.spans - self.voices] * self.voices).long()
        everyone = torch.arange(self.voices, device=index.device).expand(len(index), -1)
        order = who[:, self.spans :].argsort(1)
        return edges[:, 0:-1:2], edges[:, 1::2], torch.cat((everyone, anyone), 1).gather(1, order)

    def script(self, split: str, index: Tensor) -> Script:
        first, last, speaker = self._turns(split, index)
        start, end = first.double() * BIN_S, last.double() * BIN_S
        numbers = uniform(self.seed(split, "clip"), index, 1 + self.voices + 2 * self.spans)
        groups = onto(self.bank.groups(split), index.device)
        chosen = groups[(numbers[:, 0] * len(groups)).long()]
        chosen = chosen.gather(1, numbers[:, 1 : 1 + self.voices].argsort(1))
        syllables, given = numbers[:, 1 + self.voices :].split(self.spans, 1)
        most = ((end - start) / SYLLABLE_S + 1e-6).long().clamp(min=1)
        real = torch.ones_like(speaker, dtype=torch.bool)
        spans = Events(start, speaker, torch.ones_like(start), real)
        extra = {
            "span_start": start,
            "span_end": end,
            "speaker": speaker,
            "syllables": 1 + (syllables * most).long(),
            "voices": onto(self.bank.shapes, index.device)[chosen],
            "voice": chosen,
            "given": given >= self.missing,
        }
        return Script(spans, spans, self._words(first, last, speaker), extra)

    def _words(self, first: Tensor, last: Tensor, speaker: Tensor) -> Int[Tensor, "b l"]:
        spelled = self.tokenizer.spelled
        mark = spelled(["voice"], torch.zeros_like(speaker))
        parts = (spelled(self.scene.colours, speaker), mark, spelled(self._times, first), spelled(self._times, last))
        return torch.stack(parts, -1).flatten(1)

    # How it is shown and told

    def prepare(self) -> None:
        """Ask once, of the first clip, whether its words mark every span: those of all clips do alike, and a device that were
        asked in every batch would be waited for."""
        text = self.batch("train", torch.zeros(1, dtype=torch.long)).text
        assert text.references is not None
        with_references(text, text.references)

    def batch(self, split: str, index: Tensor) -> Batch:
        plain = super().batch(split, index)
        extra = plain.extra
        voices = extra["voices"].gather(1, extra["speaker"].unsqueeze(-1).expand(-1, -1, self.bands))
        text = replace(plain.text, span=self.tokenizer.spans(plain.text.tokens))
        text = replace(text, references=References(voices / LOUDNESS, extra["given"]))
        streams = {name: replace(part, span=self._labels(part, extra)) for name, part in plain.streams.items()}
        return Batch(streams, text, index, extra)

    def _labels(self, stream: Stream, extra: Mapping[str, Tensor]) -> Int[Tensor, "b n"]:
        """The span in which each token's centre lies; -1 for none."""
        seconds = stream.positions[..., 0].double().unsqueeze(-1)
        inside = (seconds >= extra["span_start"].unsqueeze(1)) & (seconds < extra["span_end"].unsqueeze(1))
        return torch.where(inside.any(-1), inside.long().argmax(-1), -1)

    def shown(self, script: Script) -> tuple[Float[Tensor, "b t h w 3"], Float[Tensor, "b s f"]]:
        """Faces at rest, whose mouths open as wide as their voices are loud."""
        device = script.words.device
        wide, loud = (self._aperture(script, pulse.hz, pulse.frames).float() for pulse in (self.video_pulse, self.audio_pulse))
        faces = self.scene.pictures(device)
        mouths = onto(self.mouths, device)
        video = mixed(wide, MOUTH * mouths.flatten(1)) + FACE * faces.sum(0).flatten()
        return video.unflatten(-1, (self.size, self.size, 3)), mixed(loud, script.extra["voices"].float())

    @cached_property
    def mouths(self) -> Float[Tensor, "k h w 3"]:
        """The lower half of each face, white."""
        lit = self.scene.pictures().amax(-1, keepdim=True)
        rows = torch.arange(self.size).view(1, -1, 1, 1)
        weight = lit.sum((1, 2, 3), keepdim=True)
        middle = (lit * rows).sum((1, 2, 3), keepdim=True) / weight
        return (lit > 0.2) * (rows > middle) * torch.ones(3)

    def _aperture(self, script: Script, hz: float, frames: int) -> Float[Tensor, "b k t"]:
        """How far each mouth is open: full at a span's ends, less between syllables; the mean over each frame."""
        extra = script.extra
        start, length = extra["span_start"], extra["span_end"] - extra["span_start"]
        edges = torch.arange(frames + 1, device=start.device, dtype=torch.float64) / hz
        since = torch.minimum((edges - start.unsqueeze(-1)).clamp(min=0), length.unsqueeze(-1))
        wave = 2 * torch.pi * (extra["syllables"] / length).unsqueeze(-1)
        integral = (1 - DEPTH / 2) * since + DEPTH / 2 * torch.sin(wave * since) / wave
        each = (integral[..., 1:] - integral[..., :-1]) * hz
        return torch.stack([(each * (extra["speaker"] == k).unsqueeze(-1)).sum(1) for k in range(self.voices)], 1)

    def marks(self, split: str, index: Tensor) -> list[list[Mark]]:
        extra = self.script(split, index).extra
        rows = zip(*(extra[name].tolist() for name in ("span_start", "span_end", "speaker", "voice", "given")), strict=True)
        return [
            [
                Mark(name, what, start, end)
                for start, end, who, given in zip(starts, ends, speakers, givens, strict=True)
                for name, what in (
                    ("video", f"{self.scene.colours[who]} speaks"),
                    ("audio", f"voice {voices[who]}{'' if given else ', no reference'}"),
                )
            ]
            for starts, ends, speakers, voices, givens in rows
        ]

    def events(self, streams: Mapping[str, Tensor]) -> dict[str, Events]:
        """None: what matters here are spans, which the metric reads off the sound."""
        return {}
