"""Stochastic Heun (Karras et al. 2022, arXiv 2206.00364, algorithm 2), on the straight path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from nava_lab.flow.levels import shifted
from nava_lab.flow.solvers.base import Field, Levels, Noise, Solver, State, noisier
from nava_lab.flow.solvers.heun import Heun, trapezoid
from nava_lab.registry import solvers


@solvers.register("churn")
@dataclass(frozen=True)
class Churn(Solver):
    """Before each of Heun's steps some fresh noise is mixed in, which the step then takes out again; 0 is Heun.

    The noise-to-signal ratio t / (1 - t) rises by the factor 1 + gamma, gamma = min(churn / steps, sqrt(2) - 1). Pure noise stays
    pure noise. Each step has Heun's evaluations.

    Attributes:
        churn: gamma times the number of steps, S_churn in the paper.
    """

    churn: float = 5.0

    order: ClassVar[int] = 2
    examples: ClassVar[tuple[tuple[Mapping[str, object], int], ...]] = (({"churn": 40.0}, 2),)

    def __post_init__(self) -> None:
        if not 0 <= self.churn < math.inf:
            raise ValueError(f"evaluation.solver.churn={self.churn} must be at least 0 and finite")

    def deterministic(self) -> Solver:
        return replace(self, churn=0.0)

    def twin(self) -> Solver | None:
        return Heun()

    def solve(self, x: State, nodes: Sequence[Levels], velocity: Field, noise: Noise) -> State:
        gamma = min(self.churn / (len(nodes) - 1), math.sqrt(2) - 1)
        for now, then in itertools.pairwise(nodes):
            raised = {name: shifted(t, 1 + gamma) if then[name] < t else t for name, t in now.items()}
            x = trapezoid(noisier(x, now, raised, noise), raised, then, velocity)
        return x
