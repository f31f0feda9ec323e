"""Who sees whom in each stage of a variant, read off by running it: pictures of what its blocks ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nava_lab.attention.picture import Picture, join
from nava_lab.blocks.base import Given
from nava_lab.conditioning.timbre import blank_references
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size, Variant
from nava_lab.streams import TEXT, Interface, Stream, time_positions


def full_clip(interface: Interface) -> tuple[dict[str, Stream], dict[str, Tensor], Stream]:
    """A clip and a caption of full length, of nothing: streams, noise levels, text."""
    streams = {
        name: Stream(
            torch.zeros(1, spec.tokens, spec.channels + spec.context), time_positions(spec.tokens, spec.seconds, spec.grid)
        )
        for name, spec in interface.modalities.items()
    }
    spec = interface.text
    shape = (1, spec.length) if spec.vocabulary else (1, spec.length, spec.features)
    words = torch.zeros(shape, dtype=torch.long if spec.vocabulary else torch.float32)
    places = time_positions(spec.length, 1.0) - spec.length - 0.5
    return streams, dict.fromkeys(streams, torch.zeros(1)), blank_references(Stream(words, places), spec)


def pictures(variant: Variant, interface: Interface, cut: bool = False, **options: Any) -> list[Picture]:
    """One picture per stage, of one layer of it: its own attention, its exchange and its reading of the text.

    Args:
        variant: at any size; what its layers see does not depend on width.
        interface: the modalities and the text.
        cut: of a sample in which attention between modalities is cut.
        options: of the denoiser (window_s, cut_off, mask).
    """
    model = _small(variant, interface, options)
    streams, levels, text = full_clip(interface)
    asked: list[Given] = []

    def watch(block: torch.nn.Module, arguments: tuple[Any, Given]) -> tuple[Any, Given]:
        x, given = arguments
        asked.append(replace(given, _memo={}))  # a memory of its own: what this block asks for, and nothing else
        return x, asked[-1]

    for block in model.blocks:
        block.register_forward_pre_hook(watch)
    with torch.no_grad():
        model(streams, levels, text, torch.tensor([True]) if cut else None)
    lengths = {name: len(stream) for name, stream in {**streams, TEXT: text}.items()}
    made, layer = [], 0
    for stage in variant.plan():
        label = stage.label or type(stage.block).__name__.lower()
        title = f"{label}{'' if stage.text else ', without text'}: layers {layer + 1} to {layer + stage.layers}"
        tables = {pair: None if seen is None else _table(seen.dense) for pair, seen in asked[layer].asked().items()}
        made.append(join(tables, lengths, title))
        layer += stage.layers
    return made


def _table(dense: Tensor | None) -> Tensor | None:
    return None if dense is None else dense[0]


def _small(variant: Variant, interface: Interface, options: dict[str, Any]) -> Denoiser:
    """The variant at the first width that divides into its heads."""
    widths: Sequence[int] = [step * max(1, variant.heads) * 2 for step in (2, 4, 8, 16, 32)]
    build: Callable[[int], Denoiser] = lambda width: Denoiser(variant, interface, Size(width, width), **options)  # noqa: E731
    for width in widths[:-1]:
        with suppress(ValueError):
            return build(width)
    return build(widths[-1])
