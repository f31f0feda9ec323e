"""The page's tables as columns and cells, each cell with the value it sorts by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nava_lab.report.across import across
from nava_lab.report.compare import Comparison, OverSeeds
from nava_lab.report.judge import Judged, signed
from nava_lab.report.numbers import digits_for, number, short
from nava_lab.report.runs import Run
from nava_lab.report.table import lead_columns, shown_columns

Cell = dict[str, Any]
Column = dict[str, Any]
COSTS = (
    ("parameters", "weights in all"),
    ("active", "weights that a token passes through, on average"),
    ("FLOPs", "training FLOPs of one clip, forward and backward"),
    ("minutes", "of training"),
)


def column(title: str, falls: bool = False, help_: str = "", optional: bool = False) -> Column:
    """A column; ``falls``: the first press sorts downwards; ``optional``: left out on paper."""
    return {"title": title, "falls": falls, "help": help_, "optional": optional}


def cell(text: str, value: float | str | None = None, small: str = "", kind: str = "") -> Cell:
    return {"text": text, "value": _sortable(value), "small": small, "kind": kind}


def _sortable(value: float | str | None) -> float | str | None:
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def score_column(comparison: Comparison, name: str, optional: bool = False) -> Column:
    higher = comparison.direction(name)
    arrow = {True: " ↑", False: " ↓", None: ""}[higher]
    said = {True: "higher is better", False: "lower is better", None: "neither high nor low is better"}[higher]
    return column(name + arrow, bool(higher), said, optional)


def score_cell(score: Any, name: str, kind: str = "") -> Cell:
    """A score with its interval over clips."""
    if score is None or score["value"] is None:
        return cell("–", "", kind=kind)
    return cell(number(score["value"], digits_for(name)), score["value"], _ends(score["low"], score["high"], name), kind)


def mean_cell(row: OverSeeds, name: str, kind: str = "") -> Cell:
    """A mean over seeds with its t-interval, and their number where not all have the score; one seed has its own over clips."""
    if row.seeds == 1:
        return score_cell(next(iter(row.runs.values())).score(name), name, kind)
    mean, low, high = row.over(name)
    some = row.defined(name)
    small = [_ends(low, high, name), f"{some} of {row.seeds} seeds" if 0 < some < row.seeds else ""]
    return cell(number(mean, digits_for(name)), mean, " ".join(filter(None, small)), kind)


def _ends(low: float | None, high: float | None, name: str) -> str:
    if low is None or high is None or low != low:
        return ""
    return f"[{number(low, digits_for(name))}, {number(high, digits_for(name))}]".replace("-", "−")


def costs(run: Run) -> list[Cell]:
    made = run.record
    active, flops = made["parameters"]["active_per_token"], made["flops_per_sample"]
    minutes = made["wall_time_s"] / 60
    return [
        cell(f"{made['parameters']['total']:,}", made["parameters"]["total"]),
        cell(short(active), active),
        cell(short(flops), flops),
        cell(number(minutes, 1), minutes),
    ]


def _cost_columns() -> list[Column]:
    return [column(title, help_=said) for title, said in COSTS]


def results(comparison: Comparison) -> tuple[list[Column], list[dict[str, Any]]]:
    """One row per variant (and budget): the headline, what metrics want first, costs."""
    several, headline, lead = len(comparison.families) > 1, comparison.headline, lead_columns(comparison)
    rows = comparison.over_seeds()
    if not rows:  # no common headline
        return runs(comparison)
    columns = [
        *([column("budget")] if several else []),
        column("seeds", True),
        score_column(comparison, headline),
        *(score_column(comparison, name, optional=place >= 4) for place, name in enumerate(lead)),
        *_cost_columns(),
    ]
    made = []
    for row in rows:
        made.append(
            {
                "label": row.label,
                "cells": [
                    *([cell(row.family)] if several else []),
                    cell(str(row.seeds), row.seeds),
                    mean_cell(row, headline, "lead-cell"),
                    *(mean_cell(row, name, "optional" if place >= 4 else "") for place, name in enumerate(lead)),
                    *costs(next(iter(row.runs.values()))),
                ],
            }
        )
    return columns, made


def truth_row(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    """Scores of the true clips under the results' columns; empty where runs were scored on different ones."""
    truth = comparison.truth()
    if not truth or not comparison.over_seeds():
        return []
    names = [part["title"].removesuffix(" ↑").removesuffix(" ↓") for part in columns]
    return [number(truth[name]["value"], digits_for(name)) if name in truth else "" for name in names]


