"""A study as a comparison: its declared contrasts, budgets, failures and tuning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nava_lab.config import from_file
from nava_lab.report.again import study_commands
from nava_lab.report.compare import Comparison, Family, concluded, ranked
from nava_lab.report.front import Design, confirmed_front
from nava_lab.report.judge import Judged, all_pairs, corrected, judge, judge_slope, margin_of
from nava_lab.report.runs import Run, by_label, differences, load_run, scores_by_seed
from nava_lab.study import record
from nava_lab.study.grammar import shown
from nava_lab.study.least import least_loss
from nava_lab.study.results import CONFIRMATION, FRONT, TUNING, StudyResult, load_study, root_of
from nava_lab.study.statistics import Effect, Scaling, Tuned, main_effects, scaling, tuning_doubts, unequal_tuning


def compare_study(folder: Path) -> Comparison:
    """A study's confirmation runs, judged by what the study declared."""
    result = load_study(folder)
    study = result.study
    runs, left_out = _confirmed(result)
    if not runs:
        raise record.BadRecord(f"{folder} has no finished confirmation run yet; `nava study` continues it")
    families, designs = _families(result, runs)
    tuned = _tuned(result)
    unfair = unequal_tuning(tuned, study.seeds)
    if unfair:
        families = [replace(family, differences=[*family.differences, *unfair], contrasts=()) for family in families]
    asked = _labelled(families, lambda part: not part.unequal)
    contrasted = _labelled(families, lambda part: part.outcome != "refused")
    made = Comparison(
        [run for family in families for run in family.runs],
        study.metric,
        result.higher_is_better,
        families,
        declared=bool(designs or study.contrasts),
        question=study.question,
        without=study.origin.without,
        reservations=[*_unfinished(result), *_failed(result, runs, asked), *_at_bounds(result, contrasted)],
        doubts=_doubts(result, tuned, contrasted),
        left_out=left_out,
        planned=sum(run.phase == CONFIRMATION for run in result.runs),
        laws=_laws(result, runs),
        law_axes=(study.scaling.size, study.scaling.metric) if study.scaling else ("parameters", "loss"),
        axes={point.label: {key: level for key, level in point.levels.items() if key != FRONT} for point in result.points},
        extra=_extra(result),
        front=designs,
    )
    return concluded(made)


def _families(result: StudyResult, runs: Sequence[Run]) -> tuple[list[Family], list[Design]]:
    """The runs under each budget with their contrasts, and the designs of a study with two objectives."""
    study, varied = result.study, _varied(result)
    two = bool(study.tuning and study.tuning.two_objectives)
    families, designs = [], []
    for budget in study.budgets or ("",):
        own = [run for run in runs if run.family == budget]
        planned = [point.label for point in result.points if point.budget == budget]
        family = Family(budget, own, differences(own, varied, priced=two), planned=planned)
        if two:
            found = {point.label: {key: point.settings[key] for key in _tuned_keys(result)} for point in result.points}
            front, contrasts = confirmed_front(own, found, study.metric, result.higher_is_better, family.differences, budget)
            designs += front
        else:
            contrasts = corrected(_judged(result, family, varied))
        families.append(ranked(replace(family, contrasts=contrasts), study.metric, result.higher_is_better))
    return families, designs


def _labelled(families: Sequence[Family], wanted: Callable[[Judged], bool]) -> set[str]:
    """The keys of the points that some contrasts rest on."""
    return {
        f"{label} [{family.name}]" if family.name else label
        for family in families
        for part in family.contrasts
        if wanted(part)
        for label in part.labels
    }


def _confirmed(result: StudyResult) -> tuple[list[Run], list[str]]:
    """The finished confirmation runs, labelled by their points, and what is missing."""
    runs, left_out = [], []
    for planned in result.runs:
        if planned.phase != CONFIRMATION:
            continue
        point = result.point(planned.point)
        name = f"{planned.point}, seed {planned.seed}"
        if planned.state != "finished" or planned.folder is None:
            left_out.append(f"{name}: {planned.state}" + (f" ({planned.error})" if planned.error else ""))
            continue
        try:
            runs.append(replace(load_run(planned.folder), label=point.label, family=planned.budget))
        except (record.BadRecord, OSError) as error:
            left_out.append(f"{name}: {error}")
    return runs, left_out


