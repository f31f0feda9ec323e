"""What a study is: one question, what is held fixed, what varies, and how the answer is to be judged.

A study is a YAML file whose first line is a comment with the question::

    # How much of the depth should align before the rest fuses?
    fixed: {world: pulse, variant: align_then_fuse, training.steps: 300}
    vary: {variant.align_fraction: [0, 0.5, 1]}
    seeds: 8
    metric: sync_auc
    budgets:
      parameters: {budget.parameters: 300_000}
    tuning:
      space: {training.lr: {low: 1e-3, high: 1e-2, log: true}}
      trials: 4
    contrasts: {against: {variant.align_fraction: 0}}
    margins: {sync_auc: 0.02}

A key that no field has is an error that names the file and the nearest field. The fields are those of ``Study``.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nava_lab.registry import nearest
from nava_lab.study.grammar import StudyError, as_mapping, checked_keys, is_number, number, override, seeds_of, shown, whole
from nava_lab.study.layers import check_layers
from nava_lab.study.overrides import FIELDS, merged, overridden, reserved
from nava_lab.study.space import Tuning, tuning_of

SIZES = ("parameters", "flops")


@dataclass(frozen=True)
class Point:
    """One thing that is compared: a combination of levels under one budget.

    Attributes:
        label: its levels, as a reader names it.
        budget: which of the study's budgets; empty where the study declares none.
        levels: by axis, the name of the level.
        settings: config keys and values that make it, without those that are tuned.
    """

    label: str
    budget: str
    levels: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Unique within the study."""
        return f"{self.label} [{self.budget}]" if self.budget else self.label


@dataclass(frozen=True)
class Contrast:
    """A declared comparison under one budget: whether ``first`` is better than ``second`` (both are labels).

    Attributes:
        along: an axis of numbers; the question is then whether first's lead over second changes along it, and the labels
            leave it out. Empty for a comparison of two points.
        steps: along it: the axis' value, and the labels of first's and second's points there.
    """

    first: str
    second: str
    budget: str = ""
    along: str = ""
    steps: tuple[tuple[float, str, str], ...] = ()


@dataclass(frozen=True)
class Scaling:
    """A law L = E + a C^-b through the points of one axis.

    Attributes:
        axis: the axis along which size grows.
        size: what C is: "parameters" or "flops" (per sample).
        metric: what L is, a score where lower is better.
        held_out: how many of the largest sizes are predicted instead of fitted.
    """

    axis: str
    size: str = "parameters"
    metric: str = "loss"
    held_out: int = 1


@dataclass(frozen=True)
class Origin:
    """Where a study comes from, so that it can be asked for again.

    Attributes:
        file: as it was named.
        storage: the database's URL, without its password, or the journal's path; empty for the journal in the study's folder.
        overrides: what was said on top of it.
        without: the budgets that the file declares, and its edition or the overrides took away; of a file that was saved
            from such a study, what its field ``without`` says.
    """

    file: str = ""
    overrides: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    storage: str = ""


@dataclass(frozen=True)
class Study:
    """A whole study, checked.

    Attributes:
        name: the file's stem.
        edition: which of the file's editions it is ("cpu", "gpu"); empty where it has none.
        question: the first line of the file.
        fixed: config keys and values that all runs share.
        points: everything that is compared, budgets included.
        seeds: of the confirmation runs, paired across points.
        metric: the score (on the test split) that contrasts are about.
        budgets: names of what is held equal; each point exists once under each.
        tuning: how each point's own settings are chosen first; None for none.
        contrasts: the declared comparisons; all others are exploratory.
        margins: by score, the difference that "no worse" allows.
        scaling: a law through sizes, if that is the question.
        left_out: optional levels that this checkout does not have.
        source: the file's fields as they were read, with edition and overrides applied.
        origin: the file and the overrides; no part of what the study is.
    """

    name: str
    edition: str
    question: str
    fixed: Mapping[str, Any]
    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    metric: str
    budgets: tuple[str, ...]
    tuning: Tuning | None
    contrasts: tuple[Contrast, ...]
    margins: Mapping[str, float]
    scaling: Scaling | None
    left_out: tuple[str, ...]
    source: Mapping[str, Any]
    origin: Origin = Origin()

    def point(self, key: str) -> Point:
        return next(point for point in self.points if point.key == key)

    def overrides(self, point: Point, seed: int, tuned: Mapping[str, Any] | None = None) -> list[str]:
        """What ``nava train`` would be told for one run of a point."""
        settings = {**self.fixed, **point.settings, **(tuned or {}), "seed": seed}
        return [override(key, value) for key, value in settings.items()]


