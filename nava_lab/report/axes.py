"""Numbers along which labels can be drawn: settings that vary, parameters, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nava_lab.report.compare import Comparison, OverSeeds
from nava_lab.report.runs import by_label, flat
from nava_lab.study.grammar import spoken

SPREAD = 1.01  # costs that differ by less are equal budgets, met within their tolerance


@dataclass(frozen=True)
class Axis:
    """A number per label.

    Attributes:
        name: for file names.
        title: for readers, with a unit where it has one.
        places: label -> number; for a cost, of its first run, and ``at`` tells families apart.
        cost: whether less is better.
        others: label -> what else tells it apart, so that a line joins only what differs in this axis alone.
    """

    name: str
    title: str
    places: Mapping[str, float]
    cost: bool = False
    others: Mapping[str, str] = field(default_factory=dict)

    def at(self, row: OverSeeds) -> float:
        if self.cost:
            return cost_of(next(iter(row.runs.values())).record, self.name)
        return self.places[row.label]

    def series(self, row: OverSeeds) -> str:
        """The line that a row is a point of."""
        named = [part for part in (self.others.get(row.label, ""), f"equal {spoken(row.family)}" if row.family else "") if part]
        return ", ".join(named) or self.title


def cost_of(record: Mapping, name: str) -> float:  # type: ignore[type-arg]
    return float(record["parameters"]["total"] if name == "parameters" else record["flops_per_sample"])


def numeric_axes(comparison: Comparison) -> list[Axis]:
    """The settings with two numeric levels or more, then costs where they differ."""
    found = []
    levels = comparison.axes or _settings(comparison)
    names = dict.fromkeys(name for label in comparison.labels for name in levels.get(label, {}))
    for name in names:
        places, others = {}, {}
        for label in comparison.labels:
            own = levels.get(label, {})
            number = as_number(own.get(name))
            if number is not None:
                places[label] = number
                others[label] = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in own.items() if key != name)
        if len(set(places.values())) > 1:
            found.append(Axis(name.replace(".", "_").replace("/", "_"), name, places, others=others))
    titles = {"parameters": "parameters", "flops": "training FLOPs per clip"}
    for name, title in titles.items():
        groups = by_label(comparison.runs)
        costs = {label: cost_of(next(iter(group.values())).record, name) for label, group in groups.items()}
        every = [cost_of(run.record, name) for run in comparison.runs]
        if min(every) > 0 and max(every) / min(every) > SPREAD:
            found.append(Axis(name, title, costs, cost=True))
    return found


def as_number(value: object) -> float | None:
    """A level as a number; "1M" and words are none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(str(value))
    except ValueError:
        return None


def _settings(comparison: Comparison) -> dict[str, dict[str, str]]:
    """label -> the variant's settings in which runs of that variant differ, and the variant where there are several."""
    rows = {label: flat(next(iter(group.values())).config["variant"]) for label, group in by_label(comparison.runs).items()}
    found: dict[str, dict[str, str]] = {}
    for label, row in rows.items():
        alike = [other for other in rows.values() if other["name"] == row["name"]]
        telling = [key for key in row if len({repr(other.get(key)) for other in alike}) > 1]
        found[label] = {"variant": str(row["name"])} if len({other["name"] for other in rows.values()}) > 1 else {}
        found[label] |= {f"variant.{key}": str(row[key]) for key in telling}
    return found
