"""Solvers of the sampling ODE behind one interface: from noise at level 1 to data at level 0.

A solver walks a row of falling levels and calls ``velocity(x, level)``, with x a mapping modality -> tokens. Each says
how many evaluations a step costs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nava_lab.flow.levels import shifted
from nava_lab.registry import solvers

State = Mapping[str, Tensor]
Field = Callable[[State, float], State]


def level_schedule(steps: int, shift: float = 1.0) -> Float[Tensor, " steps_and_one"]:
    """Levels from 1 to exactly 0, uniform before the shift (float64)."""
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, not {steps}")
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def _move(x: State, v: State, by: float) -> dict[str, Tensor]:
    return {name: part + by * v[name] for name, part in x.items()}


@dataclass(frozen=True)
class Solver:
    """Base of the solvers."""

    name: ClassVar[str] = ""

    def evaluations(self, steps: int) -> int:
        raise TypeError(f"{type(self).__name__} does not say its evaluations")

    def step(self, x: State, level: float, next_level: float, velocity: Field) -> State:
        raise TypeError(f"{type(self).__name__} does not say its step")

    def __call__(self, x: State, levels: Float[Tensor, " steps_and_one"], velocity: Field) -> State:
        """Integrate over the whole row of levels."""
        row = levels.tolist()
        if any(later >= earlier for earlier, later in itertools.pairwise(row)):
            raise ValueError(f"levels must fall from noise to data, not {row}")
        for level, next_level in itertools.pairwise(row):
            x = self.step(x, level, next_level, velocity)
        return x


@solvers.register("euler")
@dataclass(frozen=True)
class Euler(Solver):
    """One evaluation a step, order 1."""

    def evaluations(self, steps: int) -> int:
        return steps

    def step(self, x: State, level: float, next_level: float, velocity: Field) -> State:
        return _move(x, velocity(x, level), next_level - level)


@solvers.register("heun")
@dataclass(frozen=True)
class Heun(Solver):
    """Trapezoid rule with an Euler predictor, order 2: two evaluations a step, one in a last step that ends at level 0.

    At level 0 the velocity asks for noise that is no longer visible, so the final step is Euler's (Karras et al. 2022,
    algorithm 1).
    """

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1

    def step(self, x: State, level: float, next_level: float, velocity: Field) -> State:
        by = next_level - level
        first = velocity(x, level)
        guess = _move(x, first, by)
        if next_level == 0:
            return guess
        second = velocity(guess, next_level)
        return {name: part + 0.5 * by * (first[name] + second[name]) for name, part in x.items()}
