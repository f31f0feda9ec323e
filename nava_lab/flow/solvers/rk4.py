"""The classical Runge-Kutta method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nava_lab.flow.solvers.base import Field, Levels, OneStep, State, between, move
from nava_lab.registry import solvers


@solvers.register("rk4")
@dataclass(frozen=True)
class RungeKutta4(OneStep):
    """Order 4, four evaluations a step, three in a last step that ends at level 0.

    That step is Ralston's of third order (1962), which does not evaluate at its end; being one step it leaves the whole at
    order 4. It is so only for the modalities that arrive, each having stages of its own. Where modalities follow different
    schedules that are no straight line of each other, the levels between two nodes are known to second order only, and so is
    the result.
    """

    order: ClassVar[int] = 4

    def step(self, x: State, now: Levels, then: Levels, velocity: Field) -> State:
        half = between(now, then, 0.5)
        last = {name for name, level in now.items() if then[name] == 0 < level}
        first = velocity(x, now)
        second = velocity(move(x, first, now, half), half)
        late = between(now, then, 0.75)
        third_at = {name: late[name] if name in last else half[name] for name in now}
        third = velocity(move(x, second, now, third_at), third_at)
        ended = move(x, _sum((2 / 9, first), (3 / 9, second), (4 / 9, third)), now, then) if last else {}
        if last and all(name in last or then[name] == level for name, level in now.items()):
            return ended
        # Who arrives is shown where it was last evaluated: at level 0 nothing may be asked.
        fourth_at = {name: late[name] if name in last else then[name] for name in now}
        fourth = velocity(move(x, third, now, fourth_at), fourth_at)
        going = move(x, _sum((1 / 6, first), (2 / 6, second), (2 / 6, third), (1 / 6, fourth)), now, then)
        return {name: ended[name] if name in last else part for name, part in going.items()}


def _sum(*parts: tuple[float, State]) -> State:
    (weight, start), *rest = parts
    found = {name: weight * v for name, v in start.items()}
    for weight, v in rest:
        for name, total in found.items():
            total.add_(v[name], alpha=weight)
    return found
