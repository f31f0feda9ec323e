"""CFG-Zero*: guidance for flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nava_lab.flow.guidance.base import Modifier, Moment
from nava_lab.registry import guidance


@guidance.register("cfg_zero")
@dataclass(frozen=True)
class CFGZero(Modifier):
    """Fits a null branch to the conditional one, and stands still at first (Fan et al. 2025, arXiv 2503.18886, algorithm 1).

    Attributes:
        fitted: multiply each null velocity by ``<v_c, v_null> / |v_null|^2``, per sample and modality.
        still_above: steps of a guided modality that begin above this level are left out (zero-init in the paper, there 4 % of
            the steps): its tokens stay what they are until the first level at or below; 1 is off.
    """

    fitted: bool = False
    still_above: float = 1.0

    example: ClassVar[Mapping[str, object]] = {"fitted": True, "still_above": 0.95}

    def __post_init__(self) -> None:
        if not 0 < self.still_above <= 1:
            raise ValueError(f"evaluation.guidance.cfg_zero.still_above={self.still_above} must lie in (0, 1]")

    def still(self, level: float) -> bool:
        return level > self.still_above

    def null(self, name: str, conditional: Tensor, null: Tensor, moment: Moment) -> Tensor:
        if not self.fitted:
            return null
        length = moment.inner(name, null, null)
        return null * (moment.inner(name, conditional, null) / length).where(length > 0, 1.0)
