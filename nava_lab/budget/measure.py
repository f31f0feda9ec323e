"""Parameters by group and FLOPs by running: nothing here is declared by the parts themselves but whose they are.

Groups: embedders, heads, conditioning (noise level, text and its cross-attention), exchange (bridges), and the rest of
the blocks by owner: a modality's name where only its tokens use the weights, ``shared`` where all do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nava_lab.blocks.base import SHARED, Dims
from nava_lab.conditioning.timbre import blank_references
from nava_lab.models.denoiser import Denoiser, on_meta
from nava_lab.models.variant import Size, Variant
from nava_lab.streams import TEXT, Interface, Stream

ORDER = (SHARED, "exchange", "conditioning", "embedders", "heads")


@dataclass(frozen=True)
class Cost:
    """What one denoiser costs.

    Attributes:
        total: parameters.
        groups: parameters by group; they add up to ``total``.
        active: parameters that act on a token of each modality.
        active_per_token: their mean over the tokens of a full clip.
        flops_forward: multiply-adds count two; one sample, one forward pass.
    """

    total: int
    groups: Mapping[str, int]
    active: Mapping[str, int]
    active_per_token: float
    flops_forward: int

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


def owned(module: nn.Module, group: str | None = None, owner: str | None = None, idle: bool = False) -> Iterator[Owned]:
    """Every parameter tensor, by the nearest tags above it."""
    group = getattr(module, "budget_group", group)
    owner = getattr(module, "owner", owner)
    idle = idle or getattr(module, "idle", False)
    for parameter in module.parameters(recurse=False):
        yield Owned(group or owner or SHARED, owner, parameter.numel(), idle)
    for child in module.children():
        yield from owned(child, group, owner, idle)


def flops_forward(model: Denoiser, interface: Interface) -> int:
    """FLOPs of one full-length sample, counted by running the model on the meta device.

    The reference attention is counted, for the counter knows its matrix products on every device.
    """
    backend, model.backend = model.backend, "reference"
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*dummy_inputs(interface, 1, "meta"))
    finally:
        model.backend = backend
    return counter.get_total_flops()


def dummy_inputs(
    interface: Interface, batch: int, device: torch.device | str
) -> tuple[dict[str, Stream], dict[str, torch.Tensor], Stream]:
    """Full-length inputs of the right shapes: streams, one shared level, text."""
    streams = {
        name: Stream(
            torch.zeros(batch, spec.tokens, spec.channels + spec.context, device=device),
            torch.zeros(1, spec.tokens, 3, device=device),
        )
        for name, spec in interface.modalities.items()
    }
    level = torch.zeros(batch, device=device)
    text = interface.text
    if text.vocabulary:
        words = torch.ones(batch, text.length, dtype=torch.long, device=device)
    else:
        words = torch.zeros(batch, text.length, text.features, device=device)
    places = Stream(words, torch.zeros(1, text.length, 3, device=device))
    return streams, dict.fromkeys(streams, level), blank_references(places, text)


def measure(variant: Variant, interface: Interface, size: Size | Dims) -> Cost:
    """The cost of a variant at a size, without allocating it."""
    model = on_meta(variant, interface, size)
    groups: Counter[str] = Counter()
    active: Counter[str] = Counter()
    names = (*interface.modalities, *((TEXT,) if model.in_sequence else ()))
    for part in owned(model):
        groups[part.group] += part.count
        for name in names if part.owner is None else (part.owner,):
            active[name] += 0 if part.idle else part.count
    tokens = {name: interface.modalities[name].tokens if name != TEXT else interface.text.length for name in names}
    mean = sum(active[name] * count for name, count in tokens.items()) / sum(tokens.values())
    order = (*names, *ORDER)
    ordered = {name: groups[name] for name in (*order, *sorted(set(groups) - set(order))) if name in groups}
    return Cost(sum(groups.values()), ordered, {name: active[name] for name in names}, mean, flops_forward(model, interface))
