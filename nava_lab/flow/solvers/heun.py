"""Heun's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nava_lab.flow.solvers.base import Field, Levels, OneStep, State, move
from nava_lab.registry import solvers


@solvers.register("heun")
@dataclass(frozen=True)
class Heun(OneStep):
    """Trapezoid rule with an Euler predictor, order 2: two evaluations a step, one in a last step that ends at level 0.

    At level 0 the velocity asks for noise that is no longer visible, so the final step is Euler's (Karras et al. 2022,
    algorithm 1), and is so only for the modalities that arrive.
    """

    order: ClassVar[int] = 2

    def step(self, x: State, now: Levels, then: Levels, velocity: Field) -> State:
        return trapezoid(x, now, then, velocity)


def trapezoid(x: State, now: Levels, then: Levels, velocity: Field) -> State:
    """One step of Heun's."""
    first = velocity(x, now)
    guess = move(x, first, now, then)
    if not any(then[name] > 0 and then[name] < level for name, level in now.items()):
        return guess
    second = velocity(guess, then)
    return {
        name: (first[name] + second[name]).mul_(0.5 * (then[name] - now[name])).add_(part)
        if 0 < then[name] < now[name]
        else guess[name]
        for name, part in x.items()
    }
