"""The words of a command line: settings, options, runs; each mistake names what was meant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def only_overrides(arguments: Sequence[str]) -> None:
    for part in arguments:
        if "=" not in part and not part.startswith("~"):
            raise ValueError(f"'{part}' is no setting: write KEY=VALUE (see nava train --help)")


def only_evaluation(overrides: Sequence[str]) -> None:
    for part in overrides:
        if not part.startswith(("evaluation.", "evaluation/")):
            raise ValueError(f"{part}: a run stays as it was trained; only evaluation.* can be changed")


def number(options: dict[str, str], name: str, kind: Callable[[str], T]) -> T | None:
    """An option as a number; None where it is not given."""
    try:
        return kind(options[name]) if options[name] else None
    except ValueError:
        raise ValueError(f"{name}={options[name]} is no number") from None


def options_of(arguments: Sequence[str], defaults: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    values, rest, queue = dict(defaults), [], list(arguments)
    while queue:
        part = queue.pop(0)
        name, _, value = part.partition("=")
        if name in values:
            if not value and not queue:
                raise ValueError(f"{name} needs a value")
            values[name] = value or queue.pop(0)
        elif part.startswith("--"):
            raise ValueError(f"there is no option {part}; known: {', '.join(values)}")
        else:
            rest.append(part)
    return values, rest


def one_run(arguments: Sequence[str]) -> Path:
    if len(arguments) != 1:
        raise ValueError("name one run's folder")
    folder = Path(arguments[0])
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{folder} is not a run's folder (it has no config.yaml)")
    return folder
