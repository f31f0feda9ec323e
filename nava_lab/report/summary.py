"""A comparison's conclusion in a few sentences: what holds under every budget, and what does not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nava_lab.report.across import HOLDS, IN_PART, NOTHING, OPEN, SPLIT, Across, across
from nava_lab.report.judge import Judged, p_value, signed
from nava_lab.study.grammar import spoken

SENTENCES = 5  # more of them are counted instead


@dataclass(frozen=True)
class Group:
    """Contrasts that came out alike: several against one label, or one pair at several levels of something else.

    Attributes:
        members: the contrasts.
        subject: their first labels.
        against: what they are held against.
        at: the levels at which both stand; empty where there is one.
    """

    members: Sequence[Across]
    subject: str
    against: str
    at: str

    @property
    def one(self) -> Across:
        return self.members[0]

    @property
    def many(self) -> bool:
        return " and " in self.subject


def summarised(contrasts: Sequence[Judged], labels: Mapping[str, Collection[str]], score: str) -> tuple[str, list[str]]:
    """The conclusion in a few sentences, and in full where there were too many: then they are counted.

    Args:
        labels: by budget, everything that was to be compared there, whatever became of its runs.
    """
    declared = across(contrasts)
    asked = [one for one in declared if one.judged]
    if len(asked) > 1 and all(one.standing == OPEN for one in asked):
        return f"None of {len(asked)} contrasts in {score} is decided{_at_any(asked[0])}.", []
    winner = _winner(contrasts, labels)
    told, lines = asked, []
    if winner:
        budgets = [spoken(name) for name in labels if name]
        lines = [f"{winner} is ahead of every other in {score}" + (f" at equal {_and(budgets)}." if budgets else ".")]
        told = [one for one in asked if one.parts[0].along or one.standing == SPLIT]
    each = [_sentence(group, score) for group in _grouped(told, declared)]
    if len(each) <= SENTENCES:
        return " ".join([*lines, *each]), []
    return " ".join([*lines, _counted(declared, score)]), each


def _winner(contrasts: Sequence[Judged], labels: Mapping[str, Collection[str]]) -> str:
    """Who is ahead of everybody else under every budget, where there are others enough to say so."""
    winners = set()
    for budget, others in labels.items():
        beaten: dict[str, set[str]] = {}
        for part in contrasts:
            if part.family == budget and part.outcome in ("ahead", "behind") and not part.along:
                first, second = (part.found.first, part.found.second)[:: 1 if part.outcome == "ahead" else -1]
                beaten.setdefault(first, set()).add(second)
        every = set(others)
        found = [label for label, those in beaten.items() if those == every - {label}] if len(every) > 2 else []
        winners.add(found[0] if found else "")
    return winners.pop() if len(winners) == 1 else ""


def _grouped(told: Sequence[Across], declared: Sequence[Across]) -> list[Group]:
    """Contrasts that came out alike together: first those of one pair at several levels, then those against one side."""
    by_pair: dict[tuple[str, str, tuple[str, ...]], list[Across]] = {}
    for one in told:
        first, second, _ = _own(one)
        by_pair.setdefault((first, second, _result(one)), []).append(one)
    by_side: dict[tuple[str, str, tuple[str, ...]], list[tuple[str, list[Across]]]] = {}
    for (first, second, result), members in by_pair.items():
        levels = [level for level in (_own(one)[2] for one in members) if level]
        alike = [one for one in declared if _own(one)[:2] == (first, second) and one.parts[0].along == result[0]]
        every = len(alike) == len(members) > 1 and len(members) == len(levels)
        at = f"all {len(levels)} levels ({_listed(levels)})" if every else _listed(levels)
        by_side.setdefault((second, at, result), []).append((first, members))
    return [
        Group([one for _, members in parts for one in members], _listed([first for first, _ in parts]), second, at)
        for (second, at, _), parts in by_side.items()
    ]


def _own(one: Across) -> tuple[str, str, str]:
    """What tells the two sides of a contrast apart, and the levels that they share."""
    sides = [label.split(", ") for label in (one.first, one.parts[0].found.second)]
    shared = [part for part in sides[0] if part in sides[1]]
    first, second = (", ".join(part for part in side if part not in shared) for side in sides)
    if not (shared and first and second):
        return one.first, one.parts[0].found.second, ""
    return first, second, ", ".join(shared)


def _result(one: Across) -> tuple[str, ...]:
    """What must be the same of contrasts that are told in one sentence."""
    sides = ("", "") if one.standing == OPEN else (str(one.differs), one.holds)
    return (one.parts[0].along, *sides, *(f"{part.family}: {part.outcome}, {part.slight}" for part in one.parts))


def _sentence(group: Group, score: str) -> str:
    """What a group of contrasts says, budget by budget, and whether it holds under all of them."""
    by_outcome: dict[str, list[Judged]] = {}
    for part in group.one.judged:
        by_outcome.setdefault(f"{part.outcome} {part.slight}", []).append(part)
    clauses = []
    for place, parts in enumerate(by_outcome.values()):
        families = [spoken(part.family) for part in parts if part.family]
        link = _or if parts[0].outcome == "open" else _and
        under = f" at equal {link(families)}" if families else ""
        at = f" at {group.at}" if group.at and not place else ""
        sizes = [text for part in parts if (text := _size(group, part.family, score))]
        scored = f" in {score}" if not place else ""
        numbers = f" ({'; '.join(dict.fromkeys(sizes))})" if sizes else ""
        clauses.append(f"{_said(group, parts[0], score, scored)}{at}{under}{numbers}")
    subject = _subject(group)
    return f"{subject} {', and '.join(clauses)}{_tail(group)}."


def _subject(group: Group) -> str:
    return "whether " + group.subject if group.one.parts[0].along and group.one.standing == OPEN else group.subject


def _said(group: Group, part: Judged, score: str, scored: str) -> str:
    """A group's outcome at some budget, from "is" on."""
    be, against, margin = ("are" if group.many else "is"), group.against, part.allowed(score)
    if part.along:
        gain, fall = ("gain", "fall") if group.many else ("gains", "falls")
        rising = f"{scored} as {part.along} rises"
        return {
            "ahead": f"{gain} on {against}{rising}",
            "behind": f"{fall} back against {against}{rising}",
        }.get(part.outcome, f"{gain} on {against}{scored} or {fall} back as {part.along} rises cannot be told")
    also = ""
    if part.slight:
        also = f", and {'' if part.outcome == 'behind' else f'{against} is '}no worse within {margin}"
    return {
        "ahead": f"{be} ahead of {against}{scored}{also}",
        "behind": f"{be} behind {against}{scored}{also}",
        "equal": f"{be} equal to {against}{scored} within {margin}",
        "no worse": f"{be} no worse than {against}{scored} within {margin}",
        "no better": f"{be} no better than {against}{scored} by more than {margin}",
    }.get(part.outcome, f"cannot be told from {against}{scored}")


