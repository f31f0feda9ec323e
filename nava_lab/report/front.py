"""The designs that a search for two objectives found, confirmed on fresh seeds: which of them nothing cheaper beats.

A design is on the front where every one that costs no more scores worse. By seed that is plain; over seeds each of those must be
told apart from it, so its p is the largest of theirs (an intersection-union test, Berger 1982, Technometrics 24, 295), and Holm's
correction goes over the designs. It has fallen off where one that costs no more is ahead of it; as that one is chosen among
several, its p is times how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nava_lab.report.judge import Judged, corrected, judge, signed
from nava_lab.report.runs import Run, by_label, scores_by_seed
from nava_lab.study.grammar import shown, spoken
from nava_lab.study.statistics import SEEDS_FOR_A_VERDICT, Interval, t_interval


@dataclass(frozen=True)
class Design:
    """A point of the front, as its fresh seeds have it.

    Attributes:
        settings: what was found for it, by key.
        cost: training FLOPs of one clip.
        interval: mean score and t-interval over seeds.
        stays: on how many of ``seeds`` nothing that costs no more scores as well.
        seeds: that all designs of its budget have.
        beaten_by: the label of what costs no more and has the better mean; empty where it is on the front by its mean.
    """

    label: str
    family: str
    settings: Mapping[str, Any]
    cost: float
    interval: Interval
    stays: int
    seeds: int
    beaten_by: str = ""


def confirmed_front(
    runs: Sequence[Run],
    settings: Mapping[str, Mapping[str, Any]],
    score: str,
    higher_is_better: bool,
    unequal: Sequence[str] = (),
    family: str = "",
) -> tuple[list[Design], list[Judged]]:
    """The designs by rising cost, and each but the cheapest against its strongest rival among those that cost no more."""
    groups = by_label(runs)
    scores = {label: found for label, group in groups.items() if (found := scores_by_seed(group.values(), score))}
    cost = {label: float(next(iter(groups[label].values())).record["flops_per_sample"]) for label in scores}
    mean = {label: sum(found.values()) / len(found) for label, found in scores.items()}
    order = sorted(scores, key=lambda label: cost[label])
    seeds = sorted(set.intersection(*(set(found) for found in scores.values()))) if scores else []
    sign = 1 if higher_is_better else -1
    designs, contrasts = [], []
    for label in order:
        rivals = [other for other in order if other != label and cost[other] <= cost[label]]
        own = scores[label]
        stays = sum(all(sign * own[seed] > sign * scores[other][seed] for other in rivals) for seed in seeds)
        interval = Interval(*map(float, t_interval(list(own.values()))))
        better = max(rivals, key=lambda other: sign * mean[other], default="")
        beaten_by = better if better and sign * mean[better] >= sign * mean[label] else ""
        designs.append(Design(label, family, settings.get(label, {}), cost[label], interval, stays, len(seeds), beaten_by))
        if rivals:
            contrasts.append(
                _strongest(judge(scores, [(label, other) for other in rivals], higher_is_better, None, family=family))
            )
    if unequal:
        contrasts = [replace(part, unequal=tuple(unequal)) for part in contrasts]
    return designs, corrected(contrasts)


def _strongest(found: Sequence[Judged]) -> Judged:
    """Of a design's contrasts with what costs no more, the one that its place hangs on, with the p of all of them."""
    rival = min(found, key=lambda part: part.gain)
    if rival.gain > 0:
        hardest = max(found, key=lambda part: part.p)
        return replace(hardest, labels=tuple(dict.fromkeys(label for part in found for label in part.labels)))
    p = min(1.0, len(found) * rival.found.p)
    return replace(rival, p=p, found=replace(rival.found, p=p))


def front_summary(designs: Sequence[Design], contrasts: Sequence[Judged], score: str) -> tuple[str, list[str]]:
    """Which designs stay on the front in a few sentences, and each with its cost, its score and on how many seeds it stays."""
    lines = []
    for family in dict.fromkeys(design.family for design in designs):
        own = [design for design in designs if design.family == family]
        outcomes = {part.found.first: part for part in contrasts if part.family == family}
        stay = [own[0].label, *(label for label, part in outcomes.items() if part.outcome == "ahead")]
        fall = [part for part in outcomes.values() if part.outcome == "behind"]
        unsure = [label for label, part in outcomes.items() if part.outcome not in ("ahead", "behind")]
        under = f" at equal {spoken(family)}" if family else ""
        few = [part.found.n for part in outcomes.values() if not part.found.enough]
        if few and len(few) == len(outcomes):
            means = [design.label for design in own if not design.beaten_by]
            lines.append(
                f"Exploratory: {min(few)} seed{'s' * (min(few) != 1)} per design, and a verdict needs {SEEDS_FOR_A_VERDICT}. "
                f"By their means in {score}{under}, nothing that costs no more beats {_and(means)}."
            )
            continue
        kept = f"{_and(stay[1:])} stay{'s' * (len(stay) == 2)} on it, ahead of all that cost no more"
        kept = kept if len(stay) > 1 else "no other is sure to stay on it"
        lines.append(f"Of {len(own)} designs of the front in {score}{under}, {stay[0]} is the cheapest, and {kept}.")
        lines += [f"{part.found.first} has fallen off it: {part.found.second} costs no more and is ahead." for part in fall]
        if unsure:
            lines.append(f"{_and(unsure)} cannot be told from something that costs no more.")
    return " ".join(lines), [_told(design, score) for design in designs]


def _told(design: Design, score: str) -> str:
    digits = 1 if score.endswith("_ms") else 3
    mean, low, high = (signed(value, digits).removeprefix("+") for value in design.interval)
    ends = f" [{low}, {high}]" if design.interval.low == design.interval.low else ""
    named = ", ".join(
        f"{key} {f'{value:.3g}' if isinstance(value, float) else shown(value)}" for key, value in design.settings.items()
    )
    beaten = f"; by its mean {design.beaten_by} beats it" if design.beaten_by else ""
    under = f" at equal {spoken(design.family)}" if design.family else ""
    return (
        f"{design.label}{under} ({named}): {design.cost / 1e6:.4g} M training FLOPs per clip, {score} {mean}{ends}; "
        f"not beaten at its cost on {design.stays} of {design.seeds} seeds{beaten}."
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
