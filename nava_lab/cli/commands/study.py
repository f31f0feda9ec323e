"""``nava study``: one question, run on whatever machines there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nava_lab.cli.words import number, only_overrides, options_of, tell

if TYPE_CHECKING:
    from nava_lab.study.plan import Plan, PlannedPoint
    from nava_lab.study.results import StudyResult

USAGE = """\
  nava study FILE [KEY=VALUE ...]     run or continue a study of sweeps/            [--plan] [--edition cpu|gpu] [--workers N]
      [--storage URL]: where several machines meet (postgresql://..., mysql://...; by default a file in the study's folder);
      [--together N]: how many seeds of a point each worker trains in one process, 1 unless given; [--retry-failed];
      [--lease S]: silence after which a worker counts as dead; budgets=NAME, seeds=N, tuning.trials=N
"""


def main(arguments: list[str]) -> None:
    from nava_lab.study.conduct import Wish, conduct, planned
    from nava_lab.study.grammar import StudyError

    flags = {"--plan", "--retry-failed"}
    given = flags & set(arguments)
    defaults = dict.fromkeys(("--workers", "--together", "--storage", "--edition", "--lease"), "")
    options, rest = options_of([part for part in arguments if part not in flags], defaults)
    files = [part for part in rest if "=" not in part]
    if len(files) != 1:
        raise ValueError("nava study FILE: name one study's file, such as sweeps/align_fuse_ratio.yaml")
    overrides = [part for part in rest if "=" in part]
    only_overrides(overrides)
    workers, together = number(options, "--workers", int), number(options, "--together", int)
    lease = number(options, "--lease", float)
    wish = Wish(
        Path(files[0]),
        tuple(overrides),
        options["--edition"],
        1 if workers is None else workers,
        options["--storage"],
        "--retry-failed" in given,
        60.0 if lease is None else lease,
        1 if together is None else together,
    )
    if "--plan" in given:
        _print_plan(planned(wish, timed=True), wish.workers, wish.together)
        return
    result = conduct(wish, tell)
    _print_end(result)
    _report(result)
    counts = result.counts()
    if counts["failed"]:
        raise StudyError(f"{counts['failed']} of {sum(counts.values())} runs failed: --retry-failed tries them again")


def _print_plan(plan: Plan, workers: int, together: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=plan.study.question, title_justify="left", header_style="bold")
    for name, side in (("phase", "left"), ("point", "left"), ("trial", "left"), *((name, "right") for name in COLUMNS)):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for phase, part, trial, seed in plan.runs():
        table.add_row(phase, escape(part.point.key), trial, str(seed), *_costs(part))
    Console(width=None if Console().is_terminal else 160).print(table)
    for part in plan.points:
        print(f"{part.point.key}: time by {part.expected.source}")
    for level in plan.study.left_out:
        print(f"left out, for this checkout does not have it: {level}")
    total = plan.seconds()
    most = "at most " if any(part.least_flops < part.flops for part in plan.points) else ""
    time = (
        "time unknown" if total is None else f"{most}{total / 60 / workers:.0f} minutes with {workers} worker{'s'[: workers > 1]}"
    )
    flops = sum(part.flops for _, part, _, _ in plan.runs())
    print(f"{len(plan.runs())} runs, {most}{flops:.2e} training FLOPs, {time} (if none of them slows another down)")
    if together > 1:
        print(f"that is one seed after the other; what --together {together} saves of it, `nava bench seeds` measures")
    for line in plan.warnings:
        print(line)


def _costs(part: PlannedPoint) -> tuple[str, ...]:
    """A run's cells under COLUMNS; from the cheapest to the costliest where tuning changes the cost."""
    seconds = part.expected.seconds
    spans = (
        [f"{cost.total:,}" for cost in (part.least, part.cost)],
        [f"{cost.flops_per_sample / 1e6:,.1f} M" for cost in (part.least, part.cost)],
        [f"{flops:.2e}" for flops in (part.least_flops, part.flops)],
    )
    time = "?" if seconds is None else f"{'up to ' if part.least_flops < part.flops else ''}{seconds:.0f}"
    return (*(" to ".join(dict.fromkeys(span)) for span in spans), time)


COLUMNS = ("seed", "parameters", "FLOPs/clip", "training FLOPs", "seconds")


def _print_end(result: StudyResult) -> None:
    metric = result.study.tuning.metric if result.study.tuning else ""
    for key, choice in result.choices.items():
        chosen = ", ".join(f"{name}={_short(value)}" for name, value in choice.tuned.items())
        print(f"{key}: {chosen} ({metric} {choice.value:.4g} on the validation split)")
        for name, bound in choice.at_bound.items():
            print(f"  {name} is at the {bound} end of its space: widen the space there before believing this point")
    for run in result.runs:
        if run.state == "failed":
            print(f"failed: {run.phase} {run.point} seed {run.seed}: {run.error}")
    print(", ".join(f"{count} {state}" for state, count in result.counts().items() if count))
    print(result.folder)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _report(result: StudyResult) -> None:
    """Verdict, table and page of what is there to compare."""
    from nava_lab.cli.commands.compare import show

    if any(run.state == "finished" for point in result.points for run in result.confirmations(point)):
        show([result.folder], None)
