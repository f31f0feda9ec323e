"""Pulses on a clock: how events are drawn, what they leave in a trace, and how they are found again.

An event is a jump at its onset and an exponential decay. A frame of a trace is the mean of that over the frame's time
(box exposure), so an onset between two frames shows in the height of the first.

Shape letters: b batch, k events, t frames of a trace, g grid of candidate onsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nava_lab.rng import uniform
from nava_lab.worlds.base import Events


def draw_onsets(
    seed: int, index: Tensor, counts: Tensor, most: int, span: tuple[float, float], gap: float
) -> tuple[Float[Tensor, "b k"], Bool[Tensor, "b k"]]:
    """Onsets uniform over all arrangements in ``span`` whose neighbours are at least ``gap`` seconds apart.

    Sorting uniforms on what is left of the span after the gaps, then putting the gaps back, is exact.
    """
    real = torch.arange(most, device=index.device) < counts.unsqueeze(-1)
    free = (span[1] - span[0]) - (counts.double() - 1).clamp(min=0) * gap
    places = uniform(seed, index, most).masked_fill(~real, 2.0).sort(-1).values
    onsets = span[0] + places * free.unsqueeze(-1) + torch.arange(most, device=index.device) * gap
    return onsets.masked_fill(~real, 0.0), real


@dataclass(frozen=True)
class Counts:
    """How many events clips have: of each range any number equally likely.

    Attributes:
        ranges: fewest and most events; one range, or two neighbouring ones whose mix has the mean that neither has.
        denser: the share of clips that draw from the last range.
    """

    ranges: tuple[tuple[int, int], ...]
    denser: float = 1.0

    @property
    def most(self) -> int:
        """Events of the fullest clip."""
        return self.ranges[-1][1]

    def __call__(self, draw: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Each clip's number of events from a uniform draw, whose lower part is of the first range."""
        apart = 1 - self.denser
        last = _within(self.ranges[-1], (draw - apart) / self.denser)
        return last if len(self.ranges) == 1 else torch.where(draw < apart, _within(self.ranges[0], draw / apart), last)


def _within(ends: tuple[int, int], draw: Tensor) -> Tensor:
    fewest, most = ends
    return (fewest + (draw * (most - fewest + 1)).long()).clamp(fewest, most)


def counts_of(density: float, duration_s: float, span_s: float, gap: float, beside: int = 0) -> Counts:
    """Numbers of events whose mean is ``density duration_s``, from 1 up where that leaves room.

    A range has half the sum of its ends for a mean, so a density for which ``2 density duration_s`` is no whole number takes
    two ranges, whose sums are the whole numbers about it. A denser clip than the gaps allow from 1 up begins higher.

    Args:
        density: mean events per second.
        duration_s: length of a clip.
        span_s: seconds in which onsets may lie.
        gap: least seconds between onsets.
        beside: further events that must fit in.
    """
    if not 0 < density < math.inf:
        raise ValueError(f"world.density={density} must be positive and finite")
    fit = int(1 + span_s / gap + 1e-9) - beside
    both = 2 * density * duration_s
    whole = round(both)
    sums = (whole,) if abs(both - whole) < 1e-9 * both else (math.floor(both), math.floor(both) + 1)
    if sums[-1] > 2 * fit:
        others = f" beside {beside} others" if beside else ""
        raise ValueError(
            f"world.density={density} does not fit events {gap} s apart{others}; at most {max(fit, 0) / duration_s:g}"
        )
    if sums[0] < 2:
        raise ValueError(
            f"world.density={density} is less than one event in {duration_s:g} s, and every clip has one: "
            f"at least {1 / duration_s:g}"
        )
    ranges = tuple((total - min(total - 1, fit), min(total - 1, fit)) for total in sums)
    return Counts(ranges, both - sums[0] if len(sums) > 1 else 1.0)


@dataclass(frozen=True)
class Pulse:
    """The shape of an event in a sampled trace.

    Attributes:
        decay: seconds to fall to 1/e.
        hz: frames per second.
        frames: length of a trace.
    """

    decay: float
    hz: float
    frames: int

    def response(self, onsets: Float[Tensor, "*any"]) -> Float[Tensor, "*any t"]:
        """The trace of a unit event at each onset (float64)."""
        edges = torch.arange(self.frames + 1, device=onsets.device, dtype=torch.float64) / self.hz
        since = (edges - onsets.double().unsqueeze(-1)).clamp(min=0)
        integral = self.decay * -torch.expm1(-since / self.decay)
        return (integral[..., 1:] - integral[..., :-1]) * self.hz

    def trace(self, onsets: Tensor, amplitudes: Tensor) -> Float[Tensor, "b t"]:
        """The trace of all events of a clip; an absent event has amplitude 0."""
        return (self.response(onsets) * amplitudes.double().unsqueeze(-1)).sum(-2)

    def traces(self, events: Events, kinds: int) -> Float[Tensor, "b {kinds} t"]:
        """One trace per kind of event."""
        response, amplitude = self.response(events.seconds), events.amplitude.double() * events.real
        each = [amplitude * (events.kind == kind) for kind in range(kinds)]
        return torch.stack([(response * part.unsqueeze(-1)).sum(-2) for part in each], 1)


REACH = 40  # candidates on either side among which an onset is moved


