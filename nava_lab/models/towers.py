"""Stages of towers with bridges between them, and the choice of a bridge by config keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from nava_lab.blocks.tower import Tower
from nava_lab.models.placement import BRIDGES, bridged_layers, runs
from nava_lab.models.variant import Stage, Variant
from nava_lab.registry import bridges, nearest


@dataclass(frozen=True)
class Bridge:
    """Which bridge, where, and what it chooses; a choice left at None is as its kind has it.

    Attributes:
        kind: a registered bridge: "cross" (LTX-2), "conditional" (MOVA), "shared_query" (Ovi).
        placement: layers that have one: "full", "shallow_focus", "distributed" or "progressive" (MOVA's strategies).
        every: of those layers, every so many.
        gate: "none", "learned" (starts closed) or "level" (by noise level).
        level: whose noise level gates: of the "other" end, or the "own".
        directions: "both", "audio->video" or "video->audio".
        rotary: whether the exchange knows when each token is.
        qk_norm: "full", "head" or "none".
        head_gates: sigmoid gates per head: 0 for none, else the factor.
        inner: width of the attention: the "narrow" one's, or the "reader"'s.
        normed: "both" ends, or the "source".
        norm: "layer" or "rms".
        affine: whether the norms have weights.
        at: in the "middle" of a layer or at its "start".
    """

    kind: str = field(default="cross", metadata={"choices": ("cross", "conditional", "shared_query")})
    placement: str = field(default="full", metadata={"choices": BRIDGES})
    every: int = 1
    gate: str | None = field(default=None, metadata={"choices": ("none", "learned", "level")})
    level: str | None = field(default=None, metadata={"choices": ("other", "own")})
    directions: str | None = field(default=None, metadata={"choices": ("both", "audio->video", "video->audio")})
    rotary: bool | None = field(default=None, metadata={"choices": (True, False)})
    qk_norm: str | None = field(default=None, metadata={"choices": ("full", "head", "none")})
    head_gates: float | None = field(default=None, metadata={"choices": (0.0, 1.0, 2.0)})
    inner: str | None = field(default=None, metadata={"choices": ("narrow", "reader")})
    normed: str | None = field(default=None, metadata={"choices": ("both", "source")})
    norm: str | None = field(default=None, metadata={"choices": ("layer", "rms")})
    affine: bool | None = field(default=None, metadata={"choices": (True, False)})
    at: str | None = field(default=None, metadata={"choices": ("middle", "start")})

    def build(self) -> Any:
        """The bridge's own config; a choice that its kind does not have is refused."""
        if self.kind not in bridges.names():
            raise ValueError(f"bridge.kind={self.kind}: {nearest(self.kind, bridges.names())}")
        kind = bridges.get(self.kind)
        known = {part.name for part in fields(kind)}
        plain = ("kind", "placement", "every")
        chosen = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in plain}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        if lacking := sorted(set(chosen) - known):
            named = ", ".join(f"bridge.{name}" for name in lacking)
            raise ValueError(f"{named}: a bridge of kind {self.kind} has no such choice; it has {', '.join(sorted(known))}")
        if self.level is not None and chosen.get("gate") != "level":
            raise ValueError(f"bridge.level={self.level} says whose noise level gates an exchange: it needs bridge.gate=level")
        return kind(**chosen)

    def layers(self, depth: int) -> list[bool]:
        """Which layers have a bridge."""
        if self.every < 1:
            raise ValueError(f"bridge.every={self.every} must be at least 1")
        placed = [layer for layer, has in enumerate(bridged_layers(self.placement, depth)) if has][:: self.every]
        return [layer in placed for layer in range(depth)]


def towers(variant: Variant, bridge: Bridge, **choices: Any) -> Sequence[Stage]:
    """``depth`` layers of towers, with bridges where ``bridge`` says; ``choices`` are of the tower block."""
    bridged = Tower(bridge=bridge.build(), **variant.layers.shared(), **choices)
    return [
        Stage(bridged, layers, "towers with exchange") if has else Stage(bridged.without_bridge(), layers, "towers alone")
        for has, layers in runs(bridge.layers(variant.depth))
    ]
