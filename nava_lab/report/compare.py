"""Which runs may be ranked, in what order, and what may be concluded.

The seed is the unit of a comparison. Fewer than eight seeds per variant give numbers and no verdict; runs that differ in
data, budget, training length, scoring or code are shown side by side and not ranked, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nava_lab.report.across import CLAIMS, HOLDS, SPLIT, across, at_one_budget
from nava_lab.report.front import Design, front_summary
from nava_lab.report.judge import Judged, all_pairs, corrected, hopeless, judge, margin_of
from nava_lab.report.runs import Run, by_label, differences, find_runs, labelled, load_run, scores_by_seed
from nava_lab.report.summary import summarised
from nava_lab.study import record
from nava_lab.study.grammar import spoken
from nava_lab.study.statistics import SEEDS_FOR_A_VERDICT, Interval, Scaling, scale_dependent, t_interval

VERDICT, PROVISIONAL, EXPLORATORY = "verdict", "provisional", "exploratory"
DISAGREE, UNDECIDED = "budgets disagree", "undecided"
NOT_RANKED, ALONE = "not ranked", "nothing to compare"


@dataclass(frozen=True)
class OverSeeds:
    """One label's scores over its seeds.

    Attributes:
        interval: mean of the headline with its t-interval over seeds (NaN ends for one seed).
        lowest, highest: of the seeds.
        runs: by seed.
    """

    label: str
    family: str
    interval: Interval
    lowest: float
    highest: float
    runs: Mapping[int, Run]

    @property
    def seeds(self) -> int:
        return len(self.runs)

    @property
    def mean(self) -> float:
        return self.interval.mean

    def defined(self, score: str) -> int:
        """How many of the seeds have a score: it may not be defined for some."""
        return len(scores_by_seed(self.runs.values(), score))

    def over(self, score: str) -> Interval:
        """Any score's mean and t-interval."""
        values = list(scores_by_seed(self.runs.values(), score).values())
        return Interval(*map(float, t_interval(values))) if values else Interval(*[float("nan")] * 3)


@dataclass(frozen=True)
class Family:
    """Runs that are judged together: all of them, or those under one of a study's budgets.

    Attributes:
        name: the budget; empty where there is but one family.
        differences: what keeps its runs from being ranked.
        contrasts: judged, declared ones or all pairs.
        planned: the labels that were to be compared, whatever became of their runs; empty where nobody planned them.
    """

    name: str
    runs: Sequence[Run]
    differences: Sequence[str]
    contrasts: Sequence[Judged] = ()
    planned: Sequence[str] = ()

    @property
    def labels(self) -> list[str]:
        """Everything that is compared here, those without a single finished run included."""
        return list(dict.fromkeys([*self.planned, *by_label(self.runs)]))


@dataclass(frozen=True)
class Comparison:
    """Runs, what they are judged by, and what may be concluded.

    Attributes:
        headline: the score they are judged by; empty where they have no common one.
        higher_is_better: the headline's direction.
        families: the runs in families, ranked where they may be.
        declared: whether the contrasts were declared before the runs were made.
        question: what was asked.
        without: budgets that were declared and then left out.
        status: verdict (some claim holds under every budget and none is contradicted), provisional, budgets disagree, undecided,
            exploratory, not ranked or nothing to compare.
        summary: the conclusion in one sentence.
        reservations: what makes a verdict provisional, a sentence each: runs to come, a budget left out, tuning at its bounds.
        findings: what supports and limits it, a sentence each.
        sentences: every contrast in words.
        doubts: what a reader should know beside it: failures, tuning at its bounds.
        left_out: runs that are not here and why, a sentence each.
        planned: how many runs there should be; 0 where nobody planned them.
        laws: scaling laws by what they are of.
        axes: settings that a study varied, by label: axis -> level.
        extra: what a study adds to the page: its file, its tuning.
        front: of a study with two objectives, the designs that it found, by rising cost.
    """

    runs: Sequence[Run]
    headline: str
    higher_is_better: bool
    families: Sequence[Family]
    declared: bool = False
    question: str = ""
    without: Sequence[str] = ()
    status: str = EXPLORATORY
    summary: str = ""
    reservations: Sequence[str] = ()
    findings: Sequence[str] = ()
    sentences: Sequence[str] = ()
    doubts: Sequence[str] = ()
    left_out: Sequence[str] = ()
    planned: int = 0
    laws: Mapping[str, Scaling] = field(default_factory=dict)
    law_axes: tuple[str, str] = ("parameters", "loss")
    axes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    front: Sequence[Design] = ()

    @property
    def verdict(self) -> str:
        """Everything that is concluded, as one text."""
        return " ".join([self.summary, *self.reservations, *self.findings, *self.sentences])

    @property
    def differences(self) -> list[str]:
        """What keeps runs from being ranked, over all families."""
        return list(dict.fromkeys(line for family in self.families for line in family.differences))

    @property
    def contrasts(self) -> list[Judged]:
        return [part for family in self.families for part in family.contrasts]

    @property
    def labels(self) -> list[str]:
        """Every label once, in the order of the runs."""
        return list(dict.fromkeys(run.label for run in self.runs))

    def truth(self) -> Mapping[str, Mapping[str, float]]:
        """Scores of the true clips, where all runs were scored on the same; empty otherwise."""
        found = [run.record.get("truth", {}) for run in self.runs]
        return found[0] if all(part == found[0] for part in found) else {}

    def over_seeds(self) -> list[OverSeeds]:
        """The headline over seeds per label and family, best first within a family that is ranked."""
        rows = [row for family in self.families for row in over_seeds(family, self.headline, self.higher_is_better)]
        return rows

    def direction(self, score: str) -> bool | None:
        """Whether higher is better in a score, as its metric declared in the records."""
        if score == self.headline:
            return self.higher_is_better
        found = {run.record.get("directions", {}).get(score) for run in self.runs}
        return found.pop() if len(found) == 1 else None

    def from_chance(self, score: str) -> bool:
        """Whether 0 is chance and 1 perfect in a score, as its metric declared in the records."""
        return any(score in run.record.get("exact", ()) for run in self.runs)