def read_study(
    file: Path, edition: str = "", overrides: Sequence[str] = (), here: Callable[[Mapping[str, Any]], bool] | None = None
) -> Study:
    """A study file as a checked study.

    Args:
        file: the YAML file.
        edition: which edition, where the file has some; empty for none of them.
        overrides: ``KEY=VALUE``, a study's field (``seeds=3``, ``tuning.trials=4``, ``budgets=flops``), a config key, which is
            then fixed for all runs, or ``budgets.NAME.KEY=VALUE``, which is fixed under one budget.
        here: whether this checkout has what some settings name; levels of optional axes that it has not are left out.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        text = file.read_text(encoding="utf-8")
        plain = OmegaConf.to_container(OmegaConf.create(text))
    except FileNotFoundError:
        known = [str(path) for path in sorted(file.parent.glob("*.yaml"))] if file.parent.is_dir() else []
        raise StudyError(f"{file} does not exist" + (f"; {nearest(str(file), known)}" if known else "")) from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise StudyError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    first = text.split("\n", 1)[0].strip()
    if not re.fullmatch(r"#\s*[^?]+\?", first):
        raise StudyError(f"{file}: the first line must be a comment with one question, such as '# Which family is best?'")
    fields = as_mapping(plain, f"{file}")
    checked_keys(fields, FIELDS, str(file))
    editions = as_mapping(fields.pop("editions", None) or {}, f"{file}: editions")
    declared = dict(as_mapping(fields.get("budgets") or {}, f"{file}: budgets"))
    if edition:
        if edition not in editions:
            raise StudyError(
                f"{file} has no edition {edition}; {nearest(edition, list(editions)) if editions else 'it has none'}"
            )
        fields = merged(fields, as_mapping(editions[edition], f"{file}: editions.{edition}"), f"{file}: editions.{edition}")
    declared |= as_mapping(fields.get("budgets") or {}, f"{file}: budgets")
    fields = overridden(fields, overrides, str(file))
    lost = [name for name in declared if name not in (fields.get("budgets") or {})]
    if lost:  # it goes with the fields, so that what is saved of them still knows it
        fields["without"] = list(dict.fromkeys([*_left_out(fields, str(file)), *lost]))
    check_layers(fields, str(file))
    origin = Origin(str(file), tuple(overrides))
    return study_of(fields, file.stem, edition, first.lstrip("# ").strip(), str(file), here, origin=origin)


def study_of(
    fields: Mapping[str, Any],
    name: str,
    edition: str,
    question: str,
    where: str,
    here: Callable[[Mapping[str, Any]], bool] | None = None,
    left_out: Sequence[str] = (),
    origin: Origin = Origin(),
) -> Study:
    """A study from its fields; ``where`` names their source in messages, ``left_out`` optional levels that are not here."""
    checked_keys(fields, FIELDS, where)
    fixed = as_mapping(fields.get("fixed") or {}, f"{where}: fixed")
    budgets = as_mapping(fields.get("budgets") or {"": {}}, f"{where}: budgets")
    grids, missing = _grids(fields, where, here or (lambda settings: True), left_out)
    gone = [f"{name.split('=')[0].rsplit('.', 1)[-1]}={name.split('=', 1)[1]}" for name in missing]
    points = tuple(
        Point(label, budget, levels, {**as_mapping(held or {}, f"{where}: budgets.{budget}"), **settings})
        for budget, held in budgets.items()
        for label, levels, settings in _unique(grids)
    )
    for settings in [fixed, *(point.settings for point in points)]:
        for key in settings:
            if told := reserved(key):
                raise StudyError(f"{where}: {key} is not for a study to set: {told}")
    metric = fields.get("metric")
    if not isinstance(metric, str) or not metric:
        raise StudyError(f"{where}: metric must name the score that contrasts are about, such as sync_auc")
    seeds = seeds_of(fields.get("seeds", 8), 0, f"{where}: seeds")
    tuning = tuning_of(fields["tuning"], f"{where}: tuning", metric) if fields.get("tuning") else None
    if tuning and set(tuning.seeds) & set(seeds):
        raise StudyError(f"{where}: seeds and tuning.seeds share {sorted(set(tuning.seeds) & set(seeds))}; confirm on fresh ones")
    margins = as_mapping(fields.get("margins") or {}, f"{where}: margins")
    margins = {score: number(value, f"{where}: margins.{score}", above=0) for score, value in margins.items()}
    origin = dataclasses.replace(origin, without=tuple(dict.fromkeys([*origin.without, *_left_out(fields, where)])))
    return Study(
        name,
        edition,
        question,
        fixed,
        points,
        seeds,
        metric,
        tuple(budgets),
        tuning,
        _contrasts(fields.get("contrasts") or {}, points, gone, f"{where}: contrasts"),
        margins,
        _scaling(fields["scaling"], grids, f"{where}: scaling") if fields.get("scaling") else None,
        missing,
        dict(fields),
        origin,
    )


def _left_out(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The budgets under which the question is also asked, and here is not."""
    named = fields.get("without") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise StudyError(f"{where}: without must list the names of budgets that are left out, such as [flops]")
    if there := [name for name in named if name in (fields.get("budgets") or {})]:
        raise StudyError(f"{where}: without names {there[0]}, which budgets has: leave it out of one of them")
    return tuple(named)


