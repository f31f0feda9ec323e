"""What a solver is: from noise at level 1 to data at level 0, along a row of levels per modality.

A solver asks ``velocity(x, levels)``, with x a mapping modality -> tokens and levels a mapping modality -> number. Every
modality moves along its own row, all rows being of one length, so node i of one belongs to node i of the others. Between two
nodes the levels run straight. A modality whose row is 0 throughout is held clean: no solver sees it, and it comes back as it is.

Coefficients are Python floats (float64); tokens keep their own type. Sums are made in place of their own first term: beside
a small network, memory is what a step costs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from nava_lab.flow.noise import normal_like
from nava_lab.flow.path import half_log_snr, renoised

State = Mapping[str, Tensor]
Levels = Mapping[str, float]
Field = Callable[[State, Levels], State]
Noise = Callable[[State], State]
Schedule = Mapping[str, Float64[Tensor, " nodes"]]


@dataclass(frozen=True)
class Solver:
    """Base of the solvers: checks rows, sets clean modalities aside, hands the moving ones to ``solve``.

    A solver holds settings only. What it remembers between steps lives inside one call, so one object serves any number of
    calls at once.

    Class attributes:
        order: order of convergence on a smooth flow, of the solver at its defaults and without noise.
        order_to_0: the same of a walk from pure noise down to level 0, where some cannot keep it; None where they do.
        examples: further settings that the laws are tested with, each with the order that it then has.
        whole_only: whether a walk over two halves may differ from one over the whole (it remembers earlier steps).
    """

    name: ClassVar[str] = ""
    order: ClassVar[int] = 1
    order_to_0: ClassVar[int | None] = None
    examples: ClassVar[tuple[tuple[Mapping[str, object], int], ...]] = ()
    whole_only: ClassVar[bool] = False

    def solve(self, x: State, nodes: Sequence[Levels], velocity: Field, noise: Noise) -> State:
        """Walk from ``nodes[0]`` to ``nodes[-1]``; each modality's level falls or stands still from node to node."""
        raise TypeError(f"{type(self).__name__} does not say how it solves")

    def deterministic(self) -> Solver:
        """The same solver without noise, whose laws are those of an ODE."""
        return self

    def twin(self) -> Solver | None:
        """The solver that ``deterministic()`` must equal to the bit; None where it is a scheme of its own."""
        return None

    def __call__(
        self, x: State, schedule: Schedule, velocity: Field, generators: Sequence[torch.Generator] = ()
    ) -> dict[str, Tensor]:
        """Tokens at the end of every modality's row.

        Args:
            x: tokens ``b n c`` at the first levels.
            schedule: a row of levels per modality of ``x``.
            velocity: called with all modalities, clean ones included, and their levels.
            generators: one per sample; stochastic solvers draw from nothing else.
        """
        rows = _checked(x, schedule)
        clean = {name: part for name, part in x.items() if not any(rows[name])}
        moving = {name: part for name, part in x.items() if name not in clean}
        if not moving:
            return dict(x)
        walk = [dict(zip(moving, node, strict=True)) for node in zip(*(rows[name] for name in moving), strict=True)]
        walk = [node for i, node in enumerate(walk) if i == 0 or node != walk[i - 1]]
        still = dict.fromkeys(clean, 0.0)

        def field(state: State, levels: Levels) -> State:
            whole = {name: clean[name] if name in clean else state[name] for name in x}
            found = velocity(whole, {**levels, **still})
            return {name: found[name] for name in moving}

        def noise(state: State) -> State:
            return normal_like(state, generators)

        ended = self.solve(moving, walk, field, noise) if len(walk) > 1 else moving
        return {name: ended.get(name, part) for name, part in x.items()}

    def calls(self, schedule: Schedule) -> list[Levels]:
        """The levels at which the velocity is asked for, in order: found by walking with nothing to move."""
        asked: list[Levels] = []

        def velocity(state: State, levels: Levels) -> State:
            asked.append(dict(levels))
            return state

        self({name: torch.zeros(1, 1, 1) for name in schedule}, schedule, velocity, [torch.Generator()])
        return asked

    def evaluations(self, schedule: Schedule) -> int:
        """How often the velocity is asked for: counted, not declared."""
        return len(self.calls(schedule))


