"""Finished runs as the report sees them: read from their folders, labelled, and told apart where they are not equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nava_lab.study import record
from nava_lab.study.identity import parts_of
from nava_lab.training.log import read_log

ASIDE = ".code-"  # in the name of a run that other code made and that was put aside


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        label: its variant with whatever settings tell it from others of that name; in a study, its point.
        family: the budget under which a study compares it; empty elsewhere.
    """

    folder: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]
    label: str = ""
    family: str = ""

    @property
    def seed(self) -> int:
        return self.record["seed"]

    def score(self, name: str) -> Mapping[str, float] | None:
        return self.record["scores"].get(name)

    def value(self, name: str) -> float | None:
        return (self.score(name) or {}).get("value")

    def per_clip(self) -> Mapping[str, list[float]]:
        """Per-clip values by name; empty where the run kept none."""
        path = self.folder / "per_clip.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def load_run(folder: Path) -> Run:
    made = record.read(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return Run(folder, made, config, read_log(folder / "metrics.jsonl"))


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs that paths name, and why others were left out.

    A path is a run's folder, which must be finished, or a folder of runs, whose unfinished runs are named in the second
    list, as are those that other code made.
    """
    runs, left_out = [], []
    for path in dict.fromkeys(map(Path, paths)):
        if (path / record.NAME).exists() or (path / "config.yaml").exists() or not path.is_dir():
            runs.append(load_run(path))
            continue
        found = sorted(part.parent for part in path.glob("*/config.yaml"))
        if not found:
            raise record.BadRecord(f"{path} is neither a run's folder nor a folder of runs")
        for folder in found:
            if ASIDE in folder.name:
                left_out.append(f"{folder.name}: made by other code and put aside")
            elif not (folder / record.NAME).exists():
                left_out.append(f"{folder.name}: not finished")
            else:
                runs.append(load_run(folder))
    return list({run.folder.resolve(): run for run in runs}.values()), left_out


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with labels: settings of a variant, and of how it is told, are named where its runs differ in them."""
    settings = [flat({**run.config.get("conditioning", {}), **run.config["variant"]}) for run in runs]
    labels = []
    for run, own in zip(runs, settings, strict=True):
        others = [part for part in settings if part["name"] == own["name"]]
        telling = [key for key in own if any(part.get(key) != own[key] for part in others)]
        named = ", ".join(f"{key} {own[key]}" for key in telling)
        labels.append(run.record["variant"] + (f" ({named})" if named else ""))
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def by_label(runs: Iterable[Run]) -> dict[str, dict[int, Run]]:
    """label -> seed -> run, in the order of the runs."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        groups.setdefault(run.label, {})[run.seed] = run
    return groups


def scores_by_seed(runs: Iterable[Run], score: str) -> dict[int, float]:
    """seed -> value, where it is defined."""
    return {run.seed: value for run in runs if (value := run.value(score)) is not None}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one row of dotted keys."""
    row: dict[str, Any] = {}
    for key, value in tree.items():
        row |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return row


# What a study may not vary between the sides of a contrast: data, budget, scoring and training length.
STRICT = ("world", "budget", "evaluation", "training.steps", "training.batch_size")


def may_vary(keys: Iterable[str], strict: Sequence[str] = STRICT) -> frozenset[str]:
    """Those of a study's keys that its contrasts may differ in."""
    return frozenset(key for key in keys if not any(key == part or key.startswith(f"{part}.") for part in strict))


def differences(runs: Sequence[Run], varied: Iterable[str] = (), priced: bool = False) -> list[str]:
    """What keeps these runs from being ranked, one sentence each; empty if nothing does.

    Args:
        varied: config keys that are what a study asks about or tunes, and so no obstacle.
        priced: whether cost is minded beside the score, so that budgets may differ.
    """
    allowed = may_vary(varied, tuple(part for part in STRICT if not (priced and part == "budget")))
    groups = dict.fromkeys(group for run in runs for group in run.config if group not in NOT_COMPARED)
    described = [_described(run, groups, allowed) for run in runs]
    if priced:
        described = [{key: value for key, value in part.items() if key != "budget"} for part in described]
    lines = []
    for key in described[0] if described else ():
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
    return lines + _twice(runs)


# Config groups that runs may differ in. All others must agree: a group that is added is compared until it is named here.
NOT_COMPARED = (
    *("variant", "conditioning"),  # what is compared: labels name what differs in them
    *("budget", "evaluation"),  # the record tells what they came to
    *("seed", "logger", "output"),
)
NAMES = {"flow": "objective", "trainer": "machine"}


def _described(run: Run, groups: Iterable[str], allowed: frozenset[str]) -> dict[str, Any]:
    made, budget = run.record, run.record["budget"]
    realised = budget["requested"] or round(budget["realised"], -3)

    def settings(group: str) -> Any:
        held = run.config.get(group, {})
        if group in allowed:
            return {}
        if not isinstance(held, Mapping):
            return held
        held = parts_of(held, f"{group}.")
        return {key: value for key, value in held.items() if f"{group}.{key}" not in _with_parents(allowed)}

    return {
        **{NAMES.get(group, group): settings(group) for group in groups},
        "data version": made["identity"]["data"],
        "budget": f"{realised:,.0f} {budget['kind']}",
        "training length (samples)": made["samples_seen"],
        "scoring": made["evaluation"],
        "code": made["identity"]["code"],
        "PyTorch": made["identity"].get("torch"),
    }


def _with_parents(keys: Iterable[str]) -> frozenset[str]:
    """Keys as Hydra writes them (``flow/levels``, ``flow.levels.mean``), each with the setting of its group that holds it."""
    dotted = [key.replace("/", ".") for key in keys]
    return frozenset([*dotted, *(".".join(key.split(".")[:2]) for key in dotted)])


def _twice(runs: Sequence[Run]) -> list[str]:
    seen: dict[tuple[str, int], Run] = {}
    lines = []
    for run in runs:
        if not run.label:
            continue
        key = (run.label, run.seed)
        if key in seen:
            lines.append(f"seed {run.seed} of {run.label} is there twice ({seen[key].folder.name}, {run.folder.name})")
        seen[key] = run
    return lines
