"""From scores by seed to what may be concluded, in words with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from nava_lab.study.grammar import spoken
from nava_lab.study.spec import Contrast
from nava_lab.study.statistics import ALPHA, Paired, Tost, holm, paired, paired_slopes, too_many, tost

MARGIN_MS, MARGIN_POINTS = 5.0, 0.02  # what "no worse" allows where nothing else is declared


def margin_of(score: str, higher_is_better: bool, declared: Mapping[str, float] | None = None) -> float | None:
    """How much worse is still "no worse": as declared, else 5 ms of a time and 2 points of a share; None for other units."""
    if declared and score in declared:
        return declared[score]
    return MARGIN_MS if score.endswith("_ms") else MARGIN_POINTS if higher_is_better else None


@dataclass(frozen=True)
class Judged:
    """A contrast between two labels of a family, and what may be said of it.

    Attributes:
        found: first minus second by seed.
        higher_is_better: the score's direction.
        unequal: why the two may not be compared; empty if they may.
        p: of the sign-flip test, after Holm over the contrasts it stands among.
        margin: of "no worse"; None where the score has none.
        within: the TOST against it, after Holm; positive differences are gains.
        family: the budget it is under.
        among: how many contrasts Holm's correction minded.
        bounded: how many of them have a margin: what the TOST's correction minded.
        along: a setting's name, where the differences are their slopes along it; empty for two points.
        labels: the points that it rests on.
    """

    found: Paired
    higher_is_better: bool
    unequal: Sequence[str] = ()
    p: float = 1.0
    margin: float | None = None
    within: Tost | None = None
    family: str = ""
    among: int = 1
    bounded: int = 1
    along: str = ""
    labels: Sequence[str] = ()

    @property
    def against(self) -> str:
        """What first is held against, in words."""
        return self.found.second + (f" along {self.along}" if self.along else "")

    @property
    def gain(self) -> float:
        """Mean difference in the better direction."""
        return self.found.interval.mean if self.higher_is_better else -self.found.interval.mean

    @property
    def outcome(self) -> str:
        """refused, exploratory, ahead, behind, equal, no worse, no better or open."""
        if self.unequal or not self.found.n:
            return "refused"
        if not self.found.enough:
            return "exploratory"
        if self.p <= ALPHA:
            return "ahead" if self.gain > 0 else "behind"
        if self.within is None:
            return "open"
        within = (self.within.lower <= ALPHA, self.within.upper <= ALPHA)
        return {(True, True): "equal", (True, False): "no worse", (False, True): "no better"}.get(within, "open")

    @property
    def no_worse(self) -> bool:
        """Whether first is shown to be no worse than second within the margin, whatever else is."""
        return self.outcome == "ahead" or (self.found.enough and self.within is not None and self.within.lower <= ALPHA)

    @property
    def no_better(self) -> bool:
        """Whether second is shown to be no worse than first."""
        return self.outcome == "behind" or (self.found.enough and self.within is not None and self.within.upper <= ALPHA)

    @property
    def slight(self) -> bool:
        """Whether a decided difference is also no more than the margin: who is behind is no worse than that."""
        if self.within is None or self.outcome not in ("ahead", "behind"):
            return False
        return (self.within.lower if self.outcome == "behind" else self.within.upper) <= ALPHA

    def allowed(self, score: str) -> str:
        """The margin in the score's unit."""
        return "" if self.margin is None else f"{self.margin:g}{' ms' if score.endswith('_ms') else ''}"

    def claim(self, score: str) -> str:
        """The outcome without its numbers."""
        first, second = self.found.first, self.found.second
        margin = self.allowed(score)
        points = {
            "refused": f"{first} and {second} are not compared",
            "exploratory": f"{first} minus {second} in {score}, exploratory",
            "ahead": f"{first} is ahead of {second} in {score}",
            "behind": f"{first} is behind {second} in {score}",
            "equal": f"{first} and {second} are equal in {score} within {margin}",
            "no worse": f"{first} is no worse than {second} in {score}, margin {margin}",
            "no better": f"{second} is no worse than {first} in {score}, margin {margin}",
            "open": f"{first} and {second} cannot be told apart in {score}",
        }
        trend = {
            "refused": f"{first} and {second} are not compared along {self.along}",
            "exploratory": f"{first} minus {second} in {score} along {self.along}, exploratory",
            "ahead": f"{first} gains on {second} in {score} as {self.along} rises",
            "behind": f"{first} falls back against {second} in {score} as {self.along} rises",
            "open": f"whether {first} gains on {second} in {score} or falls back as {self.along} rises cannot be told",
        }
        said = (trend if self.along else points)[self.outcome]
        also = ""
        if self.slight:
            also = f", and {'' if self.outcome == 'behind' else f'{second} is '}no worse within {margin}"
        return said + (f" at equal {spoken(self.family)}" if self.family else "") + also

    def evidence(self, score: str) -> str:
        """The numbers behind the outcome."""
        n = self.found.n
        if self.outcome == "refused":
            return "; ".join(self.unequal) or "they share no finished seed"
        digits = 1 if score.endswith("_ms") else 3
        if n == 1:
            return f"{signed(self.found.interval.mean, digits)} at one seed"
        size = "{} [{}, {}]".format(*(signed(value, digits) for value in self.found.interval))
        size += f" per 1 of {self.along}" if self.along else ""
        if self.outcome == "exploratory":
            return f"{size} over {n} seeds"
        test = f"{n} paired seeds, sign-flip {p_value(self.p)}" + self._after
        slight = {"ahead": "upper", "behind": "lower"} if self.slight else {}
        bound = {"equal": "p", "no worse": "lower", "no better": "upper", **slight}.get(self.outcome)
        over = f" over {self.bounded}" if self.bounded not in (1, self.among) else ""
        return f"{size} ({test}{f'; TOST {p_value(getattr(self.within, bound))}{over}' if bound else ''})"

    @property
    def _after(self) -> str:
        return f" after Holm over {self.among} contrasts" if self.among > 1 else ""

    def sentence(self, score: str) -> str:
        """The outcome with its uncertainty."""
        return f"{self.claim(score)}: {self.evidence(score)}."


