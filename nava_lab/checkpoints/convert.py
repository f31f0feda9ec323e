"""A checkpoint into a denoiser, by a table of keys.

Of a checkpoint that knows one modality, weights go where ours serve it alone (its tower, its embedder, its head) or all
modalities; where a joint layer keeps weights per modality, each modality gets a copy, as NAVA starts. The other towers,
embedders and heads, and whatever the checkpoint never had, start fresh. A model that would compute something else with the
same weights is refused, and so is one that wants what the checkpoint lacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from nava_lab.attention.projections import Heads, SelfProjection
from nava_lab.checkpoints.agree import Agreement, agreement, check_names
from nava_lab.checkpoints.facts import INTERLEAVED, PAIRS, SPLIT, Fact
from nava_lab.checkpoints.files import CONFIG, Tensors
from nava_lab.checkpoints.misfits import Misfit, remedy
from nava_lab.checkpoints.names import ENDS, SHARED, canonical, layered, of_layer, part_of, second_expert
from nava_lab.checkpoints.tables import DIALECTS, Dialect, Entry
from nava_lab.models.denoiser import Denoiser

MAPPED, COPIED = "mapped", "copied"


@dataclass(frozen=True)
class Fill:
    """One tensor of a checkpoint into (rows of) one of ours."""

    ours: str
    theirs: str
    entry: Entry
    kind: str


@dataclass(frozen=True)
class Manifest:
    """What became of whose parameters, and what was held against what.

    Attributes:
        dialect: the checkpoint's layout.
        mapped: parameters of ours with one source of their own.
        copied: parameters of ours that share a source with others of ours.
        new: parameters of ours that start anew, by the part of the model that they are in.
        used: parameters of the checkpoint that have a place.
        ignored: parameters of the checkpoint that have none.
        left: some of their names.
        beside: parameters of other models in the same file.
        agreement: of what model and source compute by.
        config_at: where the source says what it computes by; empty where it says nothing.
    """

    dialect: str
    mapped: int
    copied: int
    new: Mapping[str, int]
    used: int
    ignored: int
    left: tuple[str, ...]
    beside: int
    agreement: Agreement
    config_at: str

    @property
    def fresh(self) -> int:
        """Parameters of ours that start anew."""
        return sum(self.new.values())

    @property
    def coverage(self) -> float:
        """Share of the checkpoint's parameters that have a place."""
        return self.used / max(1, self.used + self.ignored)

    def lines(self) -> list[str]:
        """What is said of it: ours by what became of it, theirs by whether it has a place, and what was checked."""
        total = self.mapped + self.copied + self.fresh
        ours = ((self.mapped, "mapped"), (self.copied, "copied"), (self.fresh, "fresh"))
        parts = ", ".join(f"{name} {count:,} ({count / total:.1%})" for count, name in ours)
        rest = f"; ignored {self.ignored:,}, such as {', '.join(self.left[:3])}" if self.ignored else ""
        rest += f"; {self.beside:,} more are other models' in the same file" if self.beside else ""
        lines = [
            f"warm start from {self.dialect}: {parts} of {total:,} parameters",
            f"{self.coverage:.1%} of the checkpoint's {self.used + self.ignored:,} parameters have a place{rest}",
        ]
        if self.new:
            lines.append(f"fresh: {', '.join(f'{name} {count:,} ({count / total:.1%})' for name, count in self.new.items())}")
        where = self.config_at or f"the weights alone (no {CONFIG} beside them)"
        lines.append(f"held against {where}: {', '.join(self.agreement.told) or 'nothing'}")
        if self.agreement.usual:
            lines.append(f"taken as every release of {self.dialect} has it: {', '.join(self.agreement.usual)}")
        if self.agreement.unknown:
            lines.append(f"could not be checked: {', '.join(self.agreement.unknown)}")
        if self.agreement.differ:
            lines.append(f"differs, as warm_start.differ allows: {'; '.join(one.words for one in self.agreement.differ)}")
        return lines


def detect(tensors: Tensors) -> tuple[Dialect, str]:
    """The layout of a checkpoint, and what stands before each of its keys."""
    for dialect in DIALECTS:
        for prefix in dialect.prefixes:
            if prefix + dialect.mark in tensors.where:
                return dialect, prefix
    known = "; ".join(f"{dialect.name} has {dialect.mark}" for dialect in DIALECTS)
    raise ValueError(f"{tensors.path} is a checkpoint of no known layout: {known}")


