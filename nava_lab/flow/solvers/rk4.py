"""The classical Runge-Kutta method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nava_lab.flow.solvers.base import Field, Levels, OneStep, State, arrives, between, move
from nava_lab.registry import solvers


@solvers.register("rk4")
@dataclass(frozen=True)
class RungeKutta4(OneStep):
    """Order 4, four evaluations a step, three in a last step that ends at level 0.

    That step is Ralston's of third order (1962), which does not evaluate at its end; being one step it leaves the whole at
    order 4. Where modalities follow different schedules that are no straight line of each other, the levels between two
    nodes are known to second order only, and so is the result.
    """

    order: ClassVar[int] = 4

    def step(self, x: State, now: Levels, then: Levels, velocity: Field) -> State:
        half = between(now, then, 0.5)
        first = velocity(x, now)
        second = velocity(move(x, first, now, half), half)
        if arrives(now, then):
            late = between(now, then, 0.75)
            third = velocity(move(x, second, now, late), late)
            return move(x, _sum((2 / 9, first), (3 / 9, second), (4 / 9, third)), now, then)
        third = velocity(move(x, second, now, half), half)
        fourth = velocity(move(x, third, now, then), then)
        return move(x, _sum((1 / 6, first), (2 / 6, second), (2 / 6, third), (1 / 6, fourth)), now, then)


def _sum(*parts: tuple[float, State]) -> State:
    (weight, start), *rest = parts
    found = {name: weight * v for name, v in start.items()}
    for weight, v in rest:
        for name, total in found.items():
            total.add_(v[name], alpha=weight)
    return found
