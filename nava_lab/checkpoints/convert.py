"""A checkpoint into a denoiser and back, by a table of keys.

Of a checkpoint that knows one modality, weights go where ours serve it alone (its tower, its embedder, its head) or all
modalities; where a joint layer keeps weights per modality, each modality gets a copy, as NAVA starts. The other towers,
embedders and heads, and whatever the checkpoint never had, start fresh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from nava_lab.checkpoints.files import Tensors
from nava_lab.checkpoints.tables import DIALECTS, Dialect, Entry
from nava_lab.models.denoiser import Denoiser

MAPPED, COPIED = "mapped", "copied"
ENDS = ("embed.", "heads.", "text.")
# Ours by other names: a tower's storey (one of two experts, perhaps), a bridge that reads the text, the second expert's ends.
ALIASES = (
    (r"^(blocks\.\d+)\.storeys\.parts\.(\w+)\.(?:(?:low|high)\.)?(.+)$", r"\1.\3"),
    (r"^(blocks\.\d+)\.bridge\.readers\.parts\.(\w+)\.((?:query|key|value|output)\..+)$", r"\1.text.parts.parts.shared.\3"),
    (r"^(blocks\.\d+)\.bridge\.readers\.parts\.(\w+)\.text_norm\.(.+)$", r"\1.text_norm.parts.parts.shared.\3"),
    (r"^()high\.(\w+)\.(?:(embed)|(head))\.(.+)$", None),
    (r"^()high\.(\w+)\.(text|level)\.(.+)$", r"\3.parts.shared.\4"),
)
NAMED = re.compile(r"^(embed|heads)\.(\w+)\.|\.parts\.(?!parts\.)(\w+)\.|^(?:text|level|prompt)\.parts\.(\w+)\.")


@dataclass(frozen=True)
class Fill:
    """One tensor of a checkpoint into (rows of) one of ours."""

    ours: str
    theirs: str
    entry: Entry
    kind: str


@dataclass(frozen=True)
class Manifest:
    """What became of whose parameters.

    Attributes:
        dialect: the checkpoint's layout.
        mapped: parameters of ours with one source of their own.
        copied: parameters of ours that share a source with others of ours.
        fresh: parameters of ours that start anew.
        used: parameters of the checkpoint that have a place.
        ignored: parameters of the checkpoint that have none.
        left: some of their names.
    """

    dialect: str
    mapped: int
    copied: int
    fresh: int
    used: int
    ignored: int
    left: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """Share of the checkpoint's parameters that have a place."""
        return self.used / max(1, self.used + self.ignored)

    def lines(self) -> list[str]:
        total = self.mapped + self.copied + self.fresh
        ours = ((self.mapped, "mapped"), (self.copied, "copied"), (self.fresh, "fresh"))
        parts = ", ".join(f"{name} {count:,} ({count / total:.1%})" for count, name in ours)
        rest = f"; ignored {self.ignored:,}, such as {', '.join(self.left[:3])}" if self.ignored else ""
        return [
            f"warm start from {self.dialect}: {parts} of {total:,} parameters",
            f"{self.coverage:.1%} of the checkpoint's {self.used + self.ignored:,} parameters have a place{rest}",
        ]


def canonical(key: str) -> tuple[str, str]:
    """A key of ours as the tables write it, ``{m}`` for whose it is; and whose: a modality's name, or "shared"."""
    for pattern, written in ALIASES:
        found = re.match(pattern, key)
        if found is None:
            continue
        if written is None:
            end = "embed" if found[3] else "heads"
            return f"{end}.{{m}}.{found[5]}", found[2]
        return canonical(found.expand(written))[0], found[2]
    found = NAMED.search(key)
    if found is None:
        return key, "shared"
    group = next(place for place in (2, 3, 4) if found[place])
    return f"{key[: found.start(group)]}{{m}}{key[found.end(group) :]}", found[group]


