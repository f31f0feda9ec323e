"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor and a corrector that share their evaluations.

In lambda = log((1 - t) / t) and predicted clean tokens D, with h the step in lambda and r_k the places of earlier nodes
in units of h, both read (their section 3.1; B(h) = e^-h - 1, called bh2)

    x' = (t'/t) x + (1 - t'/t) (D_0 + sum_k rho_k (D_k - D_0) / r_k),    sum_k r_k^(j-1) rho_k = b_j

where the corrector also counts the node it has arrived at (r = 1). A predictor over p nodes with the corrector over p + 1
has order p + 1; as the first steps are of lower order, the whole has order 3 at most.

Down to t = 0 p is at most the number of steps left, as in the authors' code (``lower_order_final``): the steps before the last
are long in lambda, and three nodes extrapolate over them worse than two.

lambda is infinite at both ends: a node at t = 1 lies infinitely far back and says nothing of a slope in lambda, so it is
left out; into t = 0 the step takes D_0 as it is.

Nodes that lie close together beside the step say nothing of it either: a slope over a gap of r carries its error into the step
1 / r times, and two of them make the conditions of order singular. So earlier nodes less than 0.2 apart in r, from D_0 or
from one another, are left out and the order falls there; the rows of usual schedules keep all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nava_lab.flow.path import half_log_snr
from nava_lab.flow.solvers.base import Field, Levels, Node, Noise, Predictions, Solver, State, apart
from nava_lab.registry import solvers


@solvers.register("unipc")
@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC-p: predictor-corrector over the last p nodes, of order 2, 3 and 3, at one evaluation a step.

    Attributes:
        steps_used: p, 1 to 3.
    """

    steps_used: int = 2

    order: ClassVar[int] = 3
    order_to_0: ClassVar[int | None] = 2  # lambda is infinite there: the last steps are of first and second order
    examples: ClassVar[tuple[tuple[Mapping[str, object], int], ...]] = (({"steps_used": 1}, 2), ({"steps_used": 3}, 3))
    whole_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps_used not in (1, 2, 3):
            raise ValueError(f"evaluation.solver.steps_used={self.steps_used} must be 1, 2 or 3 for unipc")

    def solve(self, x: State, nodes: Sequence[Levels], velocity: Field, noise: Noise) -> State:
        known = {name: Predictions(self.steps_used) for name in x}
        start = dict(x)  # tokens at each modality's last node, corrected
        own: dict[str, Tensor] = {}  # of these, the ones that nobody else holds
        most: dict[str, int] = {}  # nodes that the step under way is taken over
        used = {name: self._nodes_used([node[name] for node in nodes]) for name in x}
        for now, then in itertools.pairwise(nodes):
            v = velocity(x, now)
            moved: dict[str, Tensor] = {}
            for name, part in x.items():
                t, goal = now[name], then[name]
                if goal == t:
                    moved[name] = part
                    continue
                node = known[name].predict(part, v[name], t)
                if known[name].nodes:
                    start[name] = _advance(start[name], t, known[name].nodes[-most[name] :], node, own.get(name))
                    own[name] = start[name]
                known[name].keep(node)
                most[name] = used[name].pop(0)
                moved[name] = _advance(start[name], goal, known[name].nodes[-most[name] :], None)
            x = moved
        return x

    def _nodes_used(self, row: Sequence[float]) -> list[int]:
        """p of each step of a row."""
        steps = sum(later < level for level, later in itertools.pairwise(row))
        return [min(self.steps_used, steps - i) if row[-1] == 0 else self.steps_used for i in range(steps)]


def _advance(x: Tensor, goal: float, known: Sequence[Node], arrived: Node | None, into: Tensor | None = None) -> Tensor:
    """From the newest known node to ``goal``: predicted, or corrected by what was found at ``arrived``; fills ``into``."""
    t, clean = known[-1]
    if goal == 0:
        return clean
    others = apart(known[:-1], t, goal)
    shares = _shares(goal, t, tuple(level for level, _ in others), arrived is not None)
    rest = 1 - goal / t
    step = torch.mul(x, goal / t, out=into).add_(clean, alpha=rest * (1 - sum(shares)))
    for (_, other), share in zip([*others, *([] if arrived is None else [arrived])], shares, strict=True):
        step.add_(other, alpha=rest * share)
    return step


@lru_cache(maxsize=4096)
def _shares(goal: float, t: float, earlier: tuple[float, ...], corrected: bool) -> tuple[float, ...]:
    """``rho_k / r_k`` of the earlier nodes and, where corrected, of the one that was arrived at."""
    h = half_log_snr(goal) - half_log_snr(t)
    ratios = [(half_log_snr(level) - half_log_snr(t)) / h for level in earlier] + [1.0] * corrected
    return tuple(weight / ratio for weight, ratio in zip(_weights(ratios, h), ratios, strict=True))


def _weights(ratios: Sequence[float], h: float) -> list[float]:
    """rho of the conditions of order, ``sum_k r_k^(j-1) rho_k = b_j`` for j = 1..p.

    ``b_j = j! phi_(j+1)(-h) / phi_1(-h)`` with ``phi_(k+1)(z) = (phi_k(z) - 1/k!) / z``. For p = 1 the authors take 1/2, to
    which b_1 tends for small h; so does this, also from t = 1, where h is infinite.
    """
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    size, z = len(ratios), -h
    phi = math.expm1(z) / z
    first, b = phi, []
    for j in range(1, size + 1):
        phi = (phi - 1 / math.factorial(j)) / z
        b.append(math.factorial(j) * phi / first)
    matrix = np.vander(np.array(ratios), size, increasing=True).T
    return np.linalg.solve(matrix, np.array(b)).tolist()
