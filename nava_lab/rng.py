"""Random numbers that belong to an index, not to an order.

Two sources, both pure functions of what they are asked for:

- ``uniform`` hashes counters with integer arithmetic, vectorised: the same numbers on any device, in any batch split.
  Worlds draw their events from it.
- ``generators`` makes one seeded ``torch.Generator`` per sample, for what is drawn in bulk (noise).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _shift_right(x: Tensor, by: int) -> Tensor:
    """Logical (zero-filling) right shift of int64."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014), a bijection whose output bits all depend on all input bits."""
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def uniform(seed: int, index: Tensor, draws: int) -> Tensor:
    """Numbers in [0, 1) that depend on (seed, index, draw) alone.

    Args:
        seed: from ``stable_seed``.
        index: int64, any shape; one independent row of numbers each.
        draws: how many numbers each index gets.

    Returns:
        float64 of shape ``(*index.shape, draws)``, with 53 random bits each.
    """
    rows = _mix(index.to(torch.int64) * _GOLDEN + seed)
    counter = torch.arange(1, draws + 1, device=index.device, dtype=torch.int64) * _GOLDEN
    bits = _mix(_mix(rows.unsqueeze(-1) + counter))
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def generators(purpose: str, seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per sample, seeded by (purpose, seed, index): results never depend on the batch they were drawn in."""
    made = []
    for index in indices:
        generator = torch.Generator(device=device)
        generator.manual_seed(stable_seed(purpose, seed, int(index)))
        made.append(generator)
    return made
