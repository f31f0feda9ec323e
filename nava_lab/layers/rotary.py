"""Rotary positions on a clock in seconds.

Each pair of a head's channels turns by ``position * frequency``; a logit then depends on differences of positions only
(Su et al. 2021, RoFormer). Positions are seconds times ``hz``, so streams of any two rates share one clock: at 6 Hz and a
25 Hz audio stream the audio's frequencies come out scaled by 6/25 = 0.24, NAVA's factor. Two layouts give channels to time,
row and column: ``axes`` cuts every head in three (Wan2.1: ``d - 4 (d // 6)``, ``2 (d // 6)``, ``2 (d // 6)``); ``spread`` runs
through frequencies across all heads, each frequency for all axes, or for time alone in a row of tokens without rows and columns
(LTX-2).

Shape letters: b batch, n tokens, h heads, e channels of a head, p = e / 2 pairs, f frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Float
from torch import Tensor

from nava_lab.layers.fused import eager, turned, turns_as_complex
from nava_lab.streams import ModalitySpec

Table = tuple[Tensor, Tensor]  # cosines and signed sines, each "b n 1|h e"
LAYOUTS = ("axes", "spread")
ANCHORS = ("centre", "start")


@dataclass(frozen=True)
class Clock:
    """How seconds become angles.

    Attributes:
        hz: position units per second; 0 for one unit per time step of ``unit``.
        unit: modality whose time step is one unit where ``hz`` is 0 (MOVA's exchange: the audio's, so that audio counts 0, 1, 2);
            empty for the first one (Wan, NAVA, Ovi: the video's).
        theta: ratio of the fastest to (nearly) the slowest turning pair.
        patch_hz: position units per row or column.
        layout: "axes" or "spread".
        anchor: whether a token stands at the "centre" of its stretch of time, or at its "start" (Wan, NAVA, Ovi).
        index: every modality counts its own tokens (MOVA's towers); exchanges of dedicated attentions stay on one clock, of
            ``hz`` or ``unit``.
        first_frame: the first token of a causal codec stands for one frame, not for a whole stride (LTX-2).
        scale: factor of a modality's time (Ovi: audio 0.19676 of a video step, of tokens counted).
    """

    hz: float = 12.5
    unit: str = ""
    theta: float = 10_000.0
    patch_hz: float = 1.0
    layout: str = field(default="axes", metadata={"choices": LAYOUTS})
    anchor: str = field(default="centre", metadata={"choices": ANCHORS})
    index: bool = False
    first_frame: bool = False
    scale: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hz < 0 or self.theta <= 1 or self.patch_hz <= 0:
            raise ValueError(
                f"clock.hz={self.hz} must not be negative, clock.theta={self.theta} must be above 1 and "
                f"clock.patch_hz={self.patch_hz} positive"
            )
        for value, name, allowed in ((self.layout, "layout", LAYOUTS), (self.anchor, "anchor", ANCHORS)):
            if value not in allowed:
                raise ValueError(f"clock.{name}={value} is not one of {', '.join(allowed)}")
        if self.unit and self.hz:
            raise ValueError(
                f"clock.unit={self.unit} says whose time step is one unit where clock.hz=0, and clock.hz={self.hz:g} says it in "
                "seconds: leave one of them out"
            )

    def place(self, positions: Float[Tensor, "b n 3"], spec: ModalitySpec, name: str, aligned: bool = False) -> Tensor:
        """Where a modality's tokens stand on this clock, still in seconds (row and column untouched).

        Args:
            positions: seconds at each token's centre, row, column.
            spec: the modality's time step and codec.
            name: the modality.
            aligned: on one clock for all, whatever ``index`` and ``scale`` say: what an exchange between towers reads.
        """
        seconds, place = positions[..., :1], positions[..., 1:]
        moved = seconds
        if self.first_frame or self.anchor == "start":
            start, end = seconds - spec.seconds / 2, seconds + spec.seconds / 2
            if self.first_frame:
                late = spec.seconds * (1 - 1 / spec.stride)
                start, end = (start - late).clamp(min=0), (end - late).clamp(min=0)
            moved = start if self.anchor == "start" else (start + end) / 2
        if not aligned:
            factor = self.scale.get(name, 1.0)
            if self.index:
                factor /= spec.seconds * self.hz
            moved = moved if factor == 1.0 else moved * factor
        return positions if moved is seconds else torch.cat((moved, place), -1)

    def table(self, positions: Float[Tensor, "b n 3"], head_dim: int, time_only: bool = False, heads: int = 1) -> Table:
        """Cosines and signed sines for tokens at ``positions`` (seconds, row, column)."""
        angle = self._spread(positions, head_dim, time_only, heads) if self.layout == "spread" else self._cut(
            positions, head_dim, time_only
        )  # fmt: skip
        sign = (torch.arange(head_dim, device=angle.device) % 2 * 2 - 1).float()
        return angle.cos(), angle.sin() * sign

    def _cut(self, positions: Tensor, head_dim: int, time_only: bool) -> Float[Tensor, "b n 1 e"]:
        parts = (head_dim, 0, 0) if time_only else split(head_dim)
        scale = (self.hz, self.patch_hz, self.patch_hz)
        angles = [
            (positions[..., axis : axis + 1] * scale[axis]) * _frequencies(width, self.theta, positions.device)
            for axis, width in enumerate(parts)
            if width
        ]
        return torch.cat(angles, -1).repeat_interleave(2, -1).unsqueeze(2)

    def _spread(self, positions: Tensor, head_dim: int, time_only: bool, heads: int) -> Float[Tensor, "b n h e"]:
        """Frequencies from half a turn over the reach ``pi theta / hz`` up to ``hz``, across the channels of all heads.

        Channels that do not divide among the axes stand still, at the front of the first head. The operations are those of
        the released code, in its order: at theta = 10,000 another rounding would turn a fast pair by a thousandth.
        """
        axes, width = (1 if time_only else 3), head_dim * heads
        count = width // (2 * axes)
        steps = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device=positions.device)
        frequencies = (self.theta**steps * torch.pi / 2).to(positions.dtype)
        reach = [round(math.pi * self.theta / unit, 9) for unit in (self.hz, self.patch_hz, self.patch_hz)]
        centred = [positions[..., 0], positions[..., 1] + 0.5, positions[..., 2] + 0.5]
        part = torch.stack([centred[axis] / reach[axis] for axis in range(axes)], -1)
        angle = ((part.unsqueeze(-1) * 2 - 1) * frequencies).transpose(-1, -2).flatten(2).repeat_interleave(2, -1)
        still = angle.new_zeros(*angle.shape[:2], width - angle.shape[-1])
        return torch.cat((still, angle), -1).unflatten(-1, (heads, head_dim))


class TimeClock(Clock):
    """The clock where no stream has rows or columns: every channel of a head tells time, as in an exchange between towers."""

    def table(self, positions: Float[Tensor, "b n 3"], head_dim: int, time_only: bool = False, heads: int = 1) -> Table:
        return super().table(positions, head_dim, True, heads)


def clock_for(clock: Clock, modalities: Mapping[str, ModalitySpec]) -> Clock:
    """The clock that suits these streams, ``hz`` settled; channels kept for rows and columns that nobody has would be lost.

    Raises:
        ValueError: a setting of the clock that no stream of these could feel.
    """
    specs = list(modalities.values())
    if clock.first_frame and all(spec.stride == 1 for spec in specs):
        raise ValueError(
            "clock.first_frame corrects the first token of a causal codec, and no modality has one (all strides are 1)"
        )
    for key, names in (("scale", clock.scale), ("unit", (clock.unit,) if clock.unit else ())):
        if unknown := sorted(set(names) - set(modalities)):
            raise ValueError(f"clock.{key} names {', '.join(unknown)}; there is {', '.join(modalities)}")
    settings = {part.name: getattr(clock, part.name) for part in fields(Clock)} | {"unit": ""}
    settings["hz"] = clock.hz or 1 / (modalities[clock.unit] if clock.unit else specs[0]).seconds
    return (Clock if _has_space(spec.grid for spec in specs) else TimeClock)(**settings)


def _has_space(grids: Iterable[tuple[int, int]]) -> bool:
    return any(grid != (1, 1) for grid in grids)


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
    if eager(x, cos, sin) and turns_as_complex(x) and not (cos.requires_grad or sin.requires_grad):
        turns = torch.complex(cos[..., ::2], sin[..., 1::2])
        return turned(x, turns.expand(*turns.shape[:2], x.shape[2], -1).contiguous())
    return plain_rotate(x, table)


def plain_rotate(x: Float[Tensor, "b n h e"], table: Table) -> Float[Tensor, "b n h e"]:
    """The same, written out."""
    cos, sin = table
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + swapped * sin).to(x.dtype)
