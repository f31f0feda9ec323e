"""Attention behind one call, whichever backend computes it.

What every backend promises, and tests/laws hold it to: a query that sees nothing gets exactly 0, with finite gradients;
what stands in keys that nobody sees, NaN included, reaches neither outputs nor gradients.

Shape letters: b batch, q queries, k keys, h heads, g key-value heads (h is a multiple of g), e channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nava_lab.attention.masks import Causal, Mask, Segments, Window
from nava_lab.attention.visible import Ruled, Visible
from nava_lab.registry import backends

AUTO = "auto"
SPARSE_FROM = 2048  # keys from which skipping blocks can pay for making the block mask


class Backend:
    """A way to compute attention."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, visible: Visible | None) -> Tensor:
        """``b q h e`` from at least one query and one key; keys that may hold anything are already emptied."""
        raise TypeError(f"{type(self).__name__} does not say how it computes")

    def refusal(self, device: str, gradients: bool) -> str | None:
        """Why it cannot compute on this kind of device, with or without gradients; None where it can."""
        return None


@dataclass(frozen=True)
class Choice:
    """Which backend was taken, and why."""

    backend: str
    why: str


def choose(device: str, gradients: bool, visible: Visible | None = None, keys: int = 0) -> Choice:
    """What ``auto`` takes, by kind of device, mask and whether gradients are needed."""
    if device != "cuda":
        trains = "which trains here; flex only runs forward on a CPU, and slowly" if gradients else "the fastest here"
        return Choice("sdpa", f"{device}: fused attention, {trains}")
    if visible is None:
        return Choice("sdpa", "cuda without a mask: fused attention")
    if isinstance(visible, Ruled) and keys >= SPARSE_FROM:
        sparse = [type(leaf).__name__ for leaf in visible.mask.leaves() if _skips(leaf, visible)]
        if sparse:
            return Choice("flex", f"cuda, {keys} keys under {', '.join(sparse)}: whole blocks can be skipped")
    return Choice("sdpa", "cuda with a mask that skips few blocks: fused attention")


def _skips(leaf: Mask, visible: Ruled) -> bool:
    """Whether a rule leaves whole blocks of the table between these two rows empty."""
    return isinstance(leaf, Window | Causal | Segments) and visible.hides(leaf)


def _table(table: Tensor, batch: int, queries: int, keys: int) -> Visible:
    """A table of who sees whom, if it is one for these tokens."""
    if table.dtype != torch.bool or tuple(table.shape) not in ((1, queries, keys), (batch, queries, keys)):
        raise ValueError(
            f"a table of who sees whom is bool, {batch} (or 1) x {queries} x {keys} here, not {table.dtype} {tuple(table.shape)}"
        )
    return Visible(table, (queries, keys))


@cache
def _backend(name: str) -> Backend:
    return backends.get(name)()


@cache
def known(name: str) -> None:
    """Refuse a backend that does not exist."""
    if name not in (AUTO, *backends):
        raise ValueError(f"attention.backend={name} is not one of {', '.join((AUTO, *backends))}")


def check(name: str, device: str, gradients: bool) -> None:
    """Refuse a backend that does not exist, or that cannot do what is asked of it."""
    known(name)
    if name == AUTO:
        return
    reason = _backend(name).refusal(device, gradients)
    if reason is not None:
        raise ValueError(f"attention.backend={name}: {reason}; attention.backend={AUTO} takes one that works")


def attend(
    query: Float[Tensor, "b q h e"],
    key: Float[Tensor, "b k g e"],
    value: Float[Tensor, "b k g e"],
    visible: Visible | Bool[Tensor, "_ q k"] | None = None,
    backend: str = AUTO,
) -> Float[Tensor, "b q h e"]:
    """Softmax attention where ``visible`` allows it, by the named backend; ``auto`` chooses one."""
    if isinstance(visible, Tensor):
        visible = _table(visible, len(query), query.shape[1], key.shape[1])
    device = query.device.type
    gradients = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    name = choose(device, gradients, visible, key.shape[1]).backend if backend == AUTO else backend
    check(name, device, gradients)
    if not query.shape[1] or not key.shape[1]:
        return query * 0.0
    if visible is not None and visible.unseen is not None:
        empty = visible.unseen[..., None, None]
        key, value = key.masked_fill(empty, 0.0), value.masked_fill(empty, 0.0)
    return _backend(name)(query, key, value, visible)