def over_seeds(family: Family, headline: str, higher_is_better: bool) -> list[OverSeeds]:
    rows = []
    for label, group in by_label(family.runs).items():
        values = list(scores_by_seed(group.values(), headline).values()) if headline else []
        if values:
            found = Interval(*map(float, t_interval(values)))
            rows.append(OverSeeds(label, family.name, found, min(values), max(values), group))
    if not family.differences:
        rows.sort(key=lambda row: -row.mean if higher_is_better else row.mean)
    return rows


def compare(paths: Sequence[Path]) -> Comparison:
    """Load and judge runs, a folder of runs, or a study's folder.

    A run that is named and not finished is an error that says how to finish it; one in a named folder is counted and left out.
    """
    from nava_lab.study.results import is_study

    studies = [path for path in paths if is_study(path)]
    if studies:
        if len(paths) > 1:
            raise record.BadRecord(f"{studies[0]} is a study: compare it by itself")
        from nava_lab.report.of_study import compare_study

        return compare_study(studies[0])
    found, left_out = find_runs(paths)
    runs = labelled(found)
    if not runs:
        raise record.BadRecord("; ".join(left_out) or "nothing to compare: name at least one run's folder")
    headlines = {run.record["headline"] for run in runs}
    headline = headlines.pop() if len(headlines) == 1 else ""
    higher = bool(runs[0].record["higher_is_better"])
    unequal = differences(runs)
    family = Family("", runs, unequal)
    pairs = [] if unequal else all_pairs([row.label for row in over_seeds(family, headline, higher)])
    scores = {label: scores_by_seed(group.values(), headline) for label, group in by_label(runs).items()}
    contrasts = corrected(judge(scores, pairs, higher, margin_of(headline, higher)))
    families = [ranked(replace(family, contrasts=contrasts), headline, higher)]
    worlds = " and ".join(dict.fromkeys(run.record["world"] for run in runs))
    names = list(by_label(runs))
    question = f"Which is best on {worlds}: {', '.join(names)}?" if len(names) > 1 else f"How good is {names[0]} on {worlds}?"
    lacking = undefined(runs, headline) if headline else []
    ranked_runs = families[0].runs
    made = concluded(
        Comparison(ranked_runs, headline, higher, families, question=question, left_out=left_out, reservations=lacking)
    )
    return made if made.status == PROVISIONAL else replace(made, doubts=[*made.doubts, *lacking])


def undefined(runs: Sequence[Run], score: str) -> list[str]:
    """The variants of which seeds have no score, a sentence each: to leave those out is to choose the seeds that went well."""
    lines = []
    for label, group in by_label(runs).items():
        lacking = sorted(seed for seed, run in group.items() if run.value(score) is None)
        if lacking:
            seeds = f"seed{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}"
            why = f"{label}: {score} is not defined for {seeds} of {len(group)} (nothing to count in their clips)"
            rest = "nothing can be said of it" if len(lacking) == len(group) else "what is said of it rests on the others alone"
            lines.append(f"{why}, and {rest}.")
    return lines


def ranked(family: Family, headline: str, higher_is_better: bool) -> Family:
    """The family with its runs in order of the headline, if they may be ranked."""
    if family.differences or not headline:
        return family

    def key(run: Run) -> float:
        value = run.value(headline)
        return float("inf") if value is None else -value if higher_is_better else value

    means = {row.label: place for place, row in enumerate(over_seeds(family, headline, higher_is_better))}
    runs = sorted(family.runs, key=lambda run: (means.get(run.label, len(means)), key(run)))
    return replace(family, runs=runs)


def concluded(comparison: Comparison) -> Comparison:
    """The comparison with its status, summary, reservations and findings."""
    status, summary, findings = _conclusion(comparison)
    reservations = _reservations(comparison) if status == PROVISIONAL else []
    families, score = comparison.families, comparison.headline
    sentences = [part.sentence(score) for family in families for part in family.contrasts]
    findings = [*findings, *_laws(comparison)]
    return replace(comparison, status=status, summary=summary, reservations=reservations, findings=findings, sentences=sentences)


