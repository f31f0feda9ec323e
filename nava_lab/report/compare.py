"""Which runs may be ranked, and in what order.

The seed is the unit of a comparison. Fewer than eight seeds per variant give numbers and no verdict; runs that differ in
data, budget, training length, scoring or code are shown side by side and not ranked, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nava_lab.study import record
from nava_lab.training.log import read_log

SEEDS_FOR_A_VERDICT = 8


@dataclass(frozen=True)
class Run:
    """A finished run as the report sees it; ``label`` is its variant with whatever settings tell it from others of that name."""

    folder: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]
    label: str = ""

    def score(self, name: str) -> Mapping[str, float] | None:
        return self.record["scores"].get(name)


@dataclass(frozen=True)
class OverSeeds:
    """One label's headline over its seeds."""

    label: str
    seeds: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Comparison:
    """Runs, what they are judged by, why they are not ranked (empty if they are), and what may be concluded."""

    runs: Sequence[Run]
    headline: str
    differences: Sequence[str]
    verdict: str

    def truth(self) -> Mapping[str, Mapping[str, float]]:
        """Scores of the true clips, where all runs were scored on the same; empty otherwise."""
        found = [run.record.get("truth", {}) for run in self.runs]
        return found[0] if all(part == found[0] for part in found) else {}

    def over_seeds(self) -> list[OverSeeds]:
        """The mean and range of the headline per label, best first; empty while no label has two seeds."""
        groups: dict[str, dict[int, float]] = {}
        for run in self.runs:
            value = (run.score(self.headline) or {}).get("value")
            if value is not None:
                groups.setdefault(run.label, {})[run.record["seed"]] = value
        if self.differences or not any(len(group) > 1 for group in groups.values()):
            return []
        sign = -1 if self.runs[0].record["higher_is_better"] else 1
        rows = [
            OverSeeds(label, len(group), sum(group.values()) / len(group), min(group.values()), max(group.values()))
            for label, group in groups.items()
        ]
        return sorted(rows, key=lambda row: sign * row.mean)


def load_run(folder: Path) -> Run:
    made = record.read(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return Run(folder, made, config, read_log(folder / "metrics.jsonl"))


def compare(folders: Sequence[Path]) -> Comparison:
    """Load and judge; a run that is not finished is an error that says how to finish it."""
    runs = labelled([load_run(folder) for folder in dict.fromkeys(folders)])
    if not runs:
        raise record.BadRecord("nothing to compare: name at least one run's folder")
    headlines = {run.record["headline"] for run in runs}
    headline = headlines.pop() if len(headlines) == 1 else ""
    differences = _differences(runs)
    if not differences and headline:
        runs.sort(key=lambda run: _key(run, headline))
    return Comparison(runs, headline, differences, _verdict(runs, differences))


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with labels: settings of a variant are named where its runs differ in them."""
    settings = [flat(run.config["variant"]) for run in runs]
    labels = []
    for run, own in zip(runs, settings, strict=True):
        others = [part for part in settings if part["name"] == own["name"]]
        telling = [key for key in own if any(part.get(key) != own[key] for part in others)]
        named = ", ".join(f"{key} {own[key]}" for key in telling)
        labels.append(run.record["variant"] + (f" ({named})" if named else ""))
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one row of dotted keys."""
    row: dict[str, Any] = {}
    for key, value in tree.items():
        row |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return row


def _key(run: Run, headline: str) -> float:
    value = (run.score(headline) or {}).get("value")
    sign = -1 if run.record["higher_is_better"] else 1
    return float("inf") if value is None else sign * value


def _differences(runs: Sequence[Run]) -> list[str]:
    """What keeps these runs from being ranked, one sentence each."""

    def of(run: Run) -> dict[str, Any]:
        made, config = run.record, run.config
        budget = made["budget"]
        realised = budget["requested"] or round(budget["realised"], -3)
        return {
            "world": config["world"],
            "data version": made["identity"]["data"],
            "budget": f"{realised:,.0f} {budget['kind']}",
            "training": config["training"],
            "objective": config["flow"],
            "training length (samples)": made["samples_seen"],
            "scoring": made["evaluation"],
            "attention": config["attention"],
            "machine": config["trainer"],
            "code": made["identity"]["code"],
        }

    described = [of(run) for run in runs]
    lines = []
    for key in described[0]:
        values = [part[key] for part in described]
        if all(value == values[0] for value in values):
            continue
        if isinstance(values[0], dict):
            inner = sorted({name for value in values for name in value if any(v.get(name) != value.get(name) for v in values)})
            shown = "; ".join(f"{name}: {', '.join(dict.fromkeys(str(v.get(name)) for v in values))}" for name in inner)
        else:
            shown = ", ".join(dict.fromkeys(map(str, values)))
        lines.append(f"{key} differs ({shown})")
    for name in dict.fromkeys(run.record["variant"] for run in runs):
        versions = {run.record["identity"]["variant_code"] for run in runs if run.record["variant"] == name}
        if len(versions) > 1:
            lines.append(f"code of variant {name} differs ({', '.join(sorted(versions))})")
    return lines


def _verdict(runs: Sequence[Run], differences: Sequence[str]) -> str:
    if differences:
        return "Not ranked: " + "; ".join(differences) + "."
    if len({run.label for run in runs}) < 2:
        return "One variant only: nothing to compare it with."
    seeds: dict[str, set[int]] = {}
    for run in runs:
        seeds.setdefault(run.label, set()).add(run.record["seed"])
    fewest = min(len(group) for group in seeds.values())
    if fewest < SEEDS_FOR_A_VERDICT:
        return (
            f"Exploratory: {fewest} seed{'s' if fewest > 1 else ''} per variant, and a verdict needs "
            f"{SEEDS_FOR_A_VERDICT}. Intervals are over clips: they say how well one trained model is measured, not how "
            "training would vary."
        )
    return (
        f"{fewest} seeds per variant. The order is by score and is no test: a verdict needs paired statistics over seeds, "
        "which this table does not make."
    )
