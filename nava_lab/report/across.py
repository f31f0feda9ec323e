"""Contrasts over budgets: what is claimed at one must be borne out by the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nava_lab.report.judge import Judged
from nava_lab.study.grammar import spoken
from nava_lab.study.statistics import SEEDS_FOR_A_VERDICT

DECIDED = ("ahead", "behind")
CLAIMS = (*DECIDED, "equal", "no worse", "no better")
UNJUDGED = ("refused", "exploratory")
HOLDS, SPLIT, IN_PART, OPEN, NOTHING = "holds", "split", "in part", "open", "nothing"


@dataclass(frozen=True)
class Across:
    """One contrast under every budget at which it was asked."""

    parts: tuple[Judged, ...]

    @property
    def first(self) -> str:
        return self.parts[0].found.first

    @property
    def against(self) -> str:
        return self.parts[0].against

    @property
    def judged(self) -> list[Judged]:
        return [part for part in self.parts if part.outcome not in UNJUDGED]

    @property
    def claims(self) -> list[Judged]:
        return [part for part in self.parts if part.outcome in CLAIMS]

    @property
    def decided(self) -> bool:
        """Whether a side is ahead at some budget."""
        return any(part.outcome in DECIDED for part in self.parts)

    @property
    def differs(self) -> bool:
        """Whether a side is ahead at one budget and the sign is the other at another."""
        return self.decided and len({part.gain > 0 for part in self.judged}) > 1

    @property
    def holds(self) -> str:
        """The strongest claim that every judged budget bears out; empty where none is.

        Who is ahead at one needs the same sign at the others. Being equal or no worse has no sign: it must be shown at each.
        """
        if self.decided and not self.differs:
            return next(part.outcome for part in self.parts if part.outcome in DECIDED)
        no_worse, no_better = (
            bool(self.judged) and all(getattr(part, side) for part in self.judged) for side in ("no_worse", "no_better")
        )
        claims = {(True, True): "equal", (True, False): "no worse", (False, True): "no better"}
        return claims.get((no_worse, no_better), "")

    @property
    def standing(self) -> str:
        """holds; split: budgets contradict or do not confirm it; in part: not judged at each; open; nothing: judged nowhere."""
        if not self.claims:
            return OPEN if self.judged else NOTHING
        if len(self.judged) < len(self.parts):
            return IN_PART
        return HOLDS if self.holds and not self.differs else SPLIT

    @property
    def said(self) -> str:
        """The standing in a few words, for a table's cell."""
        split = f"{self.holds}, signs differ" if self.holds else "no claim"
        return {HOLDS: self.holds, SPLIT: split, IN_PART: "not judged at each", OPEN: "open"}.get(self.standing, "not judged")


def across(contrasts: Sequence[Judged]) -> list[Across]:
    """Contrasts of all budgets, those between the same two together."""
    found: dict[tuple[str, str], list[Judged]] = {}
    for part in contrasts:
        found.setdefault((part.found.first, part.against), []).append(part)
    return [Across(tuple(parts)) for parts in found.values()]


def at_one_budget(contrasts: Sequence[Judged]) -> list[str]:
    """Claims that are made under one budget and not judged under another, those with one side and one reason together."""
    alone: dict[tuple[str, str, str], list[str]] = {}
    for one in across(contrasts):
        made = " and ".join(spoken(part.family) for part in one.claims)
        for part in one.parts if made else ():
            if part.outcome in UNJUDGED:
                seeds = f"{part.found.n} seed{'s' if part.found.n > 1 else ''}, and a verdict needs {SEEDS_FOR_A_VERDICT}"
                why = "; ".join(part.unequal) or (seeds if part.found.n else "no pair of runs is finished")
                alone.setdefault((one.against, made, f"equal {spoken(part.family)} it is not ({why})"), []).append(one.first)
    return [
        f"{', '.join(firsts)} against {second} is judged at equal {budgets}, and at {rest}: no claim holds under both yet."
        for (second, budgets, rest), firsts in alone.items()
    ]
