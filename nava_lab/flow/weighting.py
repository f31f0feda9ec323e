"""Loss weights by noise level.

The loss is the squared velocity error. With D the predicted clean tokens, ``v - v^ = (D - x0) / t``, so a weight on one
is a weight on the other; each entry says which it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nava_lab.registry import level_weights


@dataclass(frozen=True)
class LevelWeight:
    """Base of the weights: a function of the level, of any shape."""

    name: ClassVar[str] = ""

    def __call__(self, level: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} gives no weight")


@level_weights.register("even")
@dataclass(frozen=True)
class Even(LevelWeight):
    """Every level alike: the plain velocity loss."""

    def __call__(self, level: Tensor) -> Tensor:
        return torch.ones_like(level)


@level_weights.register("cosmap")
@dataclass(frozen=True)
class CosMap(LevelWeight):
    """``2 / (pi (1 - 2 t + 2 t^2))``: middle levels up to twice as much as the ends (Esser et al. 2024, section 3.1)."""

    def __call__(self, level: Tensor) -> Tensor:
        return 2 / (torch.pi * (1 - 2 * level + 2 * level**2))


@level_weights.register("min_snr")
@dataclass(frozen=True)
class MinSNR(LevelWeight):
    """The loss on clean tokens weighted by ``min(SNR, gamma)`` (Hang et al. 2023, arXiv 2303.09556, section 3.4).

    On the velocity, with SNR = ((1 - t) / t)^2, that is ``min((1 - t)^2, gamma t^2)``.

    Attributes:
        gamma: 5 in the paper.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"flow.weighting.gamma={self.gamma} must be positive and finite")

    def __call__(self, level: Tensor) -> Tensor:
        return torch.minimum((1 - level) ** 2, self.gamma * level**2)