def plan(model: Denoiser, tensors: Tensors, ends: bool = True, differ: Sequence[str] = ()) -> tuple[list[Fill], Manifest]:
    """Which tensor goes where; nothing is read yet.

    Args:
        model: the denoiser, on any device.
        tensors: the checkpoint.
        ends: also what stands before and after the layers: embedders, heads and the text's encoder, which must agree with it
            in channels and features.
        differ: what the model may compute otherwise than the source (``agree.NAMES``).

    Raises:
        ValueError: no known layout; shapes that do not fit, all of them by name; a model that computes something else than the
            source, or wants tensors that it lacks.
    """
    check_names(differ)
    dialect, prefix = detect(tensors)
    pairs_of(tensors)
    table = dialect.table()
    state = dict(model.named_parameters())
    fills: list[Fill] = []
    lacking: dict[str, str] = {}
    for key in state:
        if not ends and _is_end(key):
            continue
        pattern, kind = wanted(key, dialect)
        found = [Fill(key, prefix + of_layer(entry.theirs, key), entry, kind) for entry in table.get(pattern, ()) if kind]
        absent = [fill.theirs for fill in found if fill.theirs not in tensors.where]
        lacking |= dict.fromkeys(absent, key)
        fills += [] if absent else found
    if misfits := [misfit for fill in fills if (misfit := _misfit(fill, state[fill.ours], tensors))]:
        shown = "; ".join(map(str, misfits[:3])) + (f"; and {len(misfits) - 3} more" if len(misfits) > 3 else "")
        raise ValueError(f"{tensors.path} does not fit: {shown}. Set {remedy(misfits)}")
    agreed = _agreed(model, dialect, prefix, tensors, ends, differ)
    if lacking:
        raise ValueError(_lacks(lacking, model, dialect, prefix, tensors))
    return fills, _manifest(dialect, prefix, fills, state, tensors, agreed)


def _is_end(key: str) -> bool:
    """Whether a weight stands before or after the layers; what tells the noise level is no end."""
    return key.startswith((*ENDS, "high.")) and ".level." not in key


def _agreed(model: Denoiser, dialect: Dialect, prefix: str, tensors: Tensors, ends: bool, differ: Sequence[str]) -> Agreement:
    """What model and source say of what they compute by; ValueError where they differ and may not."""
    widths = {name: tensors.shapes[prefix + key][-1] for name, key in dialect.width.items() if prefix + key in tensors.shapes}
    modalities = tuple(name for name in dialect.modalities if name in model.specs)
    facts = tuple(fact for fact in dialect.facts if ends or not fact.ours.startswith("ends."))
    facts = tuple(fact for fact in facts if not fact.modality or fact.modality in modalities)
    found = agreement(model, facts, dialect.rotary, modalities, widths, tensors, prefix)
    if refused := [one for one in found.differ if one.name not in differ]:
        remedies = " ".join(dict.fromkeys(one.remedy for one in refused if one.remedy))
        kept = ",".join(dict.fromkeys(one.name for one in refused))
        mend = f"Set {remedies}, or start" if remedies else "No setting changes that: start"
        raise ValueError(
            f"{tensors.path} computes otherwise than this model: {'; '.join(one.words for one in refused)}. {mend} all the same "
            f"with warm_start.differ=[{kept}]"
        )
    return found


def _lacks(lacking: Mapping[str, str], model: Denoiser, dialect: Dialect, prefix: str, tensors: Tensors) -> str:
    """What a checkpoint has not and this model would read from it."""
    state = dict(model.named_parameters())
    mark = re.escape(prefix + dialect.mark).replace(r"\.0\.", r"\.(\d+)\.", 1)
    depth = 1 + max(int(found[1]) for key in tensors.where if (found := re.fullmatch(mark, key)))
    beyond = [key for key in lacking.values() if key.startswith("blocks.") and int(key.split(".")[1]) >= depth]
    count = sum(state[key].numel() for key in set(lacking.values()))
    share = count / sum(part.numel() for part in state.values())
    mend = f"it has {depth} layers{_layers(model, dialect, depth)}" if beyond else "fetch it again, or turn off what reads them"
    return (
        f"{tensors.path} lacks {len(lacking)} tensors that this model reads ({share:.1%} of its parameters), such as "
        f"{', '.join(list(lacking)[:3])}; {mend}"
    )


def _layers(model: Denoiser, dialect: Dialect, depth: int) -> str:
    """How a model's modality comes to pass so many layers, whatever settings count them."""
    owner = dialect.modalities[0]
    passed = [by for by, only in zip(model.counted_by, model.passes, strict=True) if not only or owner in only]
    beside = [by for by in dict.fromkeys(passed) if by != "depth"]
    how = ", ".join(f"{passed.count(by)} by variant.{by}" for by in ("depth", *beside))
    here = f", and {owner} passes {len(passed)} here ({how})" if beside else ""
    return f"{here}: set {' '.join((f'variant.depth={depth}', *(f'variant.{by}=0' for by in beside)))}"


def wanted(key: str, dialect: Dialect) -> tuple[str, str]:
    """By which pattern a table knows a key of ours, and what kind of filling that is; empty where it has no part in it."""
    pattern, owner = canonical(key)
    if not dialect.modality:
        return layered(re.sub(r"\.parts\.shared\.", ".parts.{m}.", key)), MAPPED
    own = owner in (dialect.modality, SHARED)
    copied = _split_in_joint(key, owner) or (own and second_expert(key))
    return layered(pattern), COPIED if copied else MAPPED if own else ""


def _split_in_joint(key: str, owner: str) -> bool:
    """Whether a key is one modality's set of weights in a layer that all modalities pass."""
    return owner != SHARED and key.startswith("blocks.") and not re.match(r"blocks\.\d+\.(storeys|bridge)\.", key)