def _size(group: Group, family: str, score: str) -> str:
    """How large the differences are at one budget."""
    parts = [part for one in group.members for part in one.parts if part.family == family]
    digits = 1 if score.endswith("_ms") else 3
    unit = f" per 1 of {parts[0].along}" if parts[0].along else ""
    if len(parts) == 1:
        return "{} [{}, {}]".format(*(signed(value, digits) for value in parts[0].found.interval)) + unit
    means = sorted(part.found.interval.mean for part in parts)
    worst = max(part.p for part in parts)
    test = f", each {p_value(worst)} or less" if parts[0].outcome in ("ahead", "behind") else ""
    return f"{signed(means[0], digits)} to {signed(means[-1], digits)}{unit}{test}"


def _tail(group: Group) -> str:
    """Whether what was found at each budget makes a claim."""
    one = group.one
    if len(one.judged) < 2 or one.standing in (OPEN, IN_PART):
        return ""
    every = "both" if len(one.judged) == 2 else f"all {len(one.judged)}"
    outcomes = {part.outcome for part in one.judged}
    if one.standing == HOLDS:
        if len(outcomes) == 1:
            return ""
        if one.holds in outcomes and one.decided:
            return f": the sign is the same at {every}, so being {one.holds} holds"
        return f": {_weaker(group)} holds at {every}"
    if one.differs and one.holds:
        return f": the sign differs, and only {_weaker(group)} holds at {every}"
    return f": {'the sign differs, and ' if one.differs else ''}no claim holds under {every}"


def _weaker(group: Group) -> str:
    margin = f"within {group.one.parts[0].margin:g}"
    return {"equal": f"being equal {margin}", "no better": f"being no better {margin}"}.get(
        group.one.holds, f"being no worse {margin}"
    )


def _counted(declared: Sequence[Across], score: str) -> str:
    """How many contrasts came out how."""
    counts = {name: sum(one.standing == name for one in declared) for name in (HOLDS, SPLIT, IN_PART, OPEN, NOTHING)}
    several = len(declared[0].parts) > 1
    said = [f"{counts[HOLDS]} of {len(declared)} contrasts in {score} are decided{' under every budget' if several else ''}"]
    said += [f"{counts[SPLIT]} come out otherwise under another budget"] if counts[SPLIT] else []
    said += [f"{counts[IN_PART]} are judged under some budgets alone"] if counts[IN_PART] else []
    said += [f"{counts[OPEN]} are open"] if counts[OPEN] else []
    said += [f"{counts[NOTHING]} could not be judged"] if counts[NOTHING] else []
    return ", ".join(said) + "."


def _at_any(one: Across) -> str:
    families = [spoken(part.family) for part in one.parts if part.family]
    return f" at equal {_or(families)}" if families else ""


def _listed(names: Sequence[str]) -> str:
    """Names in a row; "align_fraction=0.25, 0.5 and 1" rather than the name three times."""
    axes = {name.partition("=")[0] for name in names if "=" in name}
    if len(names) > 1 and len(axes) == 1 and not any(", " in name for name in names):
        prefix = f"{axes.pop()}="
        return prefix + _and([name.removeprefix(prefix) for name in names])
    return _and(names)


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _or(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
