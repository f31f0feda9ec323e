"""The matrix products of a piece of work, recorded by running it, and their time alone: the floor under a training step.

In the floor: every ``mm``, ``addmm``, ``bmm``, ``baddbmm``, convolution and fused attention that the work calls, forward and
backward, as often as it calls them, at the same sizes, memory layouts and type, with the same threads, one after the other, on
inputs that lie ready in memory. Not in it: biases (``addmm`` is timed as ``mm``), norms, activations, modulation, rotary
turns, copies, drawing, the loss, sums of gradients, the optimiser, Python. Fused attention is taken whole, with its softmax, for
its two products have no call of their own.

A product that the work could have saved is in its floor, too; ``flops`` tells, for they can be held against the budget's count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PLAIN = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}  # which arguments are multiplied
ATTENTION = "_scaled_dot_product"
CONVOLUTIONS = ("convolution", "convolution_backward")


@dataclass(frozen=True)
class Spec:
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @staticmethod
    def of(tensor: Tensor) -> Spec:
        return Spec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, str(tensor.device))

    def made(self) -> Tensor:
        """A tensor like it: standard normal where that is a number, else all zero."""
        reach = (
            1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)) if 0 not in self.shape else 0
        )
        flat = torch.zeros(reach, dtype=self.dtype, device=self.device)
        flat = flat.normal_() if self.dtype.is_floating_point else flat
        return flat.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Product:
    """One call.

    Attributes:
        kind: "mm", "bmm", "attention", "attention_backward" or a convolution's name.
        inputs: what is multiplied; of attention queries, keys, values and, where there is one, the mask.
        other: the further arguments of a convolution, with ``...`` where a tensor stood.
    """

    kind: str
    inputs: tuple[Spec, ...]
    other: tuple[Any, ...] = field(default=())

    @property
    def flops(self) -> int:
        """Multiply-adds count two; a fused backward pass of attention makes five products where the forward makes two."""
        shapes = [part.shape for part in self.inputs]
        if self.kind in ("mm", "bmm"):
            return 2 * math.prod(shapes[0]) * shapes[1][-1]
        if self.kind in ("attention", "attention_backward"):
            query, key = shapes[:2]
            return (4 if self.kind == "attention" else 10) * math.prod(query) * key[-2]
        return 0  # a convolution's are not counted

    def call(self) -> Callable[[], Any]:
        """The product alone, on inputs of its own."""
        inputs = [part.made() for part in self.inputs]
        if self.kind in ("mm", "bmm"):
            multiply = torch.mm if self.kind == "mm" else torch.bmm
            return lambda: multiply(*inputs)
        if self.kind in CONVOLUTIONS:
            convolve, queue = getattr(torch.ops.aten, self.kind).default, iter(inputs)
            arguments = [next(queue) if part is ... else part for part in self.other]
            return lambda: convolve(*arguments)
        query, key, value = (part.requires_grad_(self.kind == "attention_backward") for part in inputs[:3])
        mask = inputs[3] if len(inputs) > 3 else None

        def forward() -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=query.shape[1] != key.shape[1])

        if self.kind == "attention":
            return forward
        with torch.enable_grad():
            out = forward()
        gradient = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, (query, key, value), gradient, retain_graph=True)


class Recorder(TorchDispatchMode):
    """Counts the matrix products of whatever runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name, given = func._opname if hasattr(func, "_opname") else func.__name__.split(".")[0], kwargs or {}
        if name in PLAIN:
            kind = "mm" if name.endswith("mm") and not name.endswith("bmm") else "bmm"
            self.products[Product(kind, tuple(Spec.of(args[place]) for place in PLAIN[name]))] += 1
        elif name.startswith(ATTENTION):
            backward = name.endswith("backward")
            parts = [part for part in args[backward : 3 + backward] if isinstance(part, Tensor)]
            mask = given.get("attn_mask", given.get("attn_bias"))
            mask = next((part for part in (mask, *args[3:5]) if isinstance(part, Tensor)), None) if not backward else mask
            parts += [] if mask is None else [mask]
            self.products[Product("attention_backward" if backward else "attention", tuple(map(Spec.of, parts)))] += 1
        elif name in CONVOLUTIONS:
            tensors = tuple(Spec.of(part) for part in args if isinstance(part, Tensor))
            other = tuple(_frozen(part) for part in args)
            self.products[Product(name, tensors, other)] += 1
        return func(*args, **given)


def _frozen(part: Any) -> Any:
    return ... if isinstance(part, Tensor) else tuple(part) if isinstance(part, list) else part


@contextmanager
def recorded() -> Iterator[Counter[Product]]:
    """The products of what runs inside, and how often each is called."""
    with Recorder() as recorder:
        yield recorder.products


def alone(products: Counter[Product]) -> Callable[[], None]:
    """All of them in one call; their inputs are made now."""
    calls = [(product.call(), count) for product, count in products.items()]

    def run() -> None:
        for call, count in calls:
            for _ in range(count):
                call()

    return run


def flops(products: Counter[Product]) -> int:
    """What they add up to."""
    return sum(count * product.flops for product, count in products.items())
