"""Guidance in a limited interval of levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nava_lab.flow.guidance.base import Modifier
from nava_lab.registry import guidance


@guidance.register("interval")
@dataclass(frozen=True)
class Interval(Modifier):
    """Guides only where the modality's level lies in an interval (Kynkäänniemi et al. 2024, arXiv 2404.07724).

    Outside it no evaluation is spent on null branches.

    Attributes:
        low: least level.
        high: greatest level.
    """

    low: float = 0.0
    high: float = 1.0

    example: ClassVar[Mapping[str, object]] = {"low": 0.2, "high": 0.7}

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"evaluation.guidance.interval: 0 <= low={self.low} < high={self.high} <= 1 must hold")

    def acts(self, level: float) -> bool:
        return self.low <= level <= self.high
