"""Parameters by group and FLOPs by running: nothing here is declared by the parts themselves but whose they are.

Groups: embedders, heads, conditioning (noise level, text and its cross-attention), exchange (bridges), and the rest of
the blocks by owner: a modality's name where only its tokens use the weights, ``shared`` where all do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from nava_lab.blocks.base import SHARED, Dims
from nava_lab.budget.flops import IDLE, dummy_inputs, flops_by_part
from nava_lab.budget.thin import Thin
from nava_lab.models.variant import Size, Variant
from nava_lab.streams import TEXT, Interface

ORDER = (SHARED, "exchange", "conditioning", "embedders", "heads")

__all__ = ["Cost", "Owned", "dummy_inputs", "measure", "owned"]


@dataclass(frozen=True)
class Cost:
    """What one denoiser costs.

    Attributes:
        total: parameters.
        groups: parameters by group; they add up to ``total``.
        active: parameters that act on a token of each modality.
        active_per_token: their mean over the tokens of a full clip.
        flops: multiply-adds count two; what one sample needs of one forward pass, by part (``budget.flops``).
        idle_flops: what a forward pass computes of one sample beside that: the expert that it does not take.
    """

    total: int
    groups: Mapping[str, int]
    active: Mapping[str, int]
    active_per_token: float
    flops: Mapping[str, int]
    idle_flops: int = 0

    @property
    def flops_forward(self) -> int:
        """FLOPs that one sample needs of one forward pass."""
        return sum(self.flops.values())

    @property
    def flops_per_sample(self) -> int:
        """Training FLOPs of one sample: a forward pass and a backward pass of twice its cost."""
        return 3 * self.flops_forward


@dataclass(frozen=True)
class Owned:
    """Whose a parameter tensor is: its group, the modality whose tokens it acts on (None: all), its count, and whether it is
    the second of two experts, of which a token meets one."""

    group: str
    owner: str | None
    count: int
    idle: bool


def owned(module: nn.Module, thin: Thin | None = None) -> Iterator[Owned]:
    """Every parameter tensor, by the nearest tags above it; as often as it stands in the model that ``thin`` is short for."""
    yield from _owned(module, "", None, None, False, thin)


def _owned(module: nn.Module, path: str, group: str | None, owner: str | None, idle: bool, thin: Thin | None) -> Iterator[Owned]:
    group = getattr(module, "budget_group", group)
    owner = getattr(module, "owner", owner)
    idle = idle or getattr(module, "idle", False)
    for parameter in module.parameters(recurse=False):
        yield Owned(group or owner or SHARED, owner, parameter.numel() * (thin.times(path) if thin else 1), idle)
    for name, child in module.named_children():
        yield from _owned(child, f"{path}.{name}".lstrip("."), group, owner, idle, thin)


def measure(variant: Variant, interface: Interface, size: Size | Dims) -> Cost:
    """The cost of a variant at a size, without allocating it."""
    thin = Thin.of(variant, interface, size)
    groups: Counter[str] = Counter()
    active: Counter[str] = Counter()
    names = (*interface.modalities, *((TEXT,) if thin.model.in_sequence else ()))
    for part in owned(thin.model, thin):
        groups[part.group] += part.count
        for name in names if part.owner is None else (part.owner,):
            active[name] += 0 if part.idle else part.count
    tokens = {name: interface.modalities[name].tokens if name != TEXT else interface.text.length for name in names}
    mean = sum(active[name] * count for name, count in tokens.items()) / sum(tokens.values())
    order = (*names, *ORDER)
    ordered = {name: groups[name] for name in (*order, *sorted(set(groups) - set(order))) if name in groups}
    flops = flops_by_part(thin, interface)
    idle = flops.pop(IDLE, 0)
    return Cost(sum(groups.values()), ordered, {name: active[name] for name in names}, mean, flops, idle)
