"""How to make a run again: the command whose config is the run's own, found from its config alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from nava_lab.config import Output
from nava_lab.report.runs import Run, flat
from nava_lab.study.spec import Study

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


def study_commands(study: Study, root: Path) -> list[str]:
    """What conducts the whole study once more, tuning included: from its own file where that is known, and from the saved one.

    Args:
        root: the folder of all runs, which a command must name where it is not the usual one, or nothing would be found there.
    """
    origin = study.origin
    edition = ["--edition", study.edition] if study.edition else []
    place = [f"output.root={root}"] if root.resolve() != Path(Output.root).resolve() else []
    place += ["--storage", origin.storage] if origin.storage else []
    own = [["nava", "study", origin.file, *edition, *origin.overrides, *place]] if origin.file else []
    return [shlex.join(words) for words in [*own, ["nava", "study", f"{study.name}.yaml", *place]]]


def overrides(config: Mapping[str, Any]) -> list[str] | None:
    """What ``nava train`` must be told for this config, its seed apart; None where this version would make another one."""
    from nava_lab.config import GROUPS, ConfigError, load
    from nava_lab.study.grammar import override

    wanted = {key: value for key, value in config.items() if key not in APART}
    try:
        chosen = {group: _at(wanted, group)["name"] for group in GROUPS if "name" in _at(wanted, group)}
        plain = _defaults(())
        named = tuple(
            f"{group}={name}" for group, name in chosen.items() if group == "variant" or _at(plain, group).get("name") != name
        )
        default = flat(_defaults(named))
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


@lru_cache(64)
def _defaults(named: tuple[str, ...]) -> Mapping[str, Any]:
    """The config of these choices and nothing else said."""
    from nava_lab.config import load

    return load(named).resolved


def _at(config: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    """A group's part of a config; empty where there is none."""
    outer, _, inner = group.partition("/")
    part = config.get(outer) or {}
    return (part.get(inner) or {}) if inner else part
