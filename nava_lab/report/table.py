"""Comparisons in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nava_lab.report.compare import Comparison, OverSeeds, Run
from nava_lab.report.numbers import digits_for, interval, number, short

TRUTH = "true clips, decoded"
MANY = 12  # runs; more than that are put together by seed
COLOURS = {"verdict": "green", "not ranked": "red", "nothing to compare": "default"}  # all others are yellow


def lead_columns(comparison: Comparison) -> list[str]:
    """The scores that their metrics want first, the headline apart; every score where no record says so."""
    wanted = dict.fromkeys(name for run in comparison.runs for name in run.record.get("shown", ()))
    return [name for name in wanted if name != comparison.headline] or shown_columns(comparison)


def shown_columns(comparison: Comparison) -> list[str]:
    """Every score that some run has, the headline apart: first what metrics want first, the rest by name."""
    scored = {name for run in comparison.runs for name in run.record["scores"]} - {comparison.headline}
    wanted = dict.fromkeys(name for run in comparison.runs for name in run.record.get("shown", ()) if name in scored)
    return [*wanted, *sorted(scored - set(wanted))]


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """The table, then what may be concluded from it."""
    console = console or Console()
    rows = comparison.over_seeds()
    several = any(row.seeds > 1 for row in rows)
    if len(comparison.runs) <= MANY or not several:
        _print_rows(comparison, [_cells(comparison, run) for run in comparison.runs], console)
    if several:
        _print_rows(comparison, [_mean_cells(comparison, row) for row in rows], console)
        console.print("[dim]mean and 95 % t-interval over seeds; single runs are on the page[/dim]")
    colour = COLOURS.get(comparison.status, "yellow")
    summary = f"Provisional: {comparison.summary}" if comparison.reservations else comparison.summary
    console.print(summary, style=f"bold {colour}", highlight=False, markup=False)
    for line in [*comparison.reservations, *comparison.findings, *comparison.sentences]:
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    for line in [*comparison.doubts, *comparison.left_out]:
        console.print(Padding(Text(line, style="dim"), (0, 0, 0, 2)))


def _print_rows(comparison: Comparison, cells: Sequence[Mapping[str, str]], console: Console) -> None:
    """A table without the columns that do not fit, which are named below it."""
    names = list(cells[0])
    truth = comparison.truth()
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in names}
    widths["variant"] = max(widths["variant"], len(TRUTH) if truth else 0)
    optional = [name for name in reversed(names) if name not in ("variant", "seed", "seeds", "budget", comparison.headline)]
    hidden = []
    while optional and sum(widths[name] + 3 for name in names) + 1 > console.width:
        hidden.append(optional.pop(0))
        names.remove(hidden[-1])
    table = Table(header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True, justify="left" if name in ("variant", "budget") else "right")
    for row in cells:
        table.add_row(*(row[name] for name in names))
    if truth:
        ideal = {name: number(part["value"], digits_for(name)) for name, part in truth.items()} | {"variant": TRUTH}
        table.add_section()
        table.add_row(*(ideal.get(name, "") for name in names), style="dim")
    console.print(table)
    if hidden:
        console.print(f"[dim]in a wider terminal, and on the page: {', '.join(reversed(hidden))}[/dim]")


def _cells(comparison: Comparison, run: Run) -> dict[str, str]:
    """A run's row by column, in order of importance."""
    headline = comparison.headline
    own = {headline: interval(run.score(headline), digits_for(headline))} if headline else {}
    return {
        "variant": run.label,
        **({"budget": run.family} if len(comparison.families) > 1 else {}),
        "seed": str(run.seed),
        **own,
        **_cost(run),
        **{name: number(run.value(name), digits_for(name)) for name in shown_columns(comparison)},
    }


def _mean_cells(comparison: Comparison, row: OverSeeds) -> dict[str, str]:
    digits = digits_for(comparison.headline)
    ends = f" [{number(row.interval.low, digits)}, {number(row.interval.high, digits)}]" if row.seeds > 1 else ""

    def of_seeds(name: str) -> str:
        return f" ({row.defined(name)} of {row.seeds})" if 0 < row.defined(name) < row.seeds else ""

    return {
        "variant": row.label,
        **({"budget": row.family} if len(comparison.families) > 1 else {}),
        "seeds": str(row.seeds),
        comparison.headline: number(row.mean, digits) + ends + of_seeds(comparison.headline),
        **_cost(next(iter(row.runs.values()))),
        **{name: number(row.over(name).mean, digits_for(name)) + of_seeds(name) for name in shown_columns(comparison)},
    }


def _cost(run: Run) -> dict[str, str]:
    made = run.record
    return {
        "parameters": f"{made['parameters']['total']:,}",
        "minutes": f"{made['wall_time_s'] / 60:.1f}",
        "FLOPs/sample": short(made["flops_per_sample"]),
        "active": short(made["parameters"]["active_per_token"]),
    }
