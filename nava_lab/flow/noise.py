"""Normal noise, each sample's from its own generator: what a sample gets depends on no other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nava_lab.streams import onto


def normal_like(values: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """Standard normal numbers of every entry's shape ``b n c``; row i of all entries comes from ``generators[i]``.

    Raises:
        ValueError: there are not as many generators as samples.
    """
    for name, value in values.items():
        if len(value) != len(generators):
            raise ValueError(
                f"noise for {len(value)} samples of {name} needs as many generators, not {len(generators)}: one each"
            )
    where = generators[0].device if generators else None
    drawn = {name: torch.empty(value.shape, dtype=value.dtype, device=where) for name, value in values.items()}
    for row, generator in enumerate(generators):
        for noise in drawn.values():
            noise[row].normal_(generator=generator)
    return {name: onto(drawn[name], value.device) for name, value in values.items()}