def runs(comparison: Comparison) -> tuple[list[Column], list[dict[str, Any]]]:
    """One row per run with every score."""
    several, headline = len(comparison.families) > 1, comparison.headline
    names = [*([headline] if headline else []), *shown_columns(comparison)]
    columns = [
        *([column("budget")] if several else []),
        column("seed"),
        *(score_column(comparison, name, optional=place >= 4) for place, name in enumerate(names)),
        *_cost_columns(),
        column("config", optional=True),
    ]
    made = []
    for run in comparison.runs:
        made.append(
            {
                "label": run.label,
                "cells": [
                    *([cell(run.family)] if several else []),
                    cell(str(run.seed), run.seed),
                    *(score_cell(run.score(name), name, "optional" if place >= 4 else "") for place, name in enumerate(names)),
                    *costs(run),
                    cell(str(run.record["identity"].get("config", "–")), "", kind="optional dim"),
                ],
            }
        )
    return columns, made


def contrasts(comparison: Comparison) -> tuple[list[Column], list[dict[str, Any]], str]:
    """One row per contrast with its outcome, and how to read them."""
    found = comparison.contrasts
    if not found:
        return [], [], ""
    several, score = len(comparison.families) > 1, comparison.headline
    said = {(one.first, one.against): one.said for one in across(found)}
    reach = {bool(part.along): _reach([other for other in found if bool(other.along) == bool(part.along)]) for part in found}
    columns = [
        column("contrast"),
        *([column("budget")] if several else []),
        column("outcome"),
        *([column("under every budget", help_="the claim that every budget bears out")] if several else []),
        column("difference", True),
        column("seeds", True),
        column("p", help_="sign-flip test, after Holm over the contrasts of this budget"),
    ]
    rows = []
    for part in found:
        mean, low, high = part.found.interval
        digits = digits_for(score)
        ends_ = f"[{signed(low, digits)}, {signed(high, digits)}]" if low == low else ""
        tested = part.outcome not in ("refused", "exploratory")
        rows.append(
            {
                "name": f"{part.found.first} − {part.found.second}" + (f", per 1 of {part.along}" if part.along else ""),
                "cells": [
                    *([cell(part.family)] if several else []),
                    cell(part.outcome, small=_slightly(part, score), kind=f"outcome {part.outcome.split()[0]}"),
                    *([cell(said[part.found.first, part.against])] if several else []),
                    cell(signed(mean, digits), mean, ends_),
                    cell(str(part.found.n), part.found.n),
                    cell(("<0.001" if part.p < 0.001 else f"{part.p:.3f}") if tested else "–", part.p if tested else ""),
                ],
                "forest": _forest(part, reach[bool(part.along)], score),
            }
        )
    return columns, rows, _how_to_read(comparison)


def _reach(parts: Sequence[Judged]) -> float:
    """What the forest lines of some contrasts must hold; slopes have a scale of their own."""
    ends = [abs(end) for part in parts for end in part.found.interval if end == end]
    return max([*ends, *(part.margin or 0 for part in parts)], default=1.0) * 1.08 or 1.0


def _slightly(part: Judged, score: str) -> str:
    if not part.slight:
        return ""
    return f"no worse within {part.allowed(score)}" if part.outcome == "behind" else f"by less than {part.allowed(score)}"


def _forest(part: Judged, reach: float, score: str) -> dict[str, Any] | None:
    """A difference and its interval on a line whose middle is zero; the band is the margin of "no worse"."""
    mean, low, high = part.found.interval
    if not all(math.isfinite(end) for end in (mean, low, high)):
        return None

    def place(value: float) -> float:
        return round(50 + 50 * value / reach, 2)

    band = [place(-part.margin), round(place(part.margin) - place(-part.margin), 2)] if part.margin else None
    alt = f"difference {mean:.3g}, interval {low:.3g} to {high:.3g} in {score}"
    return {"zero": 50, "mean": place(mean), "low": place(low), "high": place(high), "band": band, "alt": alt}


def _how_to_read(comparison: Comparison) -> str:
    part = comparison.contrasts[0]
    if comparison.front:
        return (
            "Each design of the front minus its strongest rival among those that cost no more, by runs of one seed, with 95 % "
            "t-intervals; p is the largest of its sign-flip tests against all of those, after Holm over the designs."
        )
    declared = "declared before the runs were made" if comparison.declared else "all pairs, for none was declared"
    lines = [
        f"Mean differences of runs of one seed, first minus second, with 95 % t-intervals; {declared}.",
        "p is of the exact sign-flip test over seeds, after Holm over the contrasts of one budget, those without runs included.",
    ]
    if part.margin is not None:
        unit = " ms" if comparison.headline.endswith("_ms") else ""
        lines.append(f"The grey band is what counts as no worse: {part.margin:g}{unit} either way, tested by TOST.")
    return " ".join(lines)
