"""Schedules of sampling: which levels a solver stops at on its way from noise (1) to data (0).

A schedule gives one row; shifts, one for all modalities or one for each, are applied to it once, by the sampler.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from nava_lab.registry import schedules

Row = Float64[Tensor, " nodes"]


@dataclass(frozen=True)
class LevelSchedule:
    """Base of the schedules."""

    name: ClassVar[str] = ""

    def row(self, steps: int) -> Row:
        """``steps + 1`` falling levels, the last exactly 0."""
        raise TypeError(f"{type(self).__name__} gives no row")

    def __call__(self, steps: int) -> Row:
        if steps < 1:
            raise ValueError(f"evaluation.steps={steps}: sampling needs at least one step")
        return self.row(steps)


@schedules.register("uniform")
@dataclass(frozen=True)
class UniformSchedule(LevelSchedule):
    """Equal steps of the level."""

    def row(self, steps: int) -> Row:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


@schedules.register("karras")
@dataclass(frozen=True)
class KarrasSchedule(LevelSchedule):
    """Equal steps of the rho-th root of the noise-to-signal ratio (Karras et al. 2022, equation 5), from pure noise.

    Attributes:
        rho: 7 in the paper; larger spends more steps near the data.
        most: noise-to-signal ratio t / (1 - t) of the second level, the first being pure noise.
        least: the same of the last level before 0.
    """

    rho: float = 7.0
    most: float = 80.0
    least: float = 0.02

    def __post_init__(self) -> None:
        if not (0 < self.rho < math.inf and 0 < self.least < self.most < math.inf):
            told = f"rho={self.rho} and least={self.least} < most={self.most}"
            raise ValueError(f"evaluation.schedule: {told} must be positive and finite")

    def row(self, steps: int) -> Row:
        inner = torch.linspace(1, 0, max(1, steps - 1), dtype=torch.float64)
        low, high = self.least ** (1 / self.rho), self.most ** (1 / self.rho)
        ratio = (low + inner * (high - low)) ** self.rho
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
        return torch.cat((ends[:1], ratio / (1 + ratio) if steps > 1 else ends[:0], ends[1:]))


@schedules.register("custom")
@dataclass(frozen=True)
class CustomSchedule(LevelSchedule):
    """Levels as listed, between which the steps are spread evenly; all are met where evaluation.steps is a multiple of theirs.

    Attributes:
        levels: falling from 1 to 0, at least those two; read as a line through them, as far apart as evaluation.steps asks.
    """

    levels: list[float] = field(default_factory=lambda: [1.0, 0.75, 0.5, 0.25, 0.0])

    def __post_init__(self) -> None:
        row = self.levels
        falls = all(later < earlier for earlier, later in itertools.pairwise(row))
        if len(row) < 2 or not falls or row[-1] != 0 or row[0] != 1:
            raise ValueError(f"evaluation.schedule.levels={row} must fall from exactly 1 to exactly 0")

    def row(self, steps: int) -> Row:
        listed = torch.tensor(self.levels, dtype=torch.float64)
        shared = math.gcd(steps, len(listed) - 1)
        each, apart = steps // shared, (len(listed) - 1) // shared
        place = torch.arange(steps) * apart  # in each-ths of a listed step: whole numbers, of which none is rounded
        high, low = listed[place // each], listed[place // each + 1]
        return torch.cat((high + (low - high) * (place % each) / each, torch.zeros(1, dtype=torch.float64)))
