"""The midpoint rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nava_lab.flow.solvers.base import Field, Levels, OneStep, State, between, move
from nava_lab.registry import solvers


@solvers.register("midpoint")
@dataclass(frozen=True)
class Midpoint(OneStep):
    """Order 2, two evaluations a step, the second halfway: never at level 0, so every step is alike."""

    order: ClassVar[int] = 2

    def step(self, x: State, now: Levels, then: Levels, velocity: Field) -> State:
        half = between(now, then, 0.5)
        return move(x, velocity(move(x, velocity(x, now), now, half), half), now, then)
