"""The small grammar of study files: values that are checked, and overrides that Hydra reads back as the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nava_lab.registry import nearest

PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
RESERVED = ("true", "false", "null", "none", "nan", "inf")


class StudyError(ValueError):
    """A study that cannot be meant; the message names the file, the key and the remedy."""


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise StudyError(f"{where} must be a mapping from keys to values, not {value!r}")
    return {str(key): part for key, part in value.items()}


def checked_keys(fields: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in fields:
        if key not in known:
            raise StudyError(f"{where}: there is no field {key}; {nearest(str(key), list(known))}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any, where: str, above: float | None = None) -> float:
    if not is_number(value):
        raise StudyError(f"{where} must be a number, not {value!r}")
    if above is not None and not value > above:
        raise StudyError(f"{where}={value} must be above {above:g}")
    return float(value)


def whole(value: Any, where: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise StudyError(f"{where} must be a whole number of at least {least}, not {value!r}")
    return value


def seeds_of(value: Any, first: int, where: str) -> tuple[int, ...]:
    """Seeds that are listed, or so many from ``first`` on."""
    if isinstance(value, list):
        seeds = tuple(whole(part, where, least=0) for part in value)
        if len(set(seeds)) < len(seeds) or not seeds:
            raise StudyError(f"{where} must list different seeds")
        return seeds
    return tuple(range(first, first + whole(value, where, least=1)))


def shown(value: Any) -> str:
    """A value as labels name it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and abs(value) >= 10_000 and value % 1000 == 0:
        return f"{value / 1e6:g}M" if value >= 1_000_000 else f"{value / 1e3:g}k"
    if isinstance(value, list | tuple):
        return "+".join(map(shown, value)) or "none"
    return str(value)


def override(key: str, value: Any) -> str:
    """``KEY=VALUE`` that Hydra's grammar reads back as this very value."""
    return f"{key}={_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    if PLAIN.fullmatch(value) and value.lower() not in RESERVED:
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def spoken(budget: str) -> str:
    """A budget's name as sentences write it."""
    return {"flops": "FLOPs"}.get(budget, budget)
