"""Sampling: noise in, clips out, the same for every architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nava_lab.flow.draws import noise_like
from nava_lab.flow.objective import Network
from nava_lab.flow.path import as_velocity
from nava_lab.flow.solvers import Heun, Solver, State, level_schedule
from nava_lab.streams import Stream


@dataclass(frozen=True)
class Sampler:
    """A solver with its schedule.

    Attributes:
        solver: how a step is taken.
        steps: how many.
        shift: schedule shift; above 1 spends more steps on noise.
        prediction: what the network's output means (as trained).
        cut: sample with attention between modalities cut.
    """

    solver: Solver = field(default_factory=Heun)
    steps: int = 25
    shift: float = 1.0
    prediction: str = "x0"
    cut: bool = False

    @property
    def evaluations(self) -> int:
        return self.solver.evaluations(self.steps)

    @torch.no_grad()
    def __call__(
        self, network: Network, template: Mapping[str, Stream], text: Stream, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Token values of new clips.

        Args:
            network: the denoiser.
            template: streams whose shapes, positions and validity the clips take; their values are not read.
            text: captions.
            generators: one per clip; a clip depends on no other.
        """
        x = noise_like(template, generators)
        cut = torch.full((len(generators),), True, device=text.tokens.device) if self.cut else None

        def velocity(x: State, level: float) -> State:
            batch = len(generators)
            levels = dict.fromkeys(x, torch.full((batch,), level, device=text.tokens.device, dtype=torch.float32))
            streams = {name: template[name].with_tokens(part) for name, part in x.items()}
            outputs = network(streams, levels, text, cut)
            return {name: as_velocity(outputs[name], part, levels[name], self.prediction) for name, part in x.items()}

        return dict(self.solver(x, level_schedule(self.steps, self.shift), velocity))
