"""What ``nava describe`` prints: one variant in full, or several in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from nava_lab.report.numbers import short

WIDEST = 1000  # characters of a table
MEMORY = ("weights", "gradients", "optimizer", "average", "activations")


def print_description(described: Mapping[str, Any], console: Console | None = None) -> None:
    """What ``nava describe`` prints without ``--json``."""
    console = console or Console()
    console.print(f"[bold]{described['variant']}[/bold] on {described['world']}: {described['summary']}")
    stages = Table("stage", "layers", "block", header_style="bold")
    for stage in described["stages"]:
        note = ("" if stage["text"] else ", without text") + (f" ({', '.join(stage['only'])})" if stage["only"] else "")
        stages.add_row(stage["label"] + note, str(stage["layers"]), stage["block"])
    console.print(stages)
    groups = Table("group", "parameters", "share", header_style="bold")
    total = described["parameters"]["total"]
    for name, count in described["parameters"]["groups"].items():
        groups.add_row(name, f"{count:,}", f"{count / total:.1%}")
    groups.add_row("[bold]total[/bold]", f"[bold]{total:,}[/bold]", "100.0%")
    console.print(groups)
    active = ", ".join(f"{name} {short(count)}" for name, count in described["parameters"]["active"].items())
    console.print(f"active per token: {described['parameters']['active_per_token']:,.0f} on average ({active})")
    total_flops = described["flops_per_sample"]
    shares = ", ".join(f"{part} {flops / total_flops:.1%}" for part, flops in described["flops_by_part"].items())
    idle = described["flops_idle"]
    beside = f"; beside them {short(idle)} of experts that the sample does not take" if idle else ""
    console.print(f"training FLOPs per sample: {short(total_flops)} ({shares}){beside}")
    held = described["memory"]
    kinds = ", ".join(f"{part} {short(held[part])}" for part in MEMORY)
    console.print(
        f"bytes to train at batch {held['batch']}: about {short(held['total'])} ({kinds}; float32, AdamW, nothing recomputed)"
    )
    by_choice: dict[str, list[str]] = {}
    for call in described["attention"]["calls"]:
        rows = f"{'+'.join(call['queries'])} of {'+'.join(call['keys'])}"
        by_choice.setdefault(f"{call['backend']} ({call['why']})", []).append(rows)
    for choice, read in by_choice.items():
        console.print(
            f"attention of {', '.join(read)}: {choice}" if len(by_choice) > 1 else f"attention: {choice}; {', '.join(read)}"
        )
    console.print("budget: " + "; ".join(described["budget"]["steps"]))


def print_descriptions(many: Sequence[Mapping[str, Any]], names: Sequence[str], console: Console | None = None) -> None:
    """Several variants, a column each under its name: what ``nava describe -m`` prints without ``--json``.

    A terminal that is too narrow wraps lines; no number is cut short.
    """
    console = console or Console()
    rows: dict[str, list[str]] = {}
    rows["width x feed-forward"] = [f"{one['size']['width']} x {one['size']['hidden']}" for one in many]
    rows["heads"] = [", ".join(map(str, dict.fromkeys(one["heads"].values()))) for one in many]
    rows["layers"] = [" + ".join(str(stage["layers"]) for stage in one["stages"]) for one in many]
    rows["parameters"] = [f"{one['parameters']['total']:,}" for one in many]
    rows |= _shares(many, "", lambda one: one["parameters"]["groups"])
    rows["active per token"] = [short(one["parameters"]["active_per_token"]) for one in many]
    rows["training FLOPs per sample"] = [short(one["flops_per_sample"]) for one in many]
    rows |= _shares(many, "FLOPs in ", lambda one: one["flops_by_part"])
    if any(one["flops_idle"] for one in many):
        rows["FLOPs of idle experts"] = [short(one["flops_idle"]) if one["flops_idle"] else "" for one in many]
    rows[f"bytes to train at batch {many[0]['memory']['batch']}"] = [short(one["memory"]["total"]) for one in many]
    table = Table("", *names, header_style="bold")
    for name, values in rows.items():
        table.add_row(name, *values)
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    if needed > console.width:
        console.width = needed
    console.print(table)


def _shares(
    many: Sequence[Mapping[str, Any]], prefix: str, parts: Callable[[Mapping[str, Any]], Mapping[str, int]]
) -> dict[str, list[str]]:
    """A row per part, of what share it is of each variant's sum; empty where a variant has none."""
    sums = [(parts(one), sum(parts(one).values())) for one in many]
    names = dict.fromkeys(name for found, _ in sums for name in found)
    return {
        f"  {prefix}{name}": [f"{found[name] / total:.1%}" if name in found else "" for found, total in sums] for name in names
    }


def labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What tells combinations apart, by their overrides: ``variant=nava`` is "nava", other settings name their key."""
    varied = [[part for part in job if any(part not in other for other in jobs)] for job in jobs]
    words = [[part.removeprefix("variant=").removeprefix("variant.") for part in job] for job in varied]
    return ["\n".join(parts) or str(number) for number, parts in enumerate(words, 1)]