def _misfit(fill: Fill, ours: Tensor, tensors: Tensors) -> Misfit | None:
    """What does not fit; None where it does."""
    rows = (ours.shape[0] // fill.entry.part[1], *ours.shape[1:])
    theirs = laid = tensors.shapes[fill.theirs]
    if fill.entry.shape == "row":
        laid = theirs[1:] if theirs[:1] == (1,) else theirs
    elif fill.entry.shape == "patch_in":
        laid = (theirs[0], prod(theirs[1:]))
    return None if laid == rows else Misfit(fill.ours, rows, fill.theirs, theirs, laid)


def _manifest(
    dialect: Dialect,
    prefix: str,
    fills: list[Fill],
    state: Mapping[str, Tensor],
    tensors: Tensors,
    agreed: Agreement,
) -> Manifest:
    used = {fill.theirs for fill in fills}
    counts = dict.fromkeys((MAPPED, COPIED), 0)
    for fill in fills:
        counts[fill.kind] += state[fill.ours].numel() // fill.entry.part[1]
    filled = {fill.ours for fill in fills}
    new: dict[str, int] = {}
    for key in (key for key in state if key not in filled):
        new[part_of(key)] = new.get(part_of(key), 0) + state[key].numel()
    sizes = {key: prod(shape) for key, shape in tensors.shapes.items()}
    beside = {key for key in sizes if key.removeprefix(prefix).startswith(dialect.beside)} - used
    left = tuple(key for key in sizes if key not in used and key not in beside)
    given, ignored, others = (sum(sizes[key] for key in keys) for keys in (used, left, beside))
    new = dict(sorted(new.items(), key=lambda item: -item[1]))
    return Manifest(dialect.name, counts[MAPPED], counts[COPIED], new, given, ignored, left, others, agreed, tensors.config_at)


def warm_start(
    model: Denoiser, path: str | Path, coverage: float = 0.9, ends: bool = True, differ: Sequence[str] = ()
) -> Manifest:
    """Fill a model from a checkpoint, shard by shard; one tensor of it is in memory at a time.

    Raises:
        ValueError: the checkpoint cannot be read or is of no known layout, a shape does not fit, the model computes otherwise
            and ``differ`` does not allow it, or less than ``coverage`` of the checkpoint's parameters have a place.
    """
    tensors = Tensors.at(path)
    fills, manifest = plan(model, tensors, ends, differ)
    check_coverage(manifest, path, coverage)
    state = dict(model.named_parameters())
    by_theirs: dict[str, list[Fill]] = {}
    for fill in fills:
        by_theirs.setdefault(fill.theirs, []).append(fill)
    patch, split = patch_of(tensors, fills), pairs_of(tensors) == SPLIT
    with torch.no_grad():
        for name, tensor in tensors.read(by_theirs):
            for fill in by_theirs[name]:
                ours = rows_of(model, fill.ours, state[fill.ours], fill.entry)
                made = _to_ours(tensor, fill.entry, patch)
                made = _neighbours(made, head_dim(model, fill.ours)) if split and fill.entry.turned else made
                ours.copy_(made.reshape(ours.shape))
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


def pairs_of(tensors: Tensors) -> str:
    """How a checkpoint's rotary pairs lie: as its config says, or as every release of its layout has them."""
    dialect, prefix = detect(tensors)
    found = pairs_told(dialect).answer(tensors, prefix, None)[0]
    if found not in (INTERLEAVED, SPLIT):
        raise ValueError(f"{tensors.config_at}: rope_type={found} is not one of {INTERLEAVED}, {SPLIT}, which are known here")
    return found


def pairs_told(dialect: Dialect) -> Fact:
    return next(fact for fact in dialect.facts if fact.ours == PAIRS)


def head_dim(model: Denoiser, key: str) -> int:
    """Channels of a head of the attention that a weight belongs to."""
    path = key
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if isinstance(module, SelfProjection):
            return module.head_dim
        if isinstance(module, Heads):
            return module.shape[1]
    raise ValueError(f"{key} belongs to no attention")


def rows_of(model: Denoiser, key: str, ours: Tensor, entry: Entry) -> Tensor:
    """The rows of one of ours that an entry names: of queries, keys and values in one matrix, as many as each has."""
    place, parts = entry.part
    if parts == 1:
        return ours
    module = model.get_submodule(key.rpartition(".qkv.")[0])
    return ours.split([count * module.head_dim for count in module.counts])[place]  # type: ignore[operator,union-attr]


def _neighbours(rows: Tensor, head_dim: int) -> Tensor:
    """Channels of each head from halves, pair j being (j, j + head_dim / 2), to neighbours (2 j, 2 j + 1)."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _to_ours(tensor: Tensor, entry: Entry, patch: tuple[int, ...]) -> Tensor:
    return tensor.unflatten(0, (prod(patch), -1)).transpose(0, 1).flatten(0, 1) if entry.shape == "patch_out" else tensor
