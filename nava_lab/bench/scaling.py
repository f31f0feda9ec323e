"""How a step's time grows with tokens, depth, width, clips, seeds and processes: fitted exponents, and what each may be.

One thing moves at a time, the size being given (``budget.width``, ``budget.hidden``), so that no budget takes it back. Points of
a series take turns in every round, each its median; the exponent is the slope of log time on log size. Below 1 is a cost that
does not grow (Python, launches); above what is expected would be a cost that grows where it should not. Seeds are trained
together as ``nava train seeds=N`` does it (``bench.seeds``), processes have each as many clips and a thread of their own
(``bench.devices``): their step should take what one process's takes, up to as many as there are cores.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from nava_lab.bench import devices
from nava_lab.bench.devices import WARM_UP
from nava_lab.bench.seeds import seconds
from nava_lab.bench.subject import Subject
from nava_lab.config import Config, load
from nava_lab.report.numbers import number
from nava_lab.study.build import parts
from nava_lab.study.run import device_of
from nava_lab.study.seeds import at_once, check_stackable

FACTORS = (1, 2, 4)
LINEAR = 1.05  # an exponent of 1, and what a machine's noise adds
STEPS = 6  # that are timed in each training of seeds or processes
QUIET = (
    *("training.validations=0", "training.checkpoints=0", "training.checkpoint_minutes=0"),
    *("logger=none", "output.progress=false"),
)


@dataclass(frozen=True)
class Axis:
    """What moves.

    Attributes:
        name: in the table.
        most: the largest exponent that its cost may have: 1 where it should be linear; a matrix product has two widths.
        overrides: config keys at a factor of the smallest size; none where the config has no such thing.
    """

    name: str
    most: float
    overrides: Callable[[Config, int], list[str]]


def _sized(config: Config, factor: int = 1, down: int = 1) -> list[str]:
    """The solved size, times a factor; half of it is the smallest of the widths."""
    size = parts(config).solution.size
    width = max(16, size.width // down // 16 * 16) * factor
    return [f"budget.width={width}", f"budget.hidden={max(16, size.hidden // down // 16 * 16) * factor}"]


def _tokens(config: Config, factor: int) -> list[str]:
    seconds = getattr(config.world, "duration_s", None)
    return [] if seconds is None else [f"world.duration_s={seconds * factor}", *_sized(config)]


AXES = (
    Axis("tokens", 1.15, _tokens),  # attention's logits grow faster, and are few at these lengths
    Axis(
        "depth", LINEAR, lambda config, factor: [f"variant.depth={max(2, config.variant.depth // 2) * factor}", *_sized(config)]
    ),
    Axis("width", 2.0, lambda config, factor: _sized(config, factor, 2)),
    Axis("batch", LINEAR, lambda config, factor: [f"training.batch_size={max(2, config.training.batch_size // 2) * factor}"]),
)


def scaled(config: Config, overrides: Sequence[str], rounds: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One line per axis: the points, and the exponent that fits them."""
    made = []
    for axis in AXES:
        chosen = [axis.overrides(config, factor) for factor in FACTORS]
        if not all(chosen):
            tell(f"{axis.name}: world {config.world.name} has no setting for it")
            continue
        tell(f"{config.variant.name}: {axis.name}, " + ", ".join(part[0] for part in chosen))
        subjects = [Subject(load([*overrides, *part])) for part in chosen]
        times: list[list[float]] = [[] for _ in subjects]
        for turn in range(rounds + 1):
            for own, subject in zip(times, subjects, strict=True):
                began = subject.now()
                subject.whole()
                seconds = subject.now() - began
                if turn:
                    own.append(seconds)
        medians = [statistics.median(own) for own in times]
        made.append(_line(config, axis.name, axis.most, [part[0] for part in chosen], FACTORS, medians))
    return [*made, *over_seeds(config, overrides, rounds, tell), *over_processes(config, overrides, rounds, tell)]


def over_seeds(config: Config, overrides: Sequence[str], rounds: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """A step of several seeds' training; no line where this variant's seeds cannot be trained together."""
    quiet = load([*overrides, *QUIET, f"training.steps={STEPS + WARM_UP}"])
    try:
        check_stackable(quiet)
    except ValueError as error:
        tell(f"seeds: {error}")
        return []
    tell(f"{config.variant.name}: seeds, {', '.join(map(str, FACTORS))}")
    times: list[list[float]] = [[] for _ in FACTORS]
    for _ in range(max(1, rounds // 3)):
        for own, count in zip(times, FACTORS, strict=True):
            own += seconds(quiet, count, at_once(quiet, count) if count > 1 else 0)
    return [_line(config, "seeds", LINEAR, [f"seeds={count}" for count in FACTORS], FACTORS, list(map(statistics.median, times)))]


def over_processes(config: Config, overrides: Sequence[str], rounds: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """A step of several processes' training (ddp), each with as many clips; no line on one core."""
    counts = [count for count in FACTORS if count <= len(os.sched_getaffinity(0))]
    if len(counts) < 2 or device_of(config).type != "cpu":
        tell("processes: one alone fits here (nava bench devices counts more)")
        return []
    tell(f"{config.variant.name}: processes, {', '.join(map(str, counts))}")
    times: list[list[float]] = [[] for _ in counts]
    for _ in range(max(1, rounds // 3)):
        for own, count in zip(times, counts, strict=True):
            own.append(devices.measure(overrides, "ddp", count, STEPS)["step_ms"] / 1e3)
    settings = [f"trainer.devices={count}" for count in counts]
    return [_line(config, "processes", 0.15, settings, counts, list(map(statistics.median, times)))]


def _line(
    config: Config, axis: str, most: float, settings: Sequence[str], sizes: Sequence[int], times: Sequence[float]
) -> dict[str, Any]:
    points = [
        {"factor": factor, "setting": setting, "step_ms": 1e3 * time}
        for factor, setting, time in zip(sizes, settings, times, strict=True)
    ]
    return {"variant": config.variant.name, "axis": axis, "points": points, "exponent": slope(sizes, times), "most": most}


def slope(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Least squares of log time on log size."""
    x, y = [math.log(size) for size in sizes], [math.log(time) for time in times]
    return statistics.linear_regression(x, y).slope


def too_steep(series: Sequence[dict[str, Any]]) -> list[str]:
    """What grows faster than it should, each with its exponent."""
    return [
        f"{line['variant']} over {line['axis']}: {line['exponent']:.2f} (at most {line['most']:.2f})"
        for line in series
        if line["exponent"] > line["most"]
    ]


def show_scaling(series: Sequence[dict[str, Any]]) -> None:
    """The table, and what grows faster than it should."""
    table = Table(title="a training step's time, one thing doubled twice; ms", title_justify="left")
    for column in ("variant", "axis", *(f"x {factor}" for factor in FACTORS), "exponent", "at most"):
        table.add_column(column, justify="left" if column in ("variant", "axis") else "right")
    for line in series:
        points = [number(point["step_ms"], 1) for point in line["points"]]
        points += [""] * (len(FACTORS) - len(points))
        table.add_row(line["variant"], line["axis"], *points, number(line["exponent"], 2), number(line["most"], 2))
    console = Console()
    console = console if console.is_terminal else Console(width=112)
    console.print(table)
    console.print(f"grows faster than it should: {'; '.join(too_steep(series)) or 'nothing'}", soft_wrap=True, highlight=False)