def detect(tensors: Tensors) -> tuple[Dialect, str]:
    """The layout of a checkpoint, and what stands before each of its keys."""
    for dialect in DIALECTS:
        for prefix in dialect.prefixes:
            if prefix + dialect.mark in tensors.where:
                return dialect, prefix
    known = "; ".join(f"{dialect.name} has {dialect.mark}" for dialect in DIALECTS)
    raise ValueError(f"{tensors.path} is a checkpoint of no known layout: {known}")


def plan(model: Denoiser, tensors: Tensors, ends: bool = True) -> tuple[list[Fill], Manifest]:
    """Which tensor goes where; nothing is read yet.

    Args:
        model: the denoiser, on any device.
        tensors: the checkpoint.
        ends: also what stands before and after the layers: embedders, heads and the text's encoder, which must agree with it
            in channels and features.

    Raises:
        ValueError: no known layout, or shapes that do not fit, all of them by name.
    """
    dialect, prefix = detect(tensors)
    table: dict[str, list[Entry]] = {}
    for entry in dialect.entries:
        table.setdefault(entry.ours, []).append(entry)
    state = dict(model.named_parameters())
    fills: list[Fill] = []
    conflicts: list[str] = []
    for key in state:
        if not ends and key.startswith((*ENDS, "high.")) and ".level." not in key:
            continue
        for pattern, kind in _wanted(key, dialect):
            found = [Fill(key, prefix + _layer(entry.theirs, key), entry, kind) for entry in table.get(pattern, ())]
            if found and all(fill.theirs in tensors.where for fill in found):
                fills += found
                conflicts += [line for fill in found if (line := _conflict(fill, state[key], tensors))]
                break
    if conflicts:
        shown = "; ".join(conflicts[:4]) + (f"; and {len(conflicts) - 4} more" if len(conflicts) > 4 else "")
        raise ValueError(
            f"{tensors.path} does not fit: {shown}. Give the model its size (budget.width, budget.hidden, variant.heads), or "
            "leave embedders, heads and text out with warm_start.ends=false"
        )
    return fills, _manifest(dialect, fills, state, tensors)


def _wanted(key: str, dialect: Dialect) -> list[tuple[str, str]]:
    """Under which names a table may know a key of ours, and what kind of filling that would be."""
    pattern, owner = canonical(key)
    layered = re.sub(r"^blocks\.\d+\.", "blocks.{i}.", pattern)
    if not dialect.modality:
        literal = re.sub(r"^blocks\.\d+\.", "blocks.{i}.", re.sub(r"\.parts\.shared\.", ".parts.{m}.", key))
        return [(literal, MAPPED)]
    second = ".high." in key or key.startswith("high.")
    if owner in (dialect.modality, "shared"):
        return [(layered, COPIED if second or _split_in_joint(key, owner) else MAPPED)]
    return [(layered, COPIED)] if _split_in_joint(key, owner) else []


def _split_in_joint(key: str, owner: str) -> bool:
    """Whether a key is one modality's set of weights in a layer that all modalities pass."""
    return owner != "shared" and key.startswith("blocks.") and not re.match(r"blocks\.\d+\.(storeys|bridge)\.", key)


def _layer(theirs: str, key: str) -> str:
    found = re.match(r"blocks\.(\d+)\.", key)
    return theirs.replace("{i}", found[1]) if found else theirs


