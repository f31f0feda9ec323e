"""Rescaled guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nava_lab.flow.guidance.base import Modifier, Moment
from nava_lab.registry import guidance


@guidance.register("rescale")
@dataclass(frozen=True)
class Rescale(Modifier):
    """Brings the guided velocity back to the conditional one's deviation (Lin et al. 2023, arXiv 2305.08891, section 3.4).

    For each sample and each modality by itself: a deviation taken over the batch would make a clip depend on its neighbours.

    Attributes:
        share: 0 is off, 1 keeps the deviation, between them a mix (phi in the paper, 0.7 there).
    """

    share: float = 0.0

    example: ClassVar[Mapping[str, object]] = {"share": 0.7}

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"evaluation.guidance.rescale={self.share} must lie between 0 and 1")

    def guided(self, name: str, guided: Tensor, conditional: Tensor, moment: Moment) -> Tensor:
        spread = moment.spread(name, guided)
        factor = (moment.spread(name, conditional) / spread).where(spread > 0, 1.0)
        return guided * (self.share * factor + (1 - self.share))
