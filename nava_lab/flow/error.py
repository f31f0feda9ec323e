"""What a network's output misses the velocity by, per token: one formula forward, one backward.

The error is affine in the output, so its gradient is the error itself times a slope that belongs to the level:

    e = slope * output + rest - (eps - x0),     d mean(e^2) / d output = 2 slope e / channels

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nava_lab.flow.path import as_velocity, velocity, velocity_slope
from nava_lab.layers.fused import eager


def squared_error(
    output: Float[Tensor, "b n c"], x: Tensor, x0: Tensor, eps: Tensor, level: Tensor, prediction: str
) -> Float[Tensor, "b n"]:
    """Mean over channels of the squared difference to the velocity, of what the network put out at ``x``."""
    if not eager(output, x, x0, eps) or any(part.requires_grad for part in (x, x0, eps, level)):
        return plain_squared_error(output, x, x0, eps, level, prediction)
    return _SquaredError.apply(output, x, x0, eps, level, prediction)


def plain_squared_error(output: Tensor, x: Tensor, x0: Tensor, eps: Tensor, level: Tensor, prediction: str) -> Tensor:
    """The same, as it reads."""
    return (as_velocity(output, x, level, prediction) - velocity(x0, eps)).square().mean(-1)


class _SquaredError(Function):
    @staticmethod
    def forward(
        context: Any, output: Tensor, x: Tensor, x0: Tensor, eps: Tensor, level: Tensor, prediction: str
    ) -> Float[Tensor, "b n"]:
        predicted = as_velocity(output, x, level, prediction)
        error = predicted - eps if predicted is output else predicted.sub_(eps)
        error.add_(x0)
        context.save_for_backward(error, velocity_slope(level, x, prediction))
        return torch.linalg.vector_norm(error, dim=-1).square_().div_(error.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        error, slope = context.saved_tensors
        return error * (gradient.unsqueeze(-1) * slope * (2 / error.shape[-1])), None, None, None, None, None
