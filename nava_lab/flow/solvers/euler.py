"""Euler's method."""

from __future__ import annotations

from dataclasses import dataclass

from nava_lab.flow.solvers.base import Field, Levels, OneStep, State, move
from nava_lab.registry import solvers


@solvers.register("euler")
@dataclass(frozen=True)
class Euler(OneStep):
    """Order 1, one evaluation a step; on the straight path it is DDIM and DPM-Solver++(1) (Lu et al. 2022)."""

    def step(self, x: State, now: Levels, then: Levels, velocity: Field) -> State:
        return move(x, velocity(x, now), now, then)