Level = tuple[str, Mapping[str, Any]]
Cell = tuple[str, Mapping[str, str], Mapping[str, Any]]


def _grids(
    fields: Mapping[str, Any], where: str, here: Callable[[Mapping[str, Any]], bool], left_out: Sequence[str]
) -> tuple[list[Cell], tuple[str, ...]]:
    """The cells of every grid of ``vary``, and the optional levels that are not here."""
    vary = fields.get("vary") or {}
    missing = list(left_out)
    cells: list[Cell] = []
    for grid in vary if isinstance(vary, list) else [vary]:
        axes = {
            axis: _levels(axis, levels, f"{where}: vary.{axis}") for axis, levels in as_mapping(grid, f"{where}: vary").items()
        }
        for axis in set(fields.get("optional") or []) & set(axes):
            fixed = fields.get("fixed") or {}
            missing += [f"{axis}={name}" for name, settings in axes[axis] if not here({**fixed, **settings})]
        axes = {axis: [level for level in levels if f"{axis}={level[0]}" not in missing] for axis, levels in axes.items()}
        for combination in itertools.product(*axes.values()):
            levels = {axis: name for axis, (name, _) in zip(axes, combination, strict=True)}
            settings = {key: value for _, part in combination for key, value in part.items()}
            label = ", ".join(f"{axis.rsplit('.', 1)[-1]}={name}" for axis, name in levels.items())
            cells.append((label or "all", levels, settings))
    if not cells:
        raise StudyError(f"{where}: vary leaves nothing to compare" + (f" without {', '.join(missing)}" if missing else ""))
    return cells, tuple(dict.fromkeys(missing))


def _unique(cells: Sequence[Cell]) -> list[Cell]:
    return list({cell[0]: cell for cell in cells}.values())


def _levels(axis: str, levels: Any, where: str) -> list[Level]:
    """A list of values of one key, or named levels that each set several keys."""
    if isinstance(levels, Mapping):
        return [(str(name), as_mapping(settings or {}, f"{where}.{name}")) for name, settings in levels.items()]
    if not isinstance(levels, list) or not levels:
        raise StudyError(f"{where} must be a list of values, or a mapping from a level's name to its settings")
    found: list[Level] = [(shown(value), {axis: value}) for value in levels]
    if len({name for name, _ in found}) < len(found):
        raise StudyError(f"{where} lists a value twice")
    return found


