"""Stages of joint layers, some of which keep weights per modality."""

from __future__ import annotations

from collections.abc import Sequence

from nava_lab.blocks.joint import Joint
from nava_lab.models.placement import own_layers, runs
from nava_lab.models.variant import Stage, Variant


def aligned(variant: Variant, fraction: float, placement: str, keep: Sequence[str], text: bool = True) -> Sequence[Stage]:
    """Layers that align (weights per modality) and layers that fuse (weights shared).

    Args:
        variant: gives depth and the choices of every layer.
        fraction: share of the layers that align, rounded to whole layers.
        placement: where they sit (``models.placement``).
        keep: what they keep per modality.
        text: whether they read the text.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"variant.align_fraction={fraction} must lie between 0 and 1")
    if variant.text_place == "sequence":  # where nobody reads it from outside, there are no such weights to keep
        keep = [part for part in keep if part != "text"]
    aligning = round(variant.depth * fraction)
    if aligning in (0, variant.depth):
        named = ("placement",) if aligning else ("placement", "keep", "align_text")
        count = "every one" if aligning else "none"
        variant.unread(named, f"of {variant.depth} layers variant.align_fraction={fraction:g} lets {count} align")
    chosen = variant.layers.shared()
    own, shared = Joint(per_modality=tuple(keep), **chosen), Joint(**chosen)
    return [
        Stage(own, layers, "align", text=text) if aligns else Stage(shared, layers, "fuse")
        for aligns, layers in runs(own_layers(placement, aligning, variant.depth))
    ]
