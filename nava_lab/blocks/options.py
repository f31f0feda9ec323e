"""The choices that joint and tower blocks have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from nava_lab.attention.projections import QK_NORMS
from nava_lab.blocks.base import choose
from nava_lab.layers.feed_forward import KINDS

T = TypeVar("T", bound="BlockOptions")


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Sublayers of a block.

    Attributes:
        text: "cross" reads the text by cross-attention; "none" does not (it may be part of the sequence).
        modulation: "adaln" for scale, shift and gate by noise level; "none" for a block that is told no time.
        feed_forward: "gelu" or "swiglu".
        qk_norm: "full" (over all heads), "head" (within each) or "none".
        kv_heads: key-value heads for grouped queries; 0 gives every query head its own.
        head_gates: a sigmoid gate per head, computed from the token.
        bias: biases in the linear layers.
    """

    text: str = "cross"
    modulation: str = "adaln"
    feed_forward: str = "gelu"
    qk_norm: str = "full"
    kv_heads: int = 0
    head_gates: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        choose(self.text, "text", ("cross", "none"))
        choose(self.modulation, "modulation", ("adaln", "none"))
        choose(self.feed_forward, "feed_forward", KINDS)
        choose(self.qk_norm, "qk_norm", QK_NORMS)
        if self.kv_heads < 0:
            raise ValueError(f"kv_heads={self.kv_heads} must not be negative; 0 gives every query head its own")

    def without_text(self: T) -> T:
        """The same without its text sublayer, for stages that keep the text out."""
        return replace(self, text="none")