def signed(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:+.{digits}f}".replace("-", "−")


def p_value(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


Pair = tuple[str, str]


def judge(
    scores: Mapping[str, Mapping[int, float]],
    pairs: Sequence[Pair],
    higher_is_better: bool,
    margin: float | None,
    unequal: Mapping[Pair, Sequence[str]] | None = None,
    family: str = "",
) -> list[Judged]:
    """Contrasts between labels, not yet corrected for how many there are."""
    found = []
    for first, second in pairs:
        difference = paired(first, second, scores.get(first, {}), scores.get(second, {}))
        within = None
        if margin is not None and difference.n > 1:
            sign = 1 if higher_is_better else -1
            within = Tost(*map(float, tost([sign * part for part in difference.differences], margin)))
        refused = tuple((unequal or {}).get((first, second), ()))
        found.append(Judged(difference, higher_is_better, refused, difference.p, margin, within, family, labels=(first, second)))
    return found


def judge_slope(
    scores: Mapping[str, Mapping[int, float]], asked: Contrast, higher_is_better: bool, unequal: Sequence[str] = ()
) -> Judged:
    """How a lead changes along a setting, not yet corrected; there is no margin for a slope."""
    steps = [(value, scores.get(first, {}), scores.get(second, {})) for value, first, second in asked.steps]
    found = paired_slopes(asked.first, asked.second, steps)
    labels = tuple(label for _, *both in asked.steps for label in both)
    along = asked.along.rsplit(".", 1)[-1]
    return Judged(found, higher_is_better, tuple(unequal), found.p, family=asked.budget, along=along, labels=labels)


def corrected(contrasts: Sequence[Judged]) -> list[Judged]:
    """A family's contrasts with Holm's correction over all of them.

    Those that could not be tested (runs failed, are missing or may not be compared) count as p = 1: what was declared is what
    is corrected for, whatever became of it. What has no margin, as a slope, asks nothing of the TOST and is no part of its
    family. A family is one budget. A second budget is a condition on a claim, not a second chance, so it needs no correction.
    """
    untested = Tost(1.0, 1.0, 1.0)
    tested = [not part.unequal and part.found.n > 1 for part in contrasts]
    flips = holm([part.p if can else 1.0 for part, can in zip(contrasts, tested, strict=True)])
    bounded = [place for place, part in enumerate(contrasts) if part.margin is not None]
    bounds = [contrasts[place].within if tested[place] else None for place in bounded]
    lower, upper = (holm([getattr(part or untested, side) for part in bounds]) for side in ("lower", "upper"))
    within = {
        place: Tost(low, high, max(low, high))
        for place, bound, low, high in zip(bounded, bounds, lower, upper, strict=True)
        if bound is not None
    }
    return [
        replace(part, p=p, within=within.get(place), among=len(contrasts), bounded=len(bounded))
        for place, (part, p) in enumerate(zip(contrasts, flips, strict=True))
    ]


def all_pairs(labels: Sequence[str]) -> list[Pair]:
    return list(combinations(labels, 2))


def hopeless(contrasts: Sequence[Judged]) -> str:
    """A sentence where a family holds so many contrasts over so few seeds that none can come out decided."""
    tested, family = [part for part in contrasts if part.found.enough and not part.unequal], len(contrasts)
    return too_many(family, max(part.found.n for part in tested)) if tested else ""
