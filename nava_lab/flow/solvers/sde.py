"""The reverse-time SDE, stepped by Euler's method: ancestral sampling on the straight path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from nava_lab.flow.levels import shifted
from nava_lab.flow.solvers.base import Field, Levels, Noise, Solver, State, move, noisier
from nava_lab.flow.solvers.euler import Euler
from nava_lab.registry import solvers


@solvers.register("sde")
@dataclass(frozen=True)
class AncestralEuler(Solver):
    """Each step goes further down than its node and comes back up to it by fresh noise; 0 is Euler.

    With s = t / (1 - t) the noise-to-signal ratio, a step goes down to ``s' sqrt(1 - eta^2 (1 - s'^2 / s^2))`` and mixes
    noise in up to s': DDIM's eta (Song et al. 2021, arXiv 2010.02502, equation 16), 1 being DDPM's ancestral
    step. The last step, to level 0, adds none.

    Attributes:
        eta: 0 for the ODE, 1 for ancestral sampling.
    """

    eta: float = 1.0

    order: ClassVar[int] = 1
    examples: ClassVar[tuple[tuple[Mapping[str, object], int], ...]] = (({"eta": 0.5}, 1),)

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"evaluation.solver.eta={self.eta} must lie between 0 and 1")

    def deterministic(self) -> Solver:
        return replace(self, eta=0.0)

    def twin(self) -> Solver | None:
        return Euler()

    def solve(self, x: State, nodes: Sequence[Levels], velocity: Field, noise: Noise) -> State:
        for now, then in itertools.pairwise(nodes):
            down = {name: self._down(now[name], goal) for name, goal in then.items()}
            x = noisier(move(x, velocity(x, now), now, down), down, then, noise)
        return x

    def _down(self, t: float, goal: float) -> float:
        if goal in (0.0, t):
            return goal
        ratio = goal * (1 - t) / (t * (1 - goal))  # of the noise-to-signal ratios; 0 from pure noise
        return shifted(goal, math.sqrt(1 - self.eta**2 * (1 - ratio**2)))
