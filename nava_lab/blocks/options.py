"""The choices that joint and tower blocks have in common, and those of what stands around them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from nava_lab.attention.projections import QK_NORMS
from nava_lab.blocks.base import choose
from nava_lab.conditioning.text import TEXT_INPUTS
from nava_lab.layers.feed_forward import KINDS
from nava_lab.layers.norms import NORMS

T = TypeVar("T", bound="BlockOptions")
MODULATIONS = ("adaln", "own", "none")
TEXT_NORMS = ("affine", "plain")


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What any layer may choose about its sublayers, each independent of the others.

    Attributes:
        modulation: scale, shift and gate by noise level: "adaln" from one projection for all layers and a table per layer
            (Wan, LTX-2), "own" from a projection per layer (DiT), "none" for a layer that is told no time (MagiHuman).
        feed_forward: "gelu" or "swiglu".
        hidden_share: feed-forward width per width of the model's feed-forward (a gated one of equal weight has 2/3).
        norm: "layer" or "rms".
        text_norm: the norm before the text: "affine" has weights, "plain" has none.
        text_modulation: scale, shift and gate around the reading of the text, and scale and shift of the text itself, by noise
            level (LTX-2.3).
        qk_norm: "full" (over all heads), "head" (within each) or "none".
        query_group: query heads that share a key and value head (grouped queries; MagiHuman 5); 1 gives every one its own.
        head_gates: sigmoid gates per head, computed from the token: 0 for none, else the factor (MagiHuman 1; LTX-2.3 2, which
            starts open).
        bias: biases in the linear layers.
    """

    modulation: str = field(default="adaln", metadata={"choices": MODULATIONS})
    feed_forward: str = field(default="gelu", metadata={"choices": KINDS})
    hidden_share: float = 1.0
    norm: str = field(default="layer", metadata={"choices": NORMS})
    text_norm: str = field(default="affine", metadata={"choices": TEXT_NORMS})
    text_modulation: bool = False
    qk_norm: str = field(default="full", metadata={"choices": QK_NORMS})
    query_group: int = 1
    head_gates: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_gates", float(self.head_gates))
        choose(self.modulation, "modulation", MODULATIONS)
        choose(self.feed_forward, "feed_forward", KINDS)
        choose(self.norm, "norm", NORMS)
        choose(self.text_norm, "text_norm", TEXT_NORMS)
        choose(self.qk_norm, "qk_norm", QK_NORMS)
        if self.query_group < 1:
            raise ValueError(
                f"query_group={self.query_group} must be at least 1, which gives every query head its own key and value"
            )
        if self.head_gates < 0 or not self.hidden_share > 0:
            raise ValueError(f"head_gates={self.head_gates} must not be negative, hidden_share={self.hidden_share} be positive")
        if self.text_modulation and self.modulation != "adaln":
            raise ValueError(f"text_modulation takes its vectors from modulation=adaln, and modulation is {self.modulation}")

    @property
    def vectors(self) -> int:
        """Modulation vectors of a layer: shift, scale and gate of attention, of feed-forward, and of the text."""
        return 0 if self.modulation == "none" else 9 if self.text_modulation else 6

    def shared(self) -> dict[str, Any]:
        """The choices themselves, to make a block of: ``Joint(**traits.shared(), per_modality=...)``."""
        return {part.name: getattr(self, part.name) for part in fields(Traits)}


@dataclass(frozen=True, kw_only=True)
class BlockOptions(Traits):
    """Sublayers of a block.

    Attributes:
        text: "cross" reads the text by cross-attention; "none" does not (it may be part of the sequence).
    """

    text: str = field(default="cross", metadata={"choices": ("cross", "none")})

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.text, "text", ("cross", "none"))
        if self.text == "none" and self.text_modulation:
            raise ValueError("text_modulation: a block with text=none reads no text to modulate")

    def without_text(self: T) -> T:
        """The same without its text sublayer, for stages that keep the text out."""
        return replace(self, text="none", text_modulation=False)


@dataclass(frozen=True)
class Ends:
    """What stands before and after the layers.

    Attributes:
        conv: modalities that are embedded by convolutions over time and not token by token (NAVA, Ovi: audio).
        text: how text becomes what layers read: "mlp" (Wan), "linear" (MagiHuman) or "none" (LTX-2.3).
        norm: the norm before the outputs: "layer" or "rms".
        bias: biases in the outputs.
        level_features: cosines and sines of a noise level (256 in every published system that has any).
    """

    conv: tuple[str, ...] = ()
    text: str = field(default="mlp", metadata={"choices": TEXT_INPUTS})
    norm: str = field(default="layer", metadata={"choices": NORMS})
    bias: bool = True
    level_features: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "conv", tuple(self.conv))
        choose(self.text, "ends.text", TEXT_INPUTS)
        choose(self.norm, "ends.norm", NORMS)
        if self.level_features < 2 or self.level_features % 2:
            raise ValueError(f"ends.level_features={self.level_features} must be even: half of them are cosines, half sines")
