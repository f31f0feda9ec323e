"""Numbers as tables, ticks and pages write them."""

from __future__ import annotations

from collections.abc import Mapping


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def interval(score: Mapping[str, float] | None, digits: int = 3) -> str:
    """``value [low, high]``."""
    if score is None:
        return "-"
    return f"{number(score['value'], digits)} [{number(score['low'], digits)}, {number(score['high'], digits)}]"


def digits_for(name: str) -> int:
    return 1 if name.endswith("_ms") else 3


def short(count: float) -> str:
    """Three digits and a unit."""
    count = float(f"{count:.3g}")  # 999,600 are a million, not 1e+03 thousands
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:g}"
