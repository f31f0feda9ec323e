"""Laws of the noise level in training: how often each t in [0, 1] is practised.

A law turns uniform numbers into levels, so that whoever draws the uniforms (per sample, per modality) decides the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from nava_lab.registry import level_laws

T = TypeVar("T", float, Tensor)


def shifted(t: T, shift: float) -> T:
    """``s t / (1 + (s - 1) t)``: more noise for s > 1 (Esser et al. 2024, section 5.3.2). To be applied once.

    It multiplies the noise-to-signal ratio t / (1 - t) by s, so shifts compose by multiplication. 0 and 1 stay
    exactly what they are.
    """
    moved = shift * t / (1 + (shift - 1) * t)
    if isinstance(t, Tensor):
        return torch.where(t == 1, t, moved)
    return t if t == 1 else moved


@dataclass(frozen=True)
class LevelLaw:
    """Base of the laws; ``quantile`` maps a uniform number to a level."""

    name: ClassVar[str] = ""
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"flow.levels.shift={self.shift} must be positive and finite")

    def __call__(self, uniform: Tensor) -> Tensor:
        return shifted(self.quantile(uniform), self.shift)

    @property
    def centre(self) -> float:
        """The noise-to-signal ratio t / (1 - t) of the median level, before the shift: a shift that is the law's own."""
        return 1.0

    def quantile(self, uniform: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no quantile function")


@level_laws.register("logit_normal")
@dataclass(frozen=True)
class LogitNormal(LevelLaw):
    """sigmoid(mean + std * normal): most practice at middle levels (Esser et al. 2024, section 3.1).

    Attributes:
        mean: 0 centres at one half; above 0 practises noisier levels.
        std: spread.
        shift: level shift, applied once after the law.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.std < math.inf:
            raise ValueError(f"flow.levels.std={self.std} must be positive and finite")
        if not math.isfinite(self.mean):
            raise ValueError(f"flow.levels.mean={self.mean} must be finite")

    @property
    def centre(self) -> float:
        return math.exp(self.mean)

    def quantile(self, uniform: Tensor) -> Tensor:
        normal = torch.special.ndtri(uniform.double().clamp(1e-9, 1 - 1e-9))
        return torch.sigmoid(self.mean + self.std * normal).to(uniform.dtype)


@level_laws.register("uniform")
@dataclass(frozen=True)
class Uniform(LevelLaw):
    """Every level equally often.

    Attributes:
        shift: level shift, applied once after the law (NAVA: 5).
    """

    shift: float = 1.0

    def quantile(self, uniform: Tensor) -> Tensor:
        return uniform


@level_laws.register("mode")
@dataclass(frozen=True)
class Mode(LevelLaw):
    """Middle levels more (scale > 0) or less often, with a density that never vanishes (Esser et al. 2024, equation 20).

    Attributes:
        scale: 0 is uniform; between -1 and 2 / (pi - 2), beyond which the law would not be one to one.
        shift: level shift, applied once after the law.
    """

    scale: float = 1.29
    shift: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"flow.levels.scale={self.scale} must lie between -1 and {2 / (math.pi - 2):.4f}")

    def quantile(self, uniform: Tensor) -> Tensor:
        u = 1 - uniform
        return 1 - u - self.scale * (torch.cos(torch.pi / 2 * u) ** 2 - 1 + u)
