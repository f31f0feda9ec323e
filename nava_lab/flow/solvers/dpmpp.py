"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095): exponential integration of the predicted clean tokens.

With lambda = log((1 - t) / t), half the logarithm of the signal-to-noise ratio, D the predicted clean tokens and the
straight path's alpha = 1 - t, sigma = t, its equation 8 reads ``x' = (t'/t) x + (1 - t'/t) D`` for constant D, which is Euler's
step. The second order lets D run straight in lambda through the last two nodes (algorithm 2):
``D~ = D_i + (h_i / 2 h_(i-1)) (D_i - D_(i-1))``.

lambda is infinite at both ends. Coming from t = 1 the ratio h_i / h_(i-1) is exactly 0, and the correction with it. Into t = 0
it would be infinite; that step takes D as it is. So does a step whose last node lies much closer than it is long (``apart``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nava_lab.flow.path import half_log_snr
from nava_lab.flow.solvers.base import Field, Levels, Noise, Predictions, Solver, State, apart
from nava_lab.registry import solvers


@solvers.register("dpmpp")
@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """DPM-Solver++: multistep in the predicted clean tokens, one evaluation a step.

    Attributes:
        steps_used: 1 for the first order (equal to Euler's), 2 for the second, known as 2M.
    """

    steps_used: int = 2

    order: ClassVar[int] = 2
    examples: ClassVar[tuple[tuple[Mapping[str, object], int], ...]] = (({"steps_used": 1}, 1),)
    whole_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps_used not in (1, 2):
            raise ValueError(f"evaluation.solver.steps_used={self.steps_used} must be 1 or 2 for dpmpp")

    def solve(self, x: State, nodes: Sequence[Levels], velocity: Field, noise: Noise) -> State:
        known = {name: Predictions(1) for name in x}
        for now, then in itertools.pairwise(nodes):
            v = velocity(x, now)
            moved: dict[str, Tensor] = {}
            for name, part in x.items():
                t, goal = now[name], then[name]
                if goal == t:
                    moved[name] = part
                    continue
                step = torch.add(part, v[name], alpha=goal - t)
                if self.steps_used == 2:
                    _, clean = node = known[name].predict(part, v[name], t)
                    if goal > 0 and (kept := apart(known[name].nodes, t, goal)):
                        last, old = kept[-1]
                        half = 0.5 * (half_log_snr(goal) - half_log_snr(t)) / (half_log_snr(t) - half_log_snr(last))
                        weight = (1 - goal / t) * half
                        step.add_(clean, alpha=weight).sub_(old, alpha=weight)
                    known[name].keep(node)
                moved[name] = step
            x = moved
        return x
