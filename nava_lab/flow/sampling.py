"""Sampling: noise in, clips out, the same for every architecture and every use.

Uses differ by which tokens are clean from the start: none (generation), all of a modality (video to audio, audio to
video), a first frame, the beginning of everything (continuation).

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nava_lab.flow.draws import noise_like
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.guidance.base import Call, Moment, Told
from nava_lab.flow.levels import shifted
from nava_lab.flow.objective import Network
from nava_lab.flow.path import as_velocity
from nava_lab.flow.schedules import LevelSchedule, UniformSchedule
from nava_lab.flow.solvers.base import Levels, Schedule, Solver, State
from nava_lab.flow.solvers.heun import Heun
from nava_lab.streams import Stream


@dataclass(frozen=True)
class Clean:
    """Tokens of a modality that are given.

    Attributes:
        tokens: ``b n c``, read where ``keep`` is True.
        keep: ``b n``, the tokens that stand at level 0 and come back to the bit; None for the whole modality.
    """

    tokens: Float[Tensor, "b n c"]
    keep: Bool[Tensor, "b n"] | None = None

    def into(self, x: Tensor) -> Tensor:
        """``x`` with the given tokens in their places."""
        given = self.tokens.to(x)
        return given if self.keep is None else torch.where(self.keep.to(x.device).unsqueeze(-1), given, x)


@dataclass(frozen=True)
class Sampler:
    """A solver with its schedule and guidance.

    Attributes:
        solver: how a step is taken.
        steps: how many.
        shift: schedule shift; above 1 spends more steps on noise.
        prediction: what the network's output means (as trained).
        cut: sample with attention between modalities cut.
        schedule: the levels before the shift.
        shifts: schedule shift of single modalities, in place of ``shift``.
        guidance: what each evaluation is guided by.
        schedules: the schedule of single modalities, in place of ``schedule``.
    """

    solver: Solver = field(default_factory=Heun)
    steps: int = 25
    shift: float = 1.0
    prediction: str = "x0"
    cut: bool = False
    schedule: LevelSchedule = field(default_factory=UniformSchedule)
    shifts: Mapping[str, float] = field(default_factory=dict)
    guidance: Guidance = field(default_factory=Guidance)
    schedules: Mapping[str, LevelSchedule] = field(default_factory=dict)

    def rows(self, modalities: Sequence[str], clean: Sequence[str] = ()) -> Schedule:
        """Each modality's levels, shifted once; 0 throughout for those that are given whole."""
        rows = {name: self.schedules.get(name, self.schedule)(self.steps) for name in modalities}
        return {
            name: torch.zeros_like(row) if name in clean else shifted(row, self.shifts.get(name, self.shift))
            for name, row in rows.items()
        }

    def walk(self, modalities: Sequence[str], clean: Sequence[str] = ()) -> Schedule:
        """The rows that the solver walks: without the steps that guidance leaves out."""
        return self.guidance.walked(self.rows(modalities, clean))

    def evaluations(self, modalities: Sequence[str], clean: Sequence[str] = ()) -> int:
        """Model evaluations that a clip costs, those of guidance included; counted by walking the schedule."""
        return sum(self.guidance.branches(levels) for levels in self._calls(modalities, clean))

    def _calls(self, modalities: Sequence[str], clean: Sequence[str]) -> list[dict[str, float]]:
        asked = self.solver.calls(self.walk(modalities, clean))
        return [dict(levels) for levels in asked]

    @torch.no_grad()
    def __call__(
        self,
        network: Network,
        template: Mapping[str, Stream],
        text: Stream,
        generators: Sequence[torch.Generator],
        given: Mapping[str, Clean] | None = None,
    ) -> dict[str, Tensor]:
        """Token values of new clips.

        Args:
            network: the denoiser.
            template: streams whose shapes, positions and validity the clips take; their values are not read.
            text: captions.
            generators: one per clip; a clip depends on no other.
            given: tokens that are clean from the start, per modality.
        """
        given = given or {}
        x = noise_like(template, generators)
        x = {name: given[name].into(part) if name in given else part for name, part in x.items()}
        whole = [name for name in x if name in given and given[name].keep is None]
        cut = torch.full((len(generators),), True, device=text.tokens.device) if self.cut else None
        memory: dict[str, Tensor] = {}
        told: dict[tuple[object, ...], Told] = {}
        counted = {name: _counted(template[name], given.get(name)) for name in x}

        def ask(call: Call) -> State:
            outputs = network(call.streams, call.levels, call.text, call.cut)
            return {  # in the tokens' own precision, whatever the network computed in
                name: as_velocity(outputs[name].to(stream.tokens), stream.tokens, call.levels[name], self.prediction)
                for name, stream in call.streams.items()
            }

        def velocity(state: State, levels: Levels) -> State:
            state = {name: given[name].into(part) if name in given else part for name, part in state.items()}
            streams = {name: template[name].with_tokens(part) for name, part in state.items()}
            call = Call(streams, _level_tensors(streams, levels, given), text, cut)
            return self.guidance(ask, call, Moment(state, levels, counted, memory, told))

        ended = self.solver(x, self.walk(tuple(x), whole), velocity, generators)
        return {name: given[name].into(part) if name in given else part for name, part in ended.items()}


def _level_tensors(streams: Mapping[str, Stream], levels: Levels, given: Mapping[str, Clean]) -> dict[str, Tensor]:
    """Levels as the network reads them: ``b``, or ``b n`` where some tokens are clean; equal ones are one tensor."""
    made: dict[float, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, stream in streams.items():
        tokens, level = stream.tokens, levels[name]
        dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        if level not in made:
            made[level] = torch.full((len(tokens),), level, device=tokens.device, dtype=dtype)
        keep = given[name].keep if name in given else None
        found[name] = made[level] if keep is None else torch.where(keep.to(tokens.device), 0.0, made[level].unsqueeze(-1))
    return found


def _counted(stream: Stream, clean: Clean | None) -> Tensor | None:
    """The tokens that are generated: neither padding nor given; None for all."""
    if clean is None or clean.keep is None:
        return stream.valid
    free = ~clean.keep.to(stream.tokens.device)
    return free if stream.valid is None else free & stream.valid