def _conflict(fill: Fill, ours: Tensor, tensors: Tensors) -> str:
    """What does not fit; empty where it does."""
    rows = (ours.shape[0] // fill.entry.part[1], *ours.shape[1:])
    theirs = tensors.shapes[fill.theirs]
    seen = theirs
    if fill.entry.shape == "row":
        seen = theirs[1:] if theirs[:1] == (1,) else theirs
    elif fill.entry.shape == "patch_in":
        seen = (theirs[0], prod(theirs[1:]))
    return "" if seen == rows else f"{fill.ours} is {'x'.join(map(str, rows))} and {fill.theirs} {'x'.join(map(str, theirs))}"


def _manifest(dialect: Dialect, fills: list[Fill], state: Mapping[str, Tensor], tensors: Tensors) -> Manifest:
    used = {fill.theirs for fill in fills}
    counts = dict.fromkeys((MAPPED, COPIED), 0)
    for fill in fills:
        counts[fill.kind] += state[fill.ours].numel() // fill.entry.part[1]
    filled = {fill.ours for fill in fills}
    left = tuple(key for key in tensors.where if key not in used)
    fresh = sum(part.numel() for key, part in state.items() if key not in filled)
    sizes = {key: prod(shape) for key, shape in tensors.shapes.items()}
    given = sum(sizes[key] for key in used)
    return Manifest(dialect.name, counts[MAPPED], counts[COPIED], fresh, given, sum(sizes.values()) - given, left)


def warm_start(model: Denoiser, path: str | Path, coverage: float = 0.9, ends: bool = True) -> Manifest:
    """Fill a model from a checkpoint, shard by shard; one tensor of it is in memory at a time.

    Raises:
        ValueError: the checkpoint cannot be read or is of no known layout, a shape does not fit, or less than ``coverage`` of
            its parameters have a place.
    """
    tensors = Tensors.at(path)
    fills, manifest = plan(model, tensors, ends)
    check_coverage(manifest, path, coverage)
    state = dict(model.named_parameters())
    by_theirs: dict[str, list[Fill]] = {}
    for fill in fills:
        by_theirs.setdefault(fill.theirs, []).append(fill)
    patch = patch_of(tensors, fills)
    with torch.no_grad():
        for name, tensor in tensors.read(by_theirs):
            for fill in by_theirs[name]:
                ours = state[fill.ours].chunk(fill.entry.part[1])[fill.entry.part[0]]
                ours.copy_(_to_ours(tensor, fill.entry, patch).reshape(ours.shape))
    return manifest


def check_coverage(manifest: Manifest, path: str | Path, coverage: float) -> None:
    if manifest.coverage < coverage:
        raise ValueError(
            f"{path}: {manifest.coverage:.1%} of its parameters have a place; warm_start.coverage={coverage:g} wants more "
            f"(no place: {', '.join(manifest.left[:3])}); give the model its depth and size, or ask for less"
        )


def patch_of(tensors: Tensors, fills: list[Fill]) -> tuple[int, ...]:
    """The patch that a checkpoint's embedding convolves over."""
    shape = next((tensors.shapes[fill.theirs] for fill in fills if fill.entry.shape == "patch_in"), (1, 1))
    return tuple(shape[2:]) or (1,)


def _to_ours(tensor: Tensor, entry: Entry, patch: tuple[int, ...]) -> Tensor:
    return tensor.unflatten(0, (prod(patch), -1)).transpose(0, 1).flatten(0, 1) if entry.shape == "patch_out" else tensor


def export(
    model: Denoiser, dialect: str = "wan", patch: tuple[int, ...] = (1, 2, 2), dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A model's weights in a checkpoint's layout: exactly what ``warm_start`` would read back.

    Of weights that were copied, the dialect's own modality is taken.
    """
    chosen = next((one for one in DIALECTS if one.name == dialect), None)
    if chosen is None:
        raise ValueError(f"no layout is called '{dialect}'; known: {', '.join(one.name for one in DIALECTS)}")
    table: dict[str, list[Entry]] = {}
    for entry in chosen.entries:
        table.setdefault(entry.ours, []).append(entry)
    found: dict[str, Tensor] = {}
    for key, ours in model.named_parameters():
        owner = canonical(key)[1]
        if chosen.modality and (owner not in (chosen.modality, "shared") or ".high." in key or key.startswith("high.")):
            continue
        for pattern, _ in _wanted(key, chosen):
            for entry in table.get(pattern, ()):
                rows = ours.detach().chunk(entry.part[1])[entry.part[0]]
                found[_layer(entry.theirs, key)] = _to_theirs(rows, entry, patch).to(dtype).contiguous().clone()
    return found


def _to_theirs(rows: Tensor, entry: Entry, patch: tuple[int, ...]) -> Tensor:
    if entry.shape == "row":
        return rows.unsqueeze(0)
    if entry.shape == "patch_in":
        return rows.unflatten(1, (-1, *patch))
    if entry.shape == "patch_out":
        return rows.unflatten(0, (-1, prod(patch))).transpose(0, 1).flatten(0, 1)
    return rows