@dataclass(frozen=True)
class Decoder:
    """Non-negative matching pursuit for pulses in traces.

    Each round takes the candidate onset that explains most of what is left, refits all amplitudes together, and stops
    where the next one would be weaker than ``threshold``. Two sweeps then move each onset with the others held.

    Attributes:
        threshold: least amplitude of an event (true ones are 0.7 to 1).
        most: at most so many events per trace.
        gap: least seconds between two events of a trace.
        grid: seconds between candidate onsets.
    """

    threshold: float = 0.35
    most: int = 8
    gap: float = 0.125
    grid: float = 0.001

    def __call__(self, pulse: Pulse, traces: Float[Tensor, "b t"]) -> tuple[Tensor, Tensor, Tensor]:
        """Onsets ``b k``, amplitudes ``b k`` and which are real."""
        onsets, amplitudes = (traces.new_zeros((len(traces), self.most), dtype=torch.float64) for _ in range(2))
        real = torch.zeros_like(onsets, dtype=torch.bool)
        # An event of the threshold's amplitude lifts some frame at least to half its height over one frame.
        floor = 0.5 * self.threshold * float(pulse.response(torch.zeros(1)).max())
        rows = (traces.amax(-1) >= floor).nonzero().squeeze(-1)
        if len(rows):
            onsets[rows], amplitudes[rows], real[rows] = self._pursue(pulse, traces[rows].double())
        return onsets, amplitudes, real

    def _pursue(self, pulse: Pulse, y: Float[Tensor, "b t"]) -> tuple[Tensor, Tensor, Tensor]:
        length = pulse.frames / pulse.hz
        candidates = torch.arange(0, length - 0.5 / pulse.hz, self.grid, device=y.device, dtype=torch.float64)
        atoms = pulse.response(candidates)
        norms = atoms.norm(dim=-1)
        places = torch.zeros((len(y), self.most), dtype=torch.long, device=y.device)  # of the onsets among the candidates
        amplitudes = y.new_zeros((len(y), self.most))
        real = torch.zeros((len(y), self.most), dtype=torch.bool, device=y.device)
        running = torch.ones(len(y), dtype=torch.bool, device=y.device)
        for k in range(self.most):
            left = y - _traces(atoms[places], amplitudes)
            score = (left @ atoms.T) / norms
            near = (candidates - candidates[places[:, :k]].unsqueeze(-1)).abs() < self.gap
            score = score.masked_fill((near & real[:, :k].unsqueeze(-1)).any(1), -torch.inf)
            best = score.argmax(-1)
            amplitude = score.gather(1, best.unsqueeze(-1)).squeeze(-1) / norms[best]
            running = running & (amplitude >= self.threshold)
            if not running.any():
                break
            places[:, k] = torch.where(running, best, places[:, k])
            real[:, k] = running
            places, amplitudes = self._refine(atoms, norms, y, places, real, k + 1)
        keep = real & (amplitudes >= self.threshold)
        return candidates[places], amplitudes * keep, keep

    def _refine(self, atoms: Tensor, norms: Tensor, y: Tensor, places: Tensor, real: Tensor, count: int) -> tuple[Tensor, Tensor]:
        amplitudes = self._amplitudes(atoms[places], y, real)
        around = torch.arange(-REACH, REACH + 1, device=y.device)
        for _ in range(2):
            for k in range(count):
                others = amplitudes.clone()
                others[:, k] = 0
                left = y - _traces(atoms[places], others)
                tried = (places[:, k : k + 1] + around).clamp(0, len(atoms) - 1)
                gain = torch.einsum("bgt,bt->bg", atoms[tried], left).clamp(min=0) / norms[tried]
                best = gain.argmax(-1, keepdim=True)
                places[:, k] = torch.where(real[:, k], tried.gather(1, best).squeeze(-1), places[:, k])
            amplitudes = self._amplitudes(atoms[places], y, real)
        return places, amplitudes

    @staticmethod
    def _amplitudes(chosen: Float[Tensor, "b k t"], y: Tensor, real: Tensor) -> Tensor:
        """Least squares over all events of each trace, clipped at zero."""
        chosen = chosen * real.unsqueeze(-1)
        gram = chosen @ chosen.mT + torch.diag_embed((~real).double() + 1e-9)
        return torch.linalg.solve(gram, (chosen @ y.unsqueeze(-1))).squeeze(-1).clamp(min=0) * real


def _traces(chosen: Float[Tensor, "b k t"], amplitudes: Float[Tensor, "b k"]) -> Float[Tensor, "b t"]:
    return (chosen * amplitudes.unsqueeze(-1)).sum(-2)


def merge_kinds(found: list[tuple[Tensor, Tensor, Tensor]], gap: float = 0.125) -> Events:
    """Events decoded per kind as one list per clip; of events closer than ``gap`` only the strongest stays."""
    seconds = torch.cat([onsets for onsets, _, _ in found], 1)
    amplitude = torch.cat([amplitudes for _, amplitudes, _ in found], 1)
    real = torch.cat([kept for _, _, kept in found], 1)
    kind = torch.cat([torch.full_like(onsets, number, dtype=torch.long) for number, (onsets, _, _) in enumerate(found)], 1)
    order = amplitude.masked_fill(~real, -1).argsort(dim=1, descending=True, stable=True)
    seconds, amplitude, real, kind = (part.gather(1, order) for part in (seconds, amplitude, real, kind))
    near = (seconds.unsqueeze(2) - seconds.unsqueeze(1)).abs() < gap
    kept = torch.zeros_like(real)
    for k in range(real.shape[1]):  # strongest first: each stays unless one that stays is near
        kept[:, k] = real[:, k] & ~(near[:, k] & kept).any(1)
    width = max(1, int(kept.sum(1).max()))
    order = (~kept).long().argsort(dim=1, stable=True)[:, :width]
    return Events(*(part.gather(1, order) for part in (seconds, kind, amplitude, kept)))
