"""A denoiser back into a checkpoint's layout, by the same table of keys: what `convert` would read, or a refusal.

A model that computes something else than every release of the layout is refused with the setting that does it, by the same
questions as a warm start; what of it has no place in the layout is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nava_lab.checkpoints.agree import Difference, agreement, answered, check_names
from nava_lab.checkpoints.convert import head_dim, pairs_told, rows_of, wanted
from nava_lab.checkpoints.facts import PAIRS, SPLIT
from nava_lab.checkpoints.files import Tensors
from nava_lab.checkpoints.names import SHARED, canonical, of_layer, part_of, second_expert
from nava_lab.checkpoints.tables import DIALECTS, Dialect, Entry
from nava_lab.models.denoiser import Denoiser

EXPERTS = ("low", "high")


@dataclass(frozen=True)
class Written:
    """A model in a layout.

    Attributes:
        tensors: by the layout's names.
        config: what they compute by, in the words of the layout's config.
        left: parameters of ours that have no place in it, by the part of the model that they are in.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    left: Mapping[str, int]

    def lines(self) -> list[str]:
        """What has no place, with its share of the model."""
        written = sum(part.numel() for part in self.tensors.values())
        total = written + sum(self.left.values())
        parts = ", ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in self.left.items())
        return [f"no place in this layout: {parts}"] if parts else []


def layout_of(name: str) -> Dialect:
    """A layout by its name."""
    found = next((one for one in DIALECTS if one.name == name), None)
    if found is None:
        raise ValueError(f"no layout is called '{name}'; known: {', '.join(one.name for one in DIALECTS)}")
    return found


def config_of(model: Denoiser, dialect: str) -> dict[str, Any]:
    """What a model computes by, as the config beside a checkpoint of this layout says it."""
    chosen = layout_of(dialect)
    found: dict[str, Any] = {}
    asked = tuple(fact for fact in chosen.facts if fact.theirs and fact.modality in ("", *model.specs))
    for fact, answer in answered(model, asked, chosen.modalities):
        answer = fact.usual if fact.ours == PAIRS else answer
        word = None if answer is None else fact.word(answer, model.clock.theta)
        key, _, place = fact.theirs[min(chosen.told, len(fact.theirs) - 1)].partition(".")
        if word is not None and place:
            found[key] = [*found.get(key, []), word]
        elif word is not None:
            found[key] = word
    return found


def export(
    model: Denoiser,
    dialect: str = "wan",
    patch: tuple[int, ...] = (1, 2, 2),
    dtype: torch.dtype = torch.float32,
    expert: str = "low",
    differ: Sequence[str] = (),
) -> Written:
    """A model's weights in a checkpoint's layout: exactly what ``warm_start`` would read back.

    Of weights that were copied, the dialect's own modality is taken. Rotary pairs lie as every release of the layout has them.

    Args:
        model: with weights, on any device.
        dialect: the layout's name.
        patch: over which its embedding convolves.
        dtype: of the values.
        expert: which of two is written where a layout holds one: for "low" noise levels, or for "high" ones.
        differ: what the model may compute otherwise than every release of the layout (``agree.NAMES``).

    Raises:
        ValueError: no such layout; a model that computes otherwise, with the settings that do.
    """
    chosen = layout_of(dialect)
    table, state = chosen.table(), dict(model.named_parameters())
    if expert == "high" and not any(map(second_expert, state)):
        raise ValueError("this model has no expert for high noise levels: it exists once, for all of them")
    check_names(differ)
    if refused := [one for one in _otherwise(model, chosen) if one.name not in differ]:
        settings = " ".join(dict.fromkeys(one.remedy for one in refused if one.remedy))
        fits = f" (a model trained with {settings} fits)" if settings else ""
        raise ValueError(
            f"the {dialect} layout cannot say what this model computes: {'; '.join(one.words for one in refused)}{fits}; "
            f"write it all the same with --differ {','.join(one.name for one in refused)}"
        )
    found: dict[str, Tensor] = {}
    placed: dict[str, str] = {}
    for key in sorted(state, key=lambda key: second_expert(key) == (expert == "high")):  # the one that is asked for comes last
        if chosen.modality and canonical(key)[1] not in (chosen.modality, SHARED):
            continue
        if expert == "low" and second_expert(key):
            continue
        for entry in table.get(wanted(key, chosen)[0], ()):
            theirs = of_layer(entry.theirs, key)
            found[theirs] = _written(model, key, state[key], entry, chosen, patch).to(dtype).contiguous().clone()
            placed[theirs] = key
    left: dict[str, int] = {}
    kept = set(placed.values())
    for key in (key for key in state if key not in kept):
        part = part_of(key) + (" (high)" if second_expert(key) else "")
        left[part] = left.get(part, 0) + state[key].numel()
    return Written(found, config_of(model, dialect), dict(sorted(left.items(), key=lambda item: -item[1])))


def _otherwise(model: Denoiser, chosen: Dialect) -> tuple[Difference, ...]:
    """Where a model computes otherwise than every release of a layout that has such a config."""
    table, keys = chosen.table(), dict(model.named_parameters())
    shapes = {
        of_layer(entry.theirs, key): tuple(part.shape)
        for key, part in keys.items()
        for entry in table.get(wanted(key, chosen)[0], ())
    }
    where = dict.fromkeys(shapes, Path())
    tensors = Tensors(Path(chosen.name), where, shapes, config_of(model, chosen.name))
    modalities = tuple(name for name in chosen.modalities if name in model.specs)
    facts = [fact for fact in chosen.facts if not fact.modality or fact.modality in modalities]
    facts = [replace(fact, sign=()) if fact.sign and fact.usual is not None else fact for fact in facts]
    return agreement(model, tuple(facts), chosen.rotary, modalities, {}, tensors, "").differ


def _written(model: Denoiser, key: str, ours: Tensor, entry: Entry, chosen: Dialect, patch: tuple[int, ...]) -> Tensor:
    """The rows of one of ours as an entry has them."""
    rows = rows_of(model, key, ours.detach(), entry)
    if entry.turned and pairs_told(chosen).usual == SPLIT:
        rows = _halves(rows, head_dim(model, key))
    return _to_theirs(rows, entry, patch)


def _halves(rows: Tensor, head_dim: int) -> Tensor:
    """Channels of each head from neighbours, pair j being (2 j, 2 j + 1), to halves (j, j + head_dim / 2)."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _to_theirs(rows: Tensor, entry: Entry, patch: tuple[int, ...]) -> Tensor:
    if entry.shape == "row":
        return rows.unsqueeze(0)
    if entry.shape == "patch_in":
        return rows.unflatten(1, (-1, *patch))
    if entry.shape == "patch_out":
        return rows.unflatten(0, (-1, prod(patch))).transpose(0, 1).flatten(0, 1)
    return rows
