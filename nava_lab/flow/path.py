"""The straight path between data and noise, and what a network's output means on it.

With clean tokens x0 and noise eps, at level t in [0, 1]: ``x_t = (1 - t) x0 + t eps`` and the velocity is
``v = eps - x0`` (Liu et al. 2022, rectified flow; Lipman et al. 2022). Levels broadcast over tokens and channels.

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

PREDICTIONS = ("velocity", "x0", "eps")
LEAST_LEVEL = 0.05


def broadcast(level: Float[Tensor, "b *n"], like: Float[Tensor, "b n c"]) -> Float[Tensor, "b _ 1"]:
    """A level per sample ``b`` or per token ``b n``, shaped to multiply tokens."""
    level = level.to(like.dtype)
    return level.view(-1, 1, 1) if level.ndim == 1 else level.unsqueeze(-1)


def interpolate(x0: Tensor, eps: Tensor, level: Tensor) -> Tensor:
    """The point at ``level`` on the path from ``x0`` to ``eps``; at level 0 and 1 exactly the one and the other."""
    return torch.lerp(x0, eps, broadcast(level, x0))


def renoised(x: Tensor, noise: Tensor, level: float, raised: float) -> Tensor:
    """``x`` at ``level`` with fresh noise mixed in so that it stands at the higher level ``raised``, in distribution."""
    kept = (1 - raised) / (1 - level)
    return (kept * x).add_(noise, alpha=math.sqrt(raised**2 - (kept * level) ** 2))


def half_log_snr(level: float) -> float:
    """``log((1 - t) / t)``, lambda of the exponential integrators: -inf at level 1 and +inf at level 0, exactly."""
    if level in (0.0, 1.0):
        return math.inf if level == 0 else -math.inf
    return math.log1p(-level) - math.log(level)


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    return eps - x0


def x0_from_velocity(x: Tensor, v: Tensor, level: Tensor) -> Tensor:
    """Clean tokens at any level: at 0 they are ``x`` itself."""
    return x - broadcast(level, x) * v


def eps_from_velocity(x: Tensor, v: Tensor, level: Tensor) -> Tensor:
    """Noise at any level: at 1 it is ``x`` itself."""
    return x + (1 - broadcast(level, x)) * v


def velocity_from_x0(x: Tensor, x0: Tensor, level: Tensor, least: float = LEAST_LEVEL) -> Tensor:
    """Velocity from clean tokens, ``(x - x0) / t``; the division is held at ``least`` near level 0, where x tells no noise."""
    return (x - x0).div_(broadcast(level, x).clamp(min=least))


def velocity_from_eps(x: Tensor, eps: Tensor, level: Tensor, least: float = LEAST_LEVEL) -> Tensor:
    """Velocity from noise, ``(eps - x) / (1 - t)``; the division is held at ``least`` near level 1, where x tells no data."""
    return (eps - x).div_((1 - broadcast(level, x)).clamp(min=least))


def as_velocity(output: Tensor, x: Tensor, level: Tensor, prediction: str) -> Tensor:
    """A network's output as a velocity.

    ``x0`` lets the network predict clean data and turns that into a velocity, on which the loss is taken (Li & He 2025,
    arXiv 2511.13720): data lie on few dimensions, noise on all, and a narrow network cannot carry the noise through.
    ``eps`` does the same with noise. The held division belongs to what is learnt: the loss sees it too.
    """
    if prediction == "velocity":
        return output
    if prediction == "x0":
        return velocity_from_x0(x, output, level)
    if prediction == "eps":
        return velocity_from_eps(x, output, level)
    raise ValueError(f"flow.prediction={prediction} is not one of {', '.join(PREDICTIONS)}")


def velocity_slope(level: Tensor, like: Tensor, prediction: str, least: float = LEAST_LEVEL) -> Tensor:
    """What ``as_velocity`` multiplies an output by, ``b 1|n 1``."""
    if prediction == "velocity":
        return like.new_ones(1, 1, 1)
    t = broadcast(level, like)
    if prediction == "x0":
        return t.clamp(min=least).reciprocal().neg()
    if prediction == "eps":
        return (1 - t).clamp(min=least).reciprocal()
    raise ValueError(f"flow.prediction={prediction} is not one of {', '.join(PREDICTIONS)}")
