"""Who sees whom in each stage of a variant, read off by running it: pictures of what its blocks ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from nava_lab.attention.attend import AUTO, Choice, choose
from nava_lab.attention.backends.reference import weights
from nava_lab.attention.picture import Picture, join
from nava_lab.blocks.base import Given
from nava_lab.conditioning.text import text_positions
from nava_lab.conditioning.timbre import blank_references
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size, Variant
from nava_lab.streams import TEXT, Interface, Stream, joined, time_positions


def full_clip(interface: Interface) -> tuple[dict[str, Stream], dict[str, Tensor], Stream]:
    """A clip and a caption of full length, of nothing: streams, noise levels, text."""
    longest = max(spec.tokens * spec.seconds / math.prod(spec.grid) for spec in interface.modalities.values())
    streams = {}
    for name, spec in interface.modalities.items():
        positions = time_positions(spec.tokens, spec.seconds, spec.grid)
        span = None
        if interface.text.timbre:  # as if each reference were heard in an equal share of the clip
            span = (positions[..., 0] / longest * interface.text.references).long()
        streams[name] = Stream(torch.zeros(1, spec.tokens, spec.channels + spec.context), positions, span=span)
    told = interface.text
    shape = (1, told.length) if told.vocabulary else (1, told.length, told.features)
    words = torch.zeros(shape, dtype=torch.long if told.vocabulary else torch.float32)
    text = Stream(words, text_positions(told.length))
    return streams, dict.fromkeys(streams, torch.zeros(1)), blank_references(text, told)


def pictures(variant: Variant, interface: Interface, cut: bool = False, **options: Any) -> list[Picture]:
    """One picture per stage, of one layer of it: its own attention, its exchange and its reading of the text.

    Args:
        variant: at any size; what its layers see does not depend on width.
        interface: the modalities and the text.
        cut: of a sample in which attention between modalities is cut.
        options: of the denoiser (window_s, cut_off, mask).
    """
    streams, levels, text = full_clip(interface)
    asked = _asked(_small(variant, interface, options), streams, levels, text, torch.tensor([True]) if cut else None)
    lengths = {name: len(stream) for name, stream in {**streams, TEXT: text}.items()}
    made, layer = [], 0
    for stage in variant.plan():
        label = stage.label or type(stage.block).__name__.lower()
        title = f"{label}{'' if stage.text else ', without text'}: layers {layer + 1} to {layer + stage.layers}"
        tables = {pair: None if seen is None else _table(seen.dense) for pair, seen in asked[layer].asked().items()}
        made.append(join(tables, lengths, title))
        layer += stage.layers
    return made


def _asked(
    model: Denoiser, streams: Mapping[str, Stream], levels: Mapping[str, Tensor], text: Stream, cut: Tensor | None = None
) -> list[Given]:
    """What every block of a forward pass was given, with a memory of its own: what it asked for, and nothing else."""
    asked: list[Given] = []

    def watch(block: torch.nn.Module, arguments: tuple[Any, Given]) -> tuple[Any, Given]:
        x, given = arguments
        asked.append(replace(given, _memo={}))
        return x, asked[-1]

    for block in model.blocks:
        block.register_forward_pre_hook(watch)
    with torch.no_grad():
        model(streams, levels, text, cut)
    return asked


@dataclass(frozen=True)
class Call:
    """One attention that the layers of a model make, and who computes it.

    Attributes:
        queries: the modalities that ask.
        keys: the modalities that are asked.
        backend: which backend training takes for it.
        why: in words.
    """

    queries: tuple[str, ...]
    keys: tuple[str, ...]
    backend: str
    why: str


def calls(
    variant: Variant, interface: Interface, device: str, backend: str = AUTO, packed: int = 0, **options: Any
) -> list[Call]:
    """Every distinct attention of a variant over full clips in training; nothing is computed, only shapes pass through.

    Args:
        variant: at any size; who computes what does not depend on width.
        interface: the modalities and the text.
        device: the kind of device that it is asked for: "cpu", "cuda".
        backend: the one that is set, "auto" to choose by call.
        packed: how many clips are packed into one row; 0 for padded batches.
        options: of the denoiser (window_s, cut_off, mask, timbre_in_span).
    """
    streams, levels, text = full_clip(interface)
    if packed:
        streams = {name: joined([stream] * packed).packed() for name, stream in streams.items()}
        levels = {name: level.expand(packed) for name, level in levels.items()}
        text = joined([text] * packed).packed()
    text = text.to("meta")
    with torch.device("meta"):
        model = _small(variant, interface, options)
        on_meta = {name: stream.to("meta") for name, stream in streams.items()}
        asked = _asked(model, on_meta, {name: level.to("meta") for name, level in levels.items()}, text)
    found: dict[Call, None] = {}
    for given in asked:
        for (queries, keys), visible in given.asked().items():
            count = sum(len(given.streams[name]) for name in keys)
            taken = choose(device, True, visible, count) if backend == AUTO else Choice(backend, "as set")
            found[Call(queries, keys, taken.backend, taken.why)] = None
    return list(found)


@dataclass(frozen=True)
class Map:
    """What one attention of one layer attended to.

    Attributes:
        layer: of the model, from 0.
        weights: ``b h q k``; rows sum to 1, or to 0 where a query sees nothing.
    """

    layer: int
    weights: Tensor


@dataclass(frozen=True)
class _Watched(Given):
    """What a block is given, keeping the weights of every attention that it asks for."""

    kept: list[Tensor] = field(default_factory=list)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Any) -> Tensor:
        self.kept.append(weights(query, key, visible))
        return super().attend(query, key, value, visible)


def attention_maps(model: Denoiser, streams: Mapping[str, Stream], levels: Mapping[str, Tensor], text: Stream) -> list[Map]:
    """The maps of every attention in a forward pass, in order; a joint layer has its own first, then its reading of the text.

    Queries and keys stand in the order of ``streams``, the text last where it is part of the row.
    """
    watched: list[_Watched] = []

    def watch(block: torch.nn.Module, arguments: tuple[Any, Given]) -> tuple[Any, Given]:
        x, given = arguments
        watched.append(_Watched(**{part.name: getattr(given, part.name) for part in fields(given)}))
        return x, watched[-1]

    handles = [block.register_forward_pre_hook(watch) for block in model.blocks]
    try:
        with torch.no_grad():
            model(streams, levels, text)
    finally:
        for handle in handles:
            handle.remove()
    return [Map(layer, part) for layer, given in enumerate(watched) for part in given.kept]


def _table(dense: Tensor | None) -> Tensor | None:
    return None if dense is None else dense[0]


def _small(variant: Variant, interface: Interface, options: dict[str, Any]) -> Denoiser:
    """The variant at the first width that divides into its heads."""
    widths: Sequence[int] = [step * max(variant.heads, variant.layers.query_group) * 2 for step in (2, 4, 8, 16, 32)]
    build: Callable[[int], Denoiser] = lambda width: Denoiser(variant, interface, Size(width, width), **options)  # noqa: E731
    for width in widths[:-1]:
        with suppress(ValueError):
            return build(width)
    return build(widths[-1])