@dataclass(frozen=True)
class OneStep(Solver):
    """Base of the solvers that need to know no earlier step."""

    def step(self, x: State, now: Levels, then: Levels, velocity: Field) -> State:
        raise TypeError(f"{type(self).__name__} does not say its step")

    def solve(self, x: State, nodes: Sequence[Levels], velocity: Field, noise: Noise) -> State:
        for now, then in itertools.pairwise(nodes):
            x = self.step(x, now, then, velocity)
        return x


def move(x: State, v: State, now: Levels, then: Levels) -> dict[str, Tensor]:
    """Along the velocity from one node towards another; a modality whose level stands still keeps its bits."""
    return {
        name: part if then[name] == now[name] else torch.add(part, v[name], alpha=then[name] - now[name])
        for name, part in x.items()
    }


Node = tuple[float, Tensor]  # level, predicted clean tokens
LEAST_GAP = 0.2  # of earlier nodes, in units of the step in lambda


def apart(earlier: Sequence[Node], t: float, goal: float) -> list[Node]:
    """The earlier nodes that lie far enough from ``t`` and from one another, seen from the newest, for a slope in lambda.

    A slope over a gap of r steps carries its error into the step 1 / r times. A node at level 1 lies infinitely far back.
    """
    kept: list[Node] = []
    now, last = half_log_snr(t), 0.0
    for node in reversed(earlier):
        if node[0] < 1:
            place = (half_log_snr(node[0]) - now) / (half_log_snr(goal) - now)
            if last - place >= LEAST_GAP:
                kept.insert(0, node)
                last = place
    return kept


class Predictions:
    """A modality's last predicted clean tokens, ``x - t v``, the newest last, in memory that is used again.

    Fresh memory for what is kept over steps costs more than the arithmetic. Nobody else holds these tensors while they change.

    Args:
        most: how many nodes are kept.
    """

    def __init__(self, most: int):
        self.most = most
        self.nodes: list[Node] = []
        self._spare: Tensor | None = None

    def predict(self, x: Tensor, v: Tensor, level: float) -> Node:
        """The node at ``level``, not yet kept."""
        clean = torch.empty_like(x) if self._spare is None else self._spare
        self._spare = None
        return level, torch.sub(x, v, alpha=level, out=clean)

    def keep(self, node: Node) -> None:
        self.nodes.append(node)
        if len(self.nodes) > self.most:
            self._spare = self.nodes.pop(0)[1]


def between(now: Levels, then: Levels, share: float) -> dict[str, float]:
    """The levels a share of the way from one node to another."""
    return {name: level + share * (then[name] - level) for name, level in now.items()}


def noisier(x: State, now: Levels, then: Levels, noise: Noise) -> dict[str, Tensor]:
    """``x`` with fresh noise mixed in, from its levels up to those of ``then``; draws nothing where no level rises."""
    rising = {name: part for name, part in x.items() if then[name] > now[name]}
    drawn = noise(rising) if rising else {}
    return {name: renoised(part, drawn[name], now[name], then[name]) if name in drawn else part for name, part in x.items()}


def _checked(x: State, schedule: Schedule) -> dict[str, list[float]]:
    if set(x) != set(schedule):
        raise ValueError(f"levels are given for {', '.join(schedule)}, tokens for {', '.join(x)}")
    rows = {name: schedule[name].tolist() for name in x}
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError("levels of all modalities must be rows of one length")
    for name, row in rows.items():
        if not row or not all(0 <= level <= 1 for level in row):
            raise ValueError(f"levels of {name} must lie between 0 and 1, not {row}")
        if any(later > earlier for earlier, later in itertools.pairwise(row)):
            raise ValueError(f"levels of {name} must fall from noise to data, not {row}")
    return rows
