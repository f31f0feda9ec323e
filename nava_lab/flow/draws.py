"""What is drawn for one training or evaluation sample: levels, noise, dropouts, clean tokens; from its own generator.

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from nava_lab.conditioning.text import without_text
from nava_lab.conditioning.timbre import without_references
from nava_lab.flow.levels import LevelLaw, LogitNormal
from nava_lab.flow.noise import normal_like
from nava_lab.streams import Stream, onto

COUPLINGS = ("shared", "independent", "one_clean")
RATES = ("text_dropout", "modality_dropout", "timbre_dropout", "modality_given", "continuation")


@dataclass(frozen=True)
class Draws:
    """The random part of a training sample.

    Attributes:
        levels: noise level per modality, ``b``, or ``b n`` where some tokens may be clean; one and the same tensor where
            modalities share it.
        noise: standard normal, per modality, shaped as its tokens.
        drop_text: ``b``, samples that are shown no caption, and no reference timbre with it.
        cut: ``b``, samples in which attention between modalities is cut; None where that never happens.
        clean: ``b`` or ``b n`` per modality, what is given at level 0; only modalities where that may happen.
        given: ``b`` per way of giving that may happen, the samples in which it does: ``modality_given``,
            ``first_step_<modality>``, ``continuation``.
        drop_timbre: ``b``, samples that are shown no reference timbre, whatever their caption; None where that never happens.
    """

    levels: Mapping[str, Tensor]
    noise: Mapping[str, Tensor]
    drop_text: Tensor
    cut: Tensor | None
    clean: Mapping[str, Tensor] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)
    drop_timbre: Tensor | None = None

    def shown(self, text: Stream) -> Stream:
        """What the samples are told: their captions and references but for those that are dropped."""
        text = without_text(text, self.drop_text)
        return text if self.drop_timbre is None else without_references(text, self.drop_timbre)

    def rows(self, select: Tensor | slice) -> Draws:
        """Those of some samples; what was one tensor for several modalities stays one."""
        seen: dict[int, Tensor] = {}

        def of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: seen.setdefault(id(value), value[select]) for name, value in values.items()}

        cut, timbre = (None if part is None else part[select] for part in (self.cut, self.drop_timbre))
        return Draws(of(self.levels), of(self.noise), self.drop_text[select], cut, of(self.clean), of(self.given), timbre)

    def rates(self) -> dict[str, Tensor]:
        """What was realised in this batch, as shares of its samples: one for each dropout that may happen."""
        found = {"text_dropped": self.drop_text.float().mean()}
        if self.cut is not None:
            found["modality_dropped"] = self.cut.float().mean()
        if self.drop_timbre is not None:
            found["timbre_dropped"] = self.drop_timbre.float().mean()
        return found | {name: samples.float().mean() for name, samples in self.given.items()}


def noise_like(streams: Mapping[str, Stream], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """Standard normal noise for every stream, each sample from its own generator."""
    return normal_like({name: stream.tokens for name, stream in streams.items()}, generators)


@dataclass(frozen=True)
class Drawing:
    """The laws that training samples are drawn by.

    Attributes:
        levels: the law of the noise level.
        coupling: "shared" gives all modalities of a sample one level; "independent" gives each its own; "one_clean" gives one
            modality, any with equal chance, clean, and the others one level.
        text_dropout: share of samples shown no caption, and no reference timbre with it.
        modality_dropout: share of samples in which attention between modalities is cut; 1 trains the cut control.
        shifts: level shift of single modalities, in place of the law's own.
        modality_given: share of samples in which one modality, any with equal chance, is clean.
        first_step: share of samples in which a modality's first step in time (a first frame) is clean.
        continuation: share of samples in which the beginning of every modality, up to a moment anywhere in the clip, is clean.
        timbre_dropout: share of samples, with a caption or without, shown no reference timbre.
    """

    levels: LevelLaw = field(default_factory=LogitNormal)
    coupling: str = "shared"
    text_dropout: float = 0.1
    modality_dropout: float = 0.0
    shifts: Mapping[str, float] = field(default_factory=dict)
    modality_given: float = 0.0
    first_step: Mapping[str, float] = field(default_factory=dict)
    continuation: float = 0.0
    timbre_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ValueError(f"flow.coupling={self.coupling} is not one of {', '.join(COUPLINGS)}")
        rates = {name: getattr(self, name) for name in RATES}
        rates |= {f"first_step.{name}": rate for name, rate in self.first_step.items()}
        for name, rate in rates.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"flow.{name}={rate} must lie between 0 and 1")
        for name, shift in self.shifts.items():
            if not 0 < shift < math.inf:
                raise ValueError(f"flow.shifts.{name}={shift} must be positive and finite")
        if self.coupling == "one_clean" and self.modality_given:
            raise ValueError("flow.coupling=one_clean gives a modality in every sample: leave flow.modality_given at 0")

    @property
    def given_rate(self) -> float:
        """Share of samples in which one modality is clean."""
        return 1.0 if self.coupling == "one_clean" else self.modality_given

    def plain(self) -> Drawing:
        """The same laws with every token noisy and every caption shown: what a comparable loss is measured by."""
        coupling = "shared" if self.coupling == "one_clean" else self.coupling
        given = {"first_step": {}, "continuation": 0.0, "modality_given": 0.0}
        return replace(self, coupling=coupling, text_dropout=0.0, timbre_dropout=0.0, **given)  # type: ignore[arg-type]

    def shift(self, modality: str) -> float:
        """The shift that a modality's levels are drawn with."""
        return self.shifts.get(modality, self.levels.shift)

    def __call__(self, streams: Mapping[str, Stream], generators: Sequence[torch.Generator]) -> Draws:
        """Draws for a batch; sample i uses ``generators[i]`` alone."""
        device = next(iter(streams.values())).tokens.device
        numbers = onto(_uniform(2 + len(streams), generators), device)
        noise = noise_like(streams, generators)
        levels: dict[str, Tensor] = {}
        made: dict[tuple[int, float], Tensor] = {}  # equal levels are one tensor: the network embeds them once
        for i, name in enumerate(streams):
            column = 2 + (i if self.coupling == "independent" else 0)
            key = (column, self.shift(name))
            if key not in made:
                made[key] = replace(self.levels, shift=self.shift(name))(numbers[:, column])
            levels[name] = made[key]
        cut = numbers[:, 1] < self.modality_dropout if self.modality_dropout > 0 else None
        places = onto(_uniform(4 + len(streams), generators), device)
        given = self._given(streams, places)
        clean = self._clean(streams, places, given)
        for name, known in clean.items():
            level = levels[name] if known.ndim == 1 else levels[name].unsqueeze(-1)
            levels[name] = torch.where(known, 0.0, level)
        drop_timbre = None
        if self.timbre_dropout:
            drop_timbre = onto(_uniform(1, generators), device)[:, 0] < self.timbre_dropout
        return Draws(levels, noise, numbers[:, 0] < self.text_dropout, cut, clean, given, drop_timbre)

    def _given(self, streams: Mapping[str, Stream], numbers: Tensor) -> dict[str, Tensor]:
        """The samples that are given something, from columns: one modality, (which,) a beginning, (until when,) first steps."""
        found: dict[str, Tensor] = {}
        if self.given_rate:
            found["modality_given"] = numbers[:, 0] < self.given_rate
        for i, name in enumerate(streams):
            if self.first_step.get(name, 0):
                found[f"first_step_{name}"] = numbers[:, 4 + i] < self.first_step[name]
        if self.continuation:
            found["continuation"] = numbers[:, 2] < self.continuation
        return found

    def _clean(self, streams: Mapping[str, Stream], numbers: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tokens that are given, in the samples that ``given`` says."""
        found: dict[str, Tensor] = {}
        if "modality_given" in given:
            which = (numbers[:, 1] * len(streams)).long()
            found = {name: given["modality_given"] & (which == i) for i, name in enumerate(streams)}
        for name, stream in streams.items():
            parts: list[Tensor] = []
            if f"first_step_{name}" in given:
                parts.append(first_step(stream) & given[f"first_step_{name}"].unsqueeze(-1))
            if "continuation" in given:
                begun = beginning(stream, streams, numbers[:, 3])
                parts.append(begun & given["continuation"].unsqueeze(-1))
            for part in parts:
                known = found.get(name)
                found[name] = part if known is None else part | (known.unsqueeze(-1) if known.ndim == 1 else known)
        return found


def _uniform(count: int, generators: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.rand(count, generator=g, device=g.device) for g in generators])


def first_step(stream: Stream) -> Bool[Tensor, "_ n"]:
    """The tokens of a stream's first step in time."""
    seconds = stream.positions[..., 0]
    return seconds == seconds.amin(-1, keepdim=True)


def beginning(stream: Stream, streams: Mapping[str, Stream], share: Tensor) -> Bool[Tensor, "b n"]:
    """The tokens before a share (``b``) of the clip, whose length is that of the stream that lasts longest."""
    ends = torch.stack([other.positions[..., 0].amax(-1) for other in streams.values()]).amax(0)
    return stream.positions[..., 0] < (share.to(ends) * ends).unsqueeze(-1)
