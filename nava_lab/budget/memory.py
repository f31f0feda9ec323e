"""What training a model needs to hold, estimated without allocating it.

Weights, gradients, two moments of AdamW and one average of the weights, all in float32, and the activations that a forward
pass keeps for its backward pass. Activations are counted by running one full-length sample on the meta device with fused
attention, and multiplied by the batch; nothing is recomputed or sharded, and what the backward pass itself needs for a moment
(the largest layer's gradients) is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nava_lab.blocks.base import Dims
from nava_lab.budget.flops import dummy_inputs
from nava_lab.budget.thin import Thin
from nava_lab.models.variant import Size, Variant
from nava_lab.streams import Interface

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Memory:
    """Bytes by what they hold.

    Attributes:
        weights: of the model; gradients need as many.
        optimizer: moments of AdamW.
        average: of the weights; 0 where none is kept.
        activations: of one sample.
    """

    weights: int
    optimizer: int
    average: int
    activations: int

    def total(self, batch: int) -> int:
        return 2 * self.weights + self.optimizer + self.average + batch * self.activations

    def parts(self, batch: int) -> Mapping[str, int]:
        return {
            "weights": self.weights,
            "gradients": self.weights,
            "optimizer": self.optimizer,
            "average": self.average,
            "activations": batch * self.activations,
        }


def memory(variant: Variant, interface: Interface, size: Size | Dims, average: bool = True) -> Memory:
    """The estimate; ``average`` is whether training keeps an average of the weights."""
    thin = Thin.of(variant, interface, size, twice=True)
    weights = FLOAT * thin.parameters
    return Memory(weights, 2 * weights, weights if average else 0, _activations(thin, interface))


def _activations(thin: Thin, interface: Interface) -> int:
    """Bytes that the backward pass of one sample wants kept, each storage once."""
    model = thin.model
    known = {_storage(parameter) for parameter in model.parameters()}
    kept: Counter[str] = Counter()
    alive: list[Tensor] = []  # so that no storage's identity is given away twice
    where = [""]

    def note(tensor: Tensor) -> Tensor:
        identity = _storage(tensor)
        if identity not in known:
            known.add(identity)
            alive.append(tensor)
            kept[where[0]] += tensor.untyped_storage().nbytes()
        return tensor

    def enter(path: str) -> None:
        where[0] = path

    hooks = []
    for name, block in model.blocks.named_children():
        hooks.append(block.register_forward_pre_hook(lambda module, given, name=name: enter(f"blocks.{name}")))
        hooks.append(block.register_forward_hook(lambda module, given, made: enter("")))
    backend, model.backend = model.backend, _fused  # type: ignore[assignment]
    try:
        with saved_tensors_hooks(note, lambda tensor: tensor), torch.enable_grad():
            model(*dummy_inputs(interface, 1, "meta"))
    finally:
        model.backend = backend
        for hook in hooks:
            hook.remove()
    return sum(bytes_ * thin.times(f"{path}.") for path, bytes_ in kept.items())


class _Fused(torch.autograd.Function):
    """What fused attention keeps: queries, keys, values, its output and a number per query and head."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        made = torch.empty_like(query)
        context.save_for_backward(query, key, value, made, query.new_empty(query.shape[:-1]))
        return made

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> Any:
        raise RuntimeError("the memory estimate runs no backward pass")


def _fused(query: Tensor, key: Tensor, value: Tensor, visible: object) -> Tensor:
    return _Fused.apply(query, key, value)


def _storage(tensor: Tensor | nn.Parameter) -> int:
    return tensor.untyped_storage()._cdata