def _contrasts(value: Any, points: Sequence[Point], gone: Sequence[str], where: str) -> tuple[Contrast, ...]:
    """The declared comparisons; those of levels that are ``gone`` from here are left out with them."""
    fields = as_mapping(value, where)
    checked_keys(fields, ("against", "pairs", "slopes"), where)
    found: list[Contrast] = []
    known = {point.label for point in points}
    for pair in fields.get("pairs") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise StudyError(f"{where}.pairs must list pairs of labels")
        if any(part in gone for label in pair for part in str(label).split(", ")):
            continue
        for label in pair:
            if label not in known:
                raise StudyError(f"{where}.pairs: there is no '{label}'; {nearest(str(label), sorted(known))}")
        found += [Contrast(pair[0], pair[1], budget) for budget in dict.fromkeys(point.budget for point in points)]
    for axis, level in as_mapping(fields.get("against") or {}, f"{where}.against").items():
        base = _base(axis, level, points, f"{where}.against")
        by_levels = {(point.budget, tuple(point.levels.items())): point for point in points}
        for point in points:
            if point.levels.get(axis, base) != base:
                other = by_levels.get((point.budget, tuple({**point.levels, axis: base}.items())))
                found += [Contrast(point.label, other.label, point.budget)] if other else []
    for axis, against in as_mapping(fields.get("slopes") or {}, f"{where}.slopes").items():
        for compared, level in as_mapping(against, f"{where}.slopes.{axis}").items():
            found += _slopes(axis, compared, level, points, f"{where}.slopes")
    return tuple(dict.fromkeys(found))


def _base(axis: str, level: Any, points: Sequence[Point], where: str) -> str:
    """The name of a level that must be one of an axis."""
    axes = sorted({name for point in points for name in point.levels})
    if axis not in axes:
        raise StudyError(f"{where}: {axis} does not vary; {nearest(axis, axes)}")
    base, levels = shown(level), sorted({point.levels[axis] for point in points if axis in point.levels})
    if base not in levels:
        raise StudyError(f"{where}.{axis}={base}: {nearest(base, levels)}")
    return base


def _slopes(axis: str, other: str, level: Any, points: Sequence[Point], where: str) -> list[Contrast]:
    """Along ``axis``, the lead of every level of ``other`` over one of them."""
    base = _base(other, level, points, f"{where}.{axis}")
    on = [point for point in points if axis in point.levels and other in point.levels]
    if not on or axis == other:
        raise StudyError(f"{where}.{axis}: {axis} and {other} must vary together")
    if not all(is_number(point.settings.get(axis)) for point in on):
        raise StudyError(f"{where}.{axis}: a slope is along numbers, and {axis} lists others")
    lines: dict[tuple[str, str, str], dict[float, str]] = {}  # (budget, level of other, label without the axis) -> value -> label
    bases: dict[tuple[str, str, str], str] = {}
    for point in on:
        first, second = (
            ", ".join(f"{name.rsplit('.', 1)[-1]}={part}" for name, part in levels.items() if name != axis)
            for levels in (point.levels, {**point.levels, other: base})
        )
        key = (point.budget, point.levels[other], first)
        lines.setdefault(key, {})[float(point.settings[axis])] = point.label
        bases[key] = second
    made = []
    for (budget, name, first), labels in lines.items():
        second = bases[budget, name, first]
        against = lines.get((budget, base, second), {})
        steps = tuple((value, labels[value], against[value]) for value in sorted(set(labels) & set(against)))
        if name != base and len(steps) > 1:
            made.append(Contrast(first, second, budget, axis, steps))
    return made


def _scaling(value: Any, cells: Sequence[Cell], where: str) -> Scaling:
    fields = as_mapping(value, where)
    checked_keys(fields, tuple(part.name for part in dataclasses.fields(Scaling)), where)
    scaling = Scaling(**{"axis": "", **fields})
    axes = sorted({axis for _, levels, _ in cells for axis in levels})
    if scaling.axis not in axes:
        raise StudyError(f"{where}.axis={scaling.axis} does not vary; {nearest(scaling.axis, axes)}")
    if scaling.size not in SIZES:
        raise StudyError(f"{where}.size={scaling.size}: {nearest(str(scaling.size), list(SIZES))}")
    whole(scaling.held_out, f"{where}.held_out", least=1)
    return scaling
