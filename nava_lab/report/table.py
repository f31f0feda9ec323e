"""Comparisons and descriptions in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from nava_lab.report.compare import Comparison, Run

# These first, then whatever else was scored, by name; what does not fit a terminal is on the page.
FIRST = (
    *("f1@80ms", "f1_shuffled@80ms", "sync_error_ms", "event_rate_video", "event_rate_audio", "count_error"),
    *("class_accuracy", "bias_ms", "jitter_ms", "loss"),
)


TRUTH = "true clips, decoded"


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def interval(score: Mapping[str, float] | None, digits: int = 3) -> str:
    """``value [low, high]``."""
    if score is None:
        return "-"
    return f"{number(score['value'], digits)} [{number(score['low'], digits)}, {number(score['high'], digits)}]"


def digits_for(name: str) -> int:
    return 1 if name.endswith("_ms") else 3


def short(count: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:.0f}"


def shown_columns(comparison: Comparison) -> list[str]:
    """Every score that some run has, the headline apart."""
    scored = {name for run in comparison.runs for name in run.record["scores"]} - {comparison.headline}
    return [name for name in FIRST if name in scored] + sorted(scored - set(FIRST))


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """The table, then what may be concluded from it."""
    console = console or Console()
    cells = [_cells(comparison, run) for run in comparison.runs]
    names = list(cells[0])
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in names}
    widths["variant"] = max(widths["variant"], len(TRUTH) if comparison.truth() else 0)
    optional = [name for name in reversed(names) if name not in ("variant", "seed", comparison.headline, "parameters")]
    hidden = []
    while optional and sum(widths[name] + 3 for name in names) + 1 > console.width:
        hidden.append(optional.pop(0))
        names.remove(hidden[-1])
    table = Table(header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True, justify="left" if name == "variant" else "right")
    for row in cells:
        table.add_row(*(row[name] for name in names))
    truth = comparison.truth()
    if truth:
        digits = {name: digits_for(name) for name in truth}
        ideal = {name: number(part["value"], digits[name]) for name, part in truth.items()} | {"variant": TRUTH}
        table.add_section()
        table.add_row(*(ideal.get(name, "") for name in names), style="dim")
    console.print(table)
    if hidden:
        console.print(f"[dim]in a wider terminal, and on the page: {', '.join(reversed(hidden))}[/dim]")
    seeds = comparison.over_seeds()
    if seeds:
        means = Table("variant", "seeds", f"mean {comparison.headline}", "lowest", "highest", header_style="bold")
        for part in seeds:
            means.add_row(part.label, str(part.seeds), number(part.mean), number(part.lowest), number(part.highest))
        console.print(means)
    console.print(comparison.verdict)


def _cells(comparison: Comparison, run: Run) -> dict[str, str]:
    """A run's row by column, in order of importance."""
    made, headline = run.record, comparison.headline
    own = {headline: interval(run.score(headline))} if headline else {}
    return {
        "variant": run.label,
        "seed": str(made["seed"]),
        **own,
        "parameters": f"{made['parameters']['total']:,}",
        "minutes": f"{made['wall_time_s'] / 60:.1f}",
        "FLOPs/sample": short(made["flops_per_sample"]),
        "active": short(made["parameters"]["active_per_token"]),
        **{name: number((run.score(name) or {}).get("value"), digits_for(name)) for name in shown_columns(comparison)},
    }