def _reservations(comparison: Comparison) -> list[str]:
    """What makes a verdict provisional: what is known beforehand, and budgets under which a claim is not judged."""
    left_out = []
    if comparison.without:
        names = " and ".join(f"equal {spoken(name)}" for name in comparison.without)
        left_out = [f"The study's file declares {names} as well, and it was left out: a claim needs the same sign there."]
    return [*comparison.reservations, *left_out, *at_one_budget(comparison.contrasts)]


def _one_of(comparison: Comparison) -> str:
    """ " This holds at one of two budgets.", where what is claimed is not judged at all that were declared."""
    claimed = {part.family for part in comparison.contrasts if part.outcome in CLAIMS}
    budgets = {*(family.name for family in comparison.families), *comparison.without}
    lacking = comparison.without or at_one_budget(comparison.contrasts)
    if not lacking or not 0 < len(claimed) < len(budgets):
        return ""
    some, every = (NUMBERS.get(len(part), str(len(part))) for part in (claimed, budgets))
    return f" This holds at {some} of {every} budgets."


NUMBERS = {1: "one", 2: "two", 3: "three"}


def _conclusion(comparison: Comparison) -> tuple[str, str, list[str]]:
    contrasts, unequal = comparison.contrasts, comparison.differences
    # A study's contrasts may stand where the whole family may not be ranked (it varies the world, say).
    usable = [part for part in contrasts if part.outcome != "refused"]
    if unequal and not usable:
        return NOT_RANKED, "Not ranked: " + "; ".join(unequal) + ".", []
    if len(comparison.labels) < 2:
        return ALONE, "One variant only: nothing to compare it with.", []
    if not comparison.headline:
        return NOT_RANKED, "Not ranked: the runs are judged by different scores.", []
    families = comparison.families
    if comparison.front:
        told = front_summary(comparison.front, contrasts, comparison.headline)
        return (_standing(comparison) if any(part.found.enough for part in usable) else EXPLORATORY, *told)
    if not any(part.found.enough for part in usable):
        groups = [group for family in families for group in by_label(family.runs).values()]
        fewest = min((part.found.n for part in usable), default=min(map(len, groups)))
        seeds = f"{fewest} seed{'s' if fewest > 1 else ''} per variant"
        summary = f"Exploratory: {seeds}, and a verdict needs {SEEDS_FOR_A_VERDICT}."
        return EXPLORATORY, summary, [] if fewest > 1 else [OVER_CLIPS]
    findings = list(filter(None, (hopeless(family.contrasts) for family in families)))
    if not comparison.declared and len(usable) > 1:
        findings.append(f"No contrast was declared beforehand, so all {len(usable)} pairs count.")
    kinds = {run.record["budget"]["kind"] for run in comparison.runs}
    if len(kinds) == 1 and not comparison.without and any(part.outcome in CLAIMS for part in usable):
        findings += [line for kind, line in AT_ONE.items() if kind in kinds]
    labels = {family.name: family.labels for family in families}
    summary, rest = summarised(contrasts, labels, comparison.headline)
    return _standing(comparison), summary + _one_of(comparison), [*rest, *findings]


def _standing(comparison: Comparison) -> str:
    """The status of contrasts over seeds enough."""
    standings = {one.standing for one in across(comparison.contrasts)}
    if _reservations(comparison):
        return PROVISIONAL
    return DISAGREE if SPLIT in standings else VERDICT if HOLDS in standings else UNDECIDED


AT_ONE = {
    "parameters": "Judged at equal parameters alone: whether the sign agrees at equal FLOPs was not asked.",
    "flops": "Judged at equal FLOPs alone: whether the sign agrees at equal parameters was not asked.",
}
OVER_CLIPS = "Intervals are over clips: they say how well one trained model is measured, not how training would vary."


def _laws(comparison: Comparison) -> list[str]:
    """Scaling laws in words."""
    lines = []
    size, loss = comparison.law_axes
    for name, law in comparison.laws.items():
        b, error = law.exponent, law.error
        least = f", E {law.known:.4g} known (fitted it would be {law.fitted:.4g})" if law.known is not None else ""
        lines.append(
            f"{name}: {loss} = {law.law.E:.3g} + {law.law.a:.3g} · {size}^−{law.law.b:.3g}{least}, exponent {b.mean:.3f} "
            f"[{b.low:.3f}, {b.high:.3f}]. At the held-out {law.held_out:.3g} it foretells {law.predicted:.4g}, observed "
            f"{law.observed:.4g}: off by {error.mean:+.1%} [{error.low:+.1%}, {error.high:+.1%}]."
            + (f" Not to be relied on: {'; '.join(law.weak)}." if law.weak else "")
        )
    names = list(comparison.laws)
    for first, second in all_pairs(names):
        if scale_dependent(comparison.laws[first], comparison.laws[second]):
            lines.append(f"{first} and {second} have exponents that overlap: which is ahead is scale-dependent.")
    return lines


__all__ = ["Comparison", "Family", "OverSeeds", "Run", "compare", "load_run"]
