"""Rotary positions on a clock in seconds.

Each pair of a head's channels turns by ``position * frequency``; a logit then depends on differences of positions only
(Su et al. 2021, RoFormer). The head is cut in three: time, row and column, in the proportions of Wan2.1
(``d - 4 (d // 6)``, ``2 (d // 6)``, ``2 (d // 6)``). Positions are seconds times ``hz``, so streams of any two rates
share one clock: at 6 Hz and a 25 Hz audio stream the audio's frequencies come out scaled by 6/25 = 0.24, NAVA's factor.

Shape letters: b batch, n tokens, h heads, e channels of a head, p = e / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Table = tuple[Tensor, Tensor]  # cosines and signed sines, each "b n 1 e"


@dataclass(frozen=True)
class Clock:
    """How seconds become angles.

    Attributes:
        hz: position units per second.
        theta: ratio of the fastest to (nearly) the slowest turning pair.
    """

    hz: float = 12.5
    theta: float = 10_000.0

    def __post_init__(self) -> None:
        if self.hz <= 0 or self.theta <= 1:
            raise ValueError(f"clock.hz must be positive and clock.theta above 1, not {self.hz} and {self.theta}")

    def table(self, positions: Float[Tensor, "b n 3"], head_dim: int, time_only: bool = False) -> Table:
        """Cosines and signed sines for tokens at ``positions`` (seconds, row, column)."""
        parts = (head_dim, 0, 0) if time_only else split(head_dim)
        scale = (self.hz, 1.0, 1.0)
        angles = [
            (positions[..., axis : axis + 1] * scale[axis]) * _frequencies(width, self.theta, positions.device)
            for axis, width in enumerate(parts)
            if width
        ]
        angle = torch.cat(angles, -1).repeat_interleave(2, -1).unsqueeze(2)
        sign = torch.tensor((-1.0, 1.0), device=angle.device).repeat(head_dim // 2)
        return angle.cos(), angle.sin() * sign


class TimeClock(Clock):
    """The clock where no stream has rows or columns: every channel of a head tells time, as in an exchange between towers."""

    def table(self, positions: Float[Tensor, "b n 3"], head_dim: int, time_only: bool = False) -> Table:
        return super().table(positions, head_dim, time_only=True)


def clock_for(clock: Clock, grids: Iterable[tuple[int, int]]) -> Clock:
    """The clock that suits streams of these grids; channels kept for rows and columns that nobody has would be lost."""
    return clock if any(grid != (1, 1) for grid in grids) else TimeClock(clock.hz, clock.theta)


def split(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head for time, row and column; each even."""
    if head_dim % 2 or head_dim < 2:
        raise ValueError(f"a rotary head needs an even number of channels, not {head_dim}")
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def _frequencies(width: int, theta: float, device: torch.device) -> Float[Tensor, " p"]:
    return theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)


def rotate(x: Float[Tensor, "b n h e"], table: Table) -> Float[Tensor, "b n h e"]:
    """Turn each neighbouring pair of channels by its token's angle."""
    cos, sin = table
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + swapped * sin).to(x.dtype)
