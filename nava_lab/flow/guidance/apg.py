"""Adaptive projected guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nava_lab.flow.guidance.base import Modifier, Moment
from nava_lab.registry import guidance


@guidance.register("apg")
@dataclass(frozen=True)
class AdaptiveProjected(Modifier):
    """Turns a term's direction away from the predicted clean tokens (Sadat et al. 2024, arXiv 2410.02416, algorithm 1).

    With D = x - t v the clean tokens that the conditional branch predicts, the part of a direction that is parallel to D
    saturates, the orthogonal one improves. The direction in D is ``-t (v_c - v_null)``.

    Attributes:
        parallel: share of the parallel part that is kept (eta in the paper); 1 keeps all.
        norm: a direction in D longer than this, per element (root mean square), is shortened to it; 0 shortens none.
        momentum: weight of the earlier directions (beta in the paper, there negative).
    """

    parallel: float = 1.0
    norm: float = 0.0
    momentum: float = 0.0

    example: ClassVar[Mapping[str, object]] = {"parallel": 0.0, "norm": 0.05, "momentum": -0.5}

    def __post_init__(self) -> None:
        if not (math.isfinite(self.parallel) and 0 <= self.norm < math.inf and -1 < self.momentum < 1):
            raise ValueError(
                f"evaluation.guidance.apg: parallel={self.parallel} must be finite, norm={self.norm} at least 0 and finite, "
                f"momentum={self.momentum} within ±1"
            )

    def direction(self, term: str, name: str, direction: Tensor, conditional: Tensor, moment: Moment) -> Tensor:
        t = moment.levels[name]
        change = t * direction
        if self.momentum:
            key = f"apg {term} {name}"
            if key in moment.memory:
                change.add_(moment.memory[key], alpha=self.momentum)
            moment.memory[key] = change
        factor: Tensor | float = 1 / t  # everything that scales the whole, applied once
        if self.norm:
            size = (moment.inner(name, change, change) / moment.size(name, change)).sqrt()
            factor = (self.norm / size).where(size > self.norm, 1.0) / t
        if self.parallel == 1:
            return change * factor
        clean = torch.sub(moment.x[name], conditional, alpha=t)
        length = moment.inner(name, clean, clean)
        along = (moment.inner(name, change, clean) / length).where(length > 0, 0.0)
        return clean.mul_(along * (self.parallel - 1)).add_(change).mul_(factor)