def _varied(result: StudyResult) -> set[str]:
    """The keys that points differ in or that are tuned."""
    study = result.study
    keys = {key for point in study.points for key in point.settings}
    return {key for key in keys if len({repr(point.settings.get(key)) for point in study.points}) > 1} | set(_tuned_keys(result))


def _tuned_keys(result: StudyResult) -> list[str]:
    tuning = result.study.tuning
    return [part.key for part in tuning.space] if tuning else []


def _judged(result: StudyResult, family: Family, varied: set[str]) -> list[Judged]:
    """The declared contrasts of a family, or all pairs where the study declares none; not yet corrected."""
    study, groups = result.study, by_label(family.runs)
    asked = [part for part in study.contrasts if part.budget == family.name]
    pairs = [(part.first, part.second) for part in asked if not part.along]
    if not study.contrasts:
        pairs = [] if family.differences else all_pairs(family.labels)

    def unlike(*labels: str) -> list[str]:
        return differences([run for label in labels for run in groups.get(label, {}).values()], varied)

    unequal = {pair: unlike(*pair) for pair in pairs}
    scores = {label: scores_by_seed(group.values(), study.metric) for label, group in groups.items()}
    margin = margin_of(study.metric, result.higher_is_better, study.margins)
    slopes = [
        judge_slope(scores, part, result.higher_is_better, [line for _, *both in part.steps for line in unlike(*both)])
        for part in asked
        if part.along
    ]
    return [*judge(scores, pairs, result.higher_is_better, margin, unequal, family.name), *slopes]


def _tuned(result: StudyResult) -> dict[str, Tuned]:
    tuning = result.study.tuning
    if tuning is None or tuning.two_objectives:
        return {}
    space = {part.key: part.values or (part.low, part.high) for part in tuning.space}
    return {
        key: Tuned(
            choice.trials + choice.pruned + choice.failed,
            choice.failed,
            space,
            choice.at_bound,
            tuning.seeds,
            tuple(sorted({run.code for run in result.runs if run.point == key and run.code})),
        )
        for key, choice in result.choices.items()
    }


def _unfinished(result: StudyResult) -> list[str]:
    """What is still to come: a look before the end is one of several, and each is another chance to err."""
    if result.complete:
        return []
    open_ = {phase: result.counts(phase) for phase in (TUNING, CONFIRMATION)}
    left = {phase: counts["running"] + counts["missing"] for phase, counts in open_.items()}
    parts = [f"{left[phase]} of {sum(counts.values())} {phase} runs" for phase, counts in open_.items() if left[phase]]
    return [
        f"{' and '.join(parts)} have not ended: what is said here may change, and looking before the end makes chance findings "
        "likelier. The same command continues the study."
    ]


def _failed(result: StudyResult, runs: Sequence[Run], asked: Collection[str]) -> list[str]:
    """Contrasted points of which seeds failed or have no score: to leave those out is to choose the seeds that went well."""
    lines, metric = [], result.study.metric
    scored = {run.folder: run.value(metric) for run in runs}
    for point in result.points if asked else ():
        planned = result.confirmations(point) if point.key in asked else []
        why = {run.seed: run.error or "no reason is known" for run in planned if run.state == "failed"}
        for run in planned:
            if run.state == "finished" and (run.folder is None or scored.get(run.folder) is None):
                why[run.seed] = f"its clips have no {metric}" if run.folder in scored else "its record cannot be read"
        if not why:
            continue
        reasons = "; ".join(
            f"seed{'s' * (len(own) > 1)} {', '.join(map(str, own))}: {reason}" for reason, own in _by(why).items()
        )
        rests = (
            "so nothing can be said of it, and nobody is ahead of all"
            if len(why) == len(planned)
            else "and what is said of it rests on the others alone, which may be those that went well"
        )
        lines.append(f"{point.key}: {len(why)} of {len(planned)} confirmation seeds failed ({reasons}), {rests}.")
    return lines


def _by(reasons: Mapping[int, str]) -> dict[str, list[int]]:
    """reason -> seeds."""
    found: dict[str, list[int]] = {}
    for seed, reason in sorted(reasons.items()):
        found.setdefault(reason, []).append(seed)
    return found


