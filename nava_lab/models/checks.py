"""Combinations of choices that make no sense, refused with the reason before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nava_lab.blocks.base import Dims
from nava_lab.blocks.options import Ends
from nava_lab.layers.rotary import Clock
from nava_lab.models.variant import Variant
from nava_lab.streams import TEXT, Interface


def check(variant: Variant, dims: Dims, interface: Interface, blocks: Sequence[Any]) -> None:
    """Refuse a variant whose parts do not fit each other or this interface."""
    _check_levels(variant, dims, blocks)
    _check_text(variant, blocks)
    _check_names(variant, dims, interface)
    _check_clock(variant, interface, blocks)
    _check_bridges(dims, blocks)
    if variant.clock.layout == "spread" and any(getattr(block, "query_group", 1) > 1 for block in blocks):
        raise ValueError("clock.layout=spread gives every head its own frequencies, and query_group shares keys among heads")
    exchanges = {levels for block in blocks if (levels := _exchange_levels(block, dims)) is not None}
    if len(exchanges) > 1:
        raise ValueError("bridges with gate=level share one reading of the noise levels, and these differ in what they read")
    experts = {name for block in blocks for name in getattr(block, "experts", ())}
    if experts and variant.level_input != "per_modality":
        raise ValueError(
            f"experts of {', '.join(sorted(experts))} have noise-level and text layers of their own: "
            "let the variant say level_input='per_modality'"
        )


def _exchange_levels(block: Any, dims: Dims) -> Any:
    asked = getattr(block, "exchange_levels", None)
    return None if asked is None else asked(dims.names)


def _check_levels(variant: Variant, dims: Dims, blocks: Sequence[Any]) -> None:
    if variant.level_input == "shared" and len(set(dims.widths.values())) > 1:
        raise ValueError(
            f"level_input='shared' is one embedding for all, and the widths differ ({dict(dims.widths)}): "
            "let the variant say level_input='per_modality'"
        )
    told = [block for block in blocks if getattr(block, "modulation", "none") != "none"]
    if variant.level_input == "none" and told:
        raise ValueError("level_input='none' tells blocks no noise level, and a block wants one: set layers.modulation=none")
    if variant.level_input == "none" and variant.ends.level_features != Ends().level_features:
        raise ValueError(f"ends.level_features={variant.ends.level_features}: level_input='none' reads no noise level")
    if variant.level_input == "none" and any(getattr(getattr(block, "bridge", None), "gate", "") == "level" for block in blocks):
        raise ValueError("level_input='none' tells no noise level, and a bridge is gated by it: give it gate='none'")


def _check_text(variant: Variant, blocks: Sequence[Any]) -> None:
    if variant.text_place != "sequence":
        return
    if any(hasattr(block, "bridge") for block in blocks):
        raise ValueError(
            "text_place='sequence' puts the text into the row that all modalities attend in, and towers have no such row: "
            "use text_place='cross', or a variant of joint blocks"
        )
    if variant.layers.text_norm != "affine":
        raise ValueError(
            f"layers.text_norm={variant.layers.text_norm} is about a reading of the text, "
            "and with text_place='sequence' there is none"
        )
    if variant.layers.text_modulation:
        raise ValueError("text_modulation modulates a reading of the text, and with text_place='sequence' there is none")


def _check_clock(variant: Variant, interface: Interface, blocks: Sequence[Any]) -> None:
    """A clock by which nothing turns: who counts tokens feels its unit in exchanges on one clock and in words of the row."""
    clock, usual = variant.clock, variant.usual("clock")
    if clock.patch_hz not in (usual.patch_hz, Clock().patch_hz) and all(
        spec.grid == (1, 1) for spec in interface.modalities.values()
    ):
        raise ValueError(f"clock.patch_hz={clock.patch_hz:g} turns rows and columns, and no modality here has any")
    if not clock.index or variant.text_place == "sequence":
        return
    if any(getattr(getattr(block, "bridge", None), "on_one_clock", False) for block in blocks):
        return
    for key in ("hz", "unit"):
        value = getattr(clock, key)
        if value != getattr(usual, key) and value:
            raise ValueError(
                f"clock.{key}={value}: with clock.index=true every modality counts its own tokens, and no exchange here turns "
                f"by one clock for all; set variant.clock.{key}={'0' if key == 'hz' else repr('')} or variant.clock.index=false"
            )


def _check_bridges(dims: Dims, blocks: Sequence[Any]) -> None:
    """Whose heads and width an exchange has is a choice where they differ."""
    for bridge in (getattr(block, "bridge", None) for block in blocks):
        inner = getattr(bridge, "inner", None)
        if (
            inner is not None
            and inner != type(bridge)().inner
            and len({(dims.widths[n], dims.heads[n]) for n in dims.names}) == 1
        ):
            raise ValueError(
                f"bridge.inner={inner} says whose width and heads an exchange has, and all modalities have the same: leave it "
                "out, or set variant.width_share"
            )


def _check_names(variant: Variant, dims: Dims, interface: Interface) -> None:
    """Names of nobody; text outside the row has no width and no feed-forward to be given a share of."""
    named = {"ends.conv": (variant.ends.conv, (*interface.modalities, TEXT))}
    named |= {key: (tuple(getattr(variant, key)), dims.names) for key in ("width_share", "ratio_share")}
    for key, (names, known) in named.items():
        if unknown := sorted(set(names) - set(known)):
            why = f", and text is outside the row (text_place={variant.text_place})" if unknown == [TEXT] else ""
            raise ValueError(f"variant.{key} names {', '.join(unknown)}; there is {', '.join(interface.modalities)}{why}")
    for name in variant.ends.conv:
        if name == TEXT or interface.modalities[name].grid != (1, 1):
            raise ValueError(f"variant.ends.conv={name}: convolutions over time need one token per time step")
