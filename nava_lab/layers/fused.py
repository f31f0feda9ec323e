"""Elementwise work around the matrix products with few passes over memory, forward and backward, for eager CPUs.

At sandbox sizes a token row is a megabyte and its elementwise work costs more than its products: autograd writes a new tensor
for every operation of a formula and for every derivative of one. Each function here knows its derivative as a formula, works in
place on what it has just made, and keeps little for the backward pass. Its plain twin, a few lines of PyTorch, stands beside it
and is what it is held to, values and gradients (``tests/unit/test_fused.py``); the twin serves wherever something else fuses or
transforms: on other devices, under compilation, autocast and ``torch.func``. A second derivative is refused by PyTorch, aloud;
``torch.func`` has it.

Shape letters: b batch, n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

WIDE = (torch.float32, torch.float64)


def eager(*tensors: Tensor) -> bool:
    """Whether the formulas of this file serve here: on a CPU, in one wide type, and nobody transforms or compiles the call."""
    if torch.compiler.is_compiling():
        return False
    first = tensors[0]
    return (
        first.dtype in WIDE
        and all(part.device.type == "cpu" and part.dtype == first.dtype for part in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


# RMS norm: y = x r w with r = (mean(x^2) + eps)^(-1/2)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm over the last axis, which may lie in a wider row of memory (queries among queries, keys and values)."""
    if not eager(x, *(() if weight is None else (weight,))):
        return plain_rms_norm(x, weight, eps)
    return _RmsNorm.apply(x, weight, eps)


def plain_rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The same, as PyTorch has it."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class _RmsNorm(Function):
    """With g the gradient of y: that of w is the sum of r g x, that of x is r w g - x r^3 mean(w g x)."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.addcmul(x.new_tensor(eps), length, length, value=1 / x.shape[-1]).rsqrt_()
        context.save_for_backward(x, weight, scale)
        y = x * scale
        return y if weight is None else y.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = context.saved_tensors
        products = gradient * x
        to_weight = None
        if weight is not None and context.needs_input_grad[1]:
            to_weight = products.reshape(-1, x.shape[-1]).mT.mv(scale.reshape(-1))
        along = products.sum(-1, keepdim=True) if weight is None else products.matmul(weight).unsqueeze(-1)
        to_x = gradient * scale
        if weight is not None:
            to_x.mul_(weight)
        return to_x.addcmul_(x, along * scale.pow(3), value=-1 / x.shape[-1]), to_weight, None


# Turning pairs of channels: complex multiplication


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Neighbouring pairs of the last axis as complex numbers, times ``turns`` (complex, half as long, broadcast)."""
    return _Turned.apply(x, turns)


def turns_as_complex(x: Tensor) -> bool:
    """Whether the pairs of ``x`` lie in memory as complex numbers do."""
    strides = x.stride()
    return strides[-1] == 1 and x.storage_offset() % 2 == 0 and all(step % 2 == 0 for step in strides[:-1])


class _Turned(Function):
    """The gradient is turned back."""

    @staticmethod
    def forward(context: Any, x: Tensor, turns: Tensor) -> Tensor:
        context.save_for_backward(turns)
        return _times(x, turns)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient if turns_as_complex(gradient) else gradient.contiguous()
        return _times(gradient, context.saved_tensors[0].conj_physical()), None


def _times(x: Tensor, turns: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


# Modulation, of a row whose spans may have vectors of their own: shift + x (1 + scale), and x + gate y


def modulated_spans(x: Tensor, lengths: Sequence[int], shifts: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """``shift + x (1 + scale)``, span by span; vectors are ``1|b 1|length d``."""
    if not (eager(x, *shifts, *scales) and _fit(x, *shifts, *scales)):
        return plain_modulated_spans(x, lengths, shifts, scales)
    return _Modulated.apply(x, tuple(lengths), *shifts, *scales)


def plain_modulated_spans(x: Tensor, lengths: Sequence[int], shifts: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    parts = x.split(list(lengths), 1)
    return _row([torch.addcmul(b, part, 1 + a) for part, b, a in zip(parts, shifts, scales, strict=True)])


class _Modulated(Function):
    @staticmethod
    def forward(context: Any, x: Tensor, lengths: tuple[int, ...], *vectors: Tensor) -> Tensor:
        shifts, scales = vectors[: len(lengths)], vectors[len(lengths) :]
        factors = [1 + scale for scale in scales]
        context.save_for_backward(x, *factors)
        context.lengths, context.shapes = lengths, [part.shape for part in vectors]
        made = torch.empty_like(x)
        for part, out, shift, factor in zip(x.split(lengths, 1), made.split(lengths, 1), shifts, factors, strict=True):
            torch.addcmul(shift, part, factor, out=out)
        return made

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = context.saved_tensors
        lengths, count = context.lengths, len(context.lengths)
        to_shifts = _summed(gradient, lengths, context.shapes[:count])
        to_scales = _summed(gradient * x, lengths, context.shapes[count:])
        return _scaled(gradient, lengths, factors), None, *to_shifts, *to_scales


def gated_spans(x: Tensor, y: Tensor, lengths: Sequence[int], gates: Sequence[Tensor]) -> Tensor:
    """``x + gate y``, span by span; gates are ``1|b 1|length d``."""
    if not (eager(x, y, *gates) and _fit(x, y, *gates)):
        return plain_gated_spans(x, y, lengths, gates)
    return _Gated.apply(x, y, tuple(lengths), *gates)


def plain_gated_spans(x: Tensor, y: Tensor, lengths: Sequence[int], gates: Sequence[Tensor]) -> Tensor:
    parts = zip(x.split(list(lengths), 1), y.split(list(lengths), 1), gates, strict=True)
    return _row([torch.addcmul(a, gate, b) for a, b, gate in parts])


def _fit(x: Tensor, *others: Tensor) -> bool:
    """Whether the result is as large as ``x``."""
    return all(part.ndim == x.ndim and part.shape[0] in (1, x.shape[0]) for part in others)


def _row(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), 1) if len(parts) > 1 else parts[0]


class _Gated(Function):
    @staticmethod
    def forward(context: Any, x: Tensor, y: Tensor, lengths: tuple[int, ...], *gates: Tensor) -> Tensor:
        context.save_for_backward(y, *gates)
        context.lengths = lengths
        made = torch.empty_like(x)
        for own, part, out, gate in zip(*(row.split(lengths, 1) for row in (x, y, made)), gates, strict=True):
            torch.addcmul(own, part, gate, out=out)
        return made

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, *gates = context.saved_tensors
        to_gates = _summed(gradient * y, context.lengths, [gate.shape for gate in gates])
        return gradient, _scaled(gradient, context.lengths, gates), None, *to_gates


def _scaled(row: Tensor, lengths: tuple[int, ...], factors: Sequence[Tensor]) -> Tensor:
    made = torch.empty_like(row)
    for part, out, factor in zip(row.split(lengths, 1), made.split(lengths, 1), factors, strict=True):
        torch.mul(part, factor, out=out)
    return made


def _summed(row: Tensor, lengths: tuple[int, ...], shapes: Sequence[torch.Size]) -> list[Tensor]:
    return [part.sum_to_size(shape) for part, shape in zip(row.split(lengths, 1), shapes, strict=True)]
