"""How to make a run again: the command whose config is the run's own, found from its config alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nava_lab.report.runs import Run, flat

APART = ("output", "logger", "seed")  # where it went, and what a list of runs differs in


def commands(runs: Sequence[Run]) -> list[str]:
    """One command per set of runs that differ in their seed alone; a run that no command makes is left out."""
    found: dict[str, list[int]] = {}
    for run in runs:
        settings = repr({key: value for key, value in run.config.items() if key not in APART})
        found.setdefault(settings, []).append(run.seed)
    first = {repr({key: value for key, value in run.config.items() if key not in APART}): run for run in reversed(runs)}
    lines = []
    for settings, seeds in found.items():
        words = overrides(first[settings].config)
        if words is not None:
            listed = ",".join(map(str, sorted(set(seeds))))
            many = ["-m"] if len(set(seeds)) > 1 else []
            lines.append(shlex.join(["nava", "train", *many, *words, f"seed={listed}"]))
    return lines


def overrides(config: Mapping[str, Any]) -> list[str] | None:
    """What ``nava train`` must be told for this config, its seed apart; None where this version would make another one."""
    from nava_lab.config import GROUPS, ConfigError, load
    from nava_lab.study.grammar import override

    wanted = {key: value for key, value in config.items() if key not in APART}
    chosen = []
    for group in GROUPS:
        outer, _, inner = group.partition("/")
        part = wanted.get(outer, {}).get(inner, {}) if inner else wanted.get(outer, {})
        if "name" in part:
            chosen.append((group, str(part["name"])))
    try:
        plain = load([]).resolved
        named = [f"{group}={name}" for group, name in chosen if _at(plain, group).get("name") != name or group == "variant"]
        default = flat(load(named).resolved)
        told = [
            override(key, value)
            for key, value in flat(wanted).items()
            if not key.endswith(".name") and (key not in default or default[key] != value)
        ]
        made = load([*named, *told]).resolved
    except ConfigError:
        return None
    same = all(flat({key: value}) == flat({key: made.get(key)}) for key, value in wanted.items() if isinstance(value, Mapping))
    return [*named, *told] if same else None


def _at(config: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    outer, _, inner = group.partition("/")
    return config[outer][inner] if inner else config[outer]