def _at_bounds(result: StudyResult, contrasted: Collection[str]) -> list[str]:
    """Contrasted points whose tuned optimum lies at an end of the space: beyond it they may be better than they came out."""
    tuning, lines = result.study.tuning, []
    for key, choice in result.choices.items():
        for part in tuning.space if tuning and key in contrasted else ():
            end = choice.at_bound.get(part.key)
            if end:
                ends = part.values or (part.low, part.high)
                low, high = shown(min(ends)), shown(max(ends))
                beyond = f"below {low}" if end == "low" else f"above {high}"
                lines.append(
                    f"{key}: its best {part.key}, {shown(choice.tuned[part.key])}, lies at the {end} end of what was tuned "
                    f"({low} to {high}), so it may do better beyond. Widen tuning.space.{part.key} {beyond}."
                )
    return lines


def _doubts(result: StudyResult, tuned: Mapping[str, Tuned], contrasted: Collection[str]) -> list[str]:
    counts = result.counts(CONFIRMATION)
    lines = []
    total = sum(counts.values())
    if counts["finished"] < total:
        rest = ", ".join(f"{count} {state}" for state, count in counts.items() if count and state != "finished")
        lines.append(f"{counts['finished']} of {total} confirmation runs are finished ({rest}).")
    if result.study.left_out:
        lines.append("Not in this checkout, so left out: " + ", ".join(result.study.left_out) + ".")
    tuning = result.study.tuning
    for key, choice in result.choices.items():
        for part in tuning.space if tuning and not choice.front else ():
            if end := part.at_closed(choice.tuned[part.key]):
                value = shown(choice.tuned[part.key])
                lines.append(f"{key}: its best {part.key}, {value}, lies at the {end} end, beyond which there is nothing to try.")
    beside = {key: replace(part, at_bound={}) if key in contrasted else part for key, part in tuned.items()}
    return lines + [f"{line}." for line in tuning_doubts(beside)]


def _laws(result: StudyResult, runs: Sequence[Run]) -> dict[str, Scaling]:
    """One law per budget and combination of the other axes; with the least possible loss for E, where the world knows it."""
    asked = result.study.scaling
    if asked is None:
        return {}
    levels = {point.label: point.levels for point in result.points}
    series: dict[str, list[Run]] = {}
    for run in runs:
        if run.value(asked.metric) is None or asked.axis not in levels[run.label]:
            continue
        others = [f"{axis.rsplit('.', 1)[-1]}={level}" for axis, level in levels[run.label].items() if axis != asked.axis]
        name = ", ".join(others) or "all"
        if run.family and len(result.study.budgets) > 1:
            name += f" [{run.family}]"
        series.setdefault(name, []).append(run)
    found = {}
    for name, own in series.items():
        losses: dict[float, dict[int, float]] = {}
        for run in own:
            size = run.record["parameters"]["total"] if asked.size == "parameters" else run.record["flops_per_sample"]
            losses.setdefault(float(size), {})[run.seed] = run.value(asked.metric)  # type: ignore[assignment]
        if len(losses) >= 3 + asked.held_out:
            found[name] = scaling(losses, _least(own) if asked.metric == "loss" else None, asked.held_out)
    return found


def _least(runs: Sequence[Run]) -> float | None:
    """The mean over seeds of the least possible loss; None where the world knows none, or runs do not agree on it."""
    by_seed: dict[int, Run] = {run.seed: run for run in runs}
    groups = [{repr(run.config.get(group)) for run in runs} for group in ("world", "flow")]
    if any(len(group) > 1 for group in groups):
        return None
    found = [least_loss(from_file(run.folder / "config.yaml")) for run in by_seed.values()]
    known = [part for part in found if part is not None]
    return sum(known) / len(known) if known else None


def _importance(result: StudyResult) -> dict[str, Effect]:
    """How much of the variance between tuning trials each setting explains."""
    trials = [run for run in result.runs if run.phase == TUNING and run.value is not None]
    rows = [{**result.study.point(run.point).levels, **run.tuned} for run in trials]
    return main_effects(rows, [run.value for run in trials if run.value is not None])


def _extra(result: StudyResult) -> dict[str, Any]:
    """What the page shows of a study besides its runs."""
    trials = [run for run in result.runs if run.phase == TUNING]
    return {
        "study": result.study.name + (f", edition {result.study.edition}" if result.study.edition else ""),
        "fields": dict(result.study.source),
        "commands": study_commands(result.study, root_of(result.folder)),
        "choices": dict(result.choices),
        "importance": _importance(result),
        "trials": trials,
    }
