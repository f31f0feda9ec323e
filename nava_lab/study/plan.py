"""What a study will do, before anything starts: every run with its parameters, FLOPs and expected time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nava_lab.budget.measure import Cost
from nava_lab.budget.solve import Solution
from nava_lab.config import Config, ConfigError, load
from nava_lab.evaluation.protocol import batches
from nava_lab.registry import metrics, nearest
from nava_lab.rng import generators
from nava_lab.study import record
from nava_lab.study.build import Parts, network
from nava_lab.study.grammar import StudyError
from nava_lab.study.multirun import re_executes
from nava_lab.study.results import CONFIRMATION, TUNING
from nava_lab.study.run import device_of, prepared
from nava_lab.study.space import VALIDATION_LOSS
from nava_lab.study.spec import Point, Study
from nava_lab.study.tuning import slots_of

START_S = 3.0  # of a run, besides steps and samples: building, bootstrapping scores, writing


@dataclass(frozen=True)
class Expected:
    """How long one run will take.

    Attributes:
        seconds: training and scoring of one run; None where it could not be told.
        source: where that comes from, in words.
    """

    seconds: float | None
    source: str


@dataclass(frozen=True)
class PlannedPoint:
    """One point's runs: they differ in seed (and tuned settings that cost nothing), so they cost the same.

    Attributes:
        point: which.
        config: of one of its confirmation runs.
        solution: its size and cost; of a size that is tuned, at the space's first corner.
        tunings: runs of its tuning.
        confirmations: runs that confirm it.
        expected: the time of one run.
    """

    point: Point
    config: Config
    solution: Solution
    tunings: int
    confirmations: int
    expected: Expected

    @property
    def flops(self) -> float:
        """Training FLOPs of one run."""
        training = self.config.training
        return float(self.solution.cost.flops_per_sample) * training.steps * training.batch_size

    @property
    def cost(self) -> Cost:
        return self.solution.cost


@dataclass(frozen=True)
class Plan:
    """A whole study before it starts."""

    study: Study
    points: tuple[PlannedPoint, ...]

    def runs(self) -> list[tuple[str, PlannedPoint, str, int]]:
        """(phase, point, trial or empty, seed) of every run in the order in which they are taken up."""
        tuning, rows = self.study.tuning, []
        for name in slots_of(tuning) if tuning else ():
            rows += [(TUNING, part, name, seed) for part in self.points for seed in tuning.seeds]  # type: ignore[union-attr]
        if tuning and tuning.two_objectives:
            front = [f"front {number}" for number in range(1, tuning.front + 1)]
            return rows + [
                (CONFIRMATION, part, name, seed) for seed in self.study.seeds for part in self.points for name in front
            ]
        return rows + [(CONFIRMATION, part, "", seed) for seed in self.study.seeds for part in self.points]

    def seconds(self) -> float | None:
        """Of all runs one after the other; None where one of them could not be told."""
        each = [part.expected.seconds for _, part, _, _ in self.runs()]
        return None if any(part is None for part in each) else float(sum(part for part in each if part is not None))


def corners(study: Study) -> list[dict[str, Any]]:
    """The ends of the tuned space, one setting per end: whatever lies between is as legal as they are."""
    if study.tuning is None:
        return [{}]
    ends = [(part.values[0], part.values[-1]) if part.values else (part.low, part.high) for part in study.tuning.space]
    whole = [part.whole for part in study.tuning.space]
    found = []
    for which in (0, 1):
        values = [round(end[which]) if is_whole else end[which] for end, is_whole in zip(ends, whole, strict=True)]
        found.append({part.key: value for part, value in zip(study.tuning.space, values, strict=True)})
    return found


def plan_of(study: Study, root: Path, timed: bool, threads: int | None = None) -> Plan:
    """Compose and build every point, one at both ends of the tuned space; StudyError says which one cannot be meant.

    Args:
        study: what is planned.
        root: where finished runs are looked for, whose speed tells what others will take.
        timed: whether to find out how long runs take.
        threads: torch threads that each worker will have; None for as many as now.
    """
    finished = _finished(root) if timed else []
    points: list[PlannedPoint] = []
    for point in study.points:
        config, built = _built(study, point, corners(study)[: 1 if points else None])
        _check(study, point, config)
        expected = expect(config, built, finished, threads) if timed else Expected(None, "not asked for")
        tunings = len(slots_of(study.tuning)) * len(study.tuning.seeds) if study.tuning else 0
        confirmations = len(study.seeds) * (study.tuning.front if study.tuning and study.tuning.two_objectives else 1)
        points.append(PlannedPoint(point, config, built.solution, tunings, confirmations, expected))
    return Plan(study, tuple(points))


def _built(study: Study, point: Point, at: Sequence[Mapping[str, Any]]) -> tuple[Config, Parts]:
    try:
        made = [
            (config, prepared(config))
            for tuned in corners(study)
            for config in [load(study.overrides(point, study.seeds[0], tuned))]
        ]
    except ConfigError as error:
        raise StudyError(f"{study.name}, {point.key}: {error}") from None
    return made[0]


def _check(study: Study, point: Point, config: Config) -> None:
    """Refuse what would only show after training."""
    where, tuning = f"{study.name}, {point.key}", study.tuning
    chosen = [metrics.get(name) for name in config.world.metrics]
    for score in {study.metric, *([tuning.metric] if tuning else ())} - {VALIDATION_LOSS}:
        if all(part.direction(score) is None for part in chosen):
            declared = [name for part in chosen for name in part.higher_is_better_by_score]
            raise StudyError(f"{where}: world {config.world.name} has no score {score}; {nearest(score, sorted(declared))}")
    if tuning is None:
        return
    if not config.training.validations and (tuning.pruner != "none" or tuning.metric == VALIDATION_LOSS):
        raise StudyError(f"{where}: tuning takes validation losses on the way: set training.validations")
    if tuning.pruner != "none" and re_executes(config):
        raise StudyError(f"{where}: a pruner needs a run in one process (or trainer.strategy=ddp_fork): set pruner: none")


def _finished(root: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for path in sorted(root.glob(f"*/{record.NAME}")):
        try:
            found.append(record.read(path.parent))
        except record.BadRecord:
            continue
    return found


def expect(config: Config, built: Parts, finished: Sequence[Mapping[str, Any]], threads: int | None) -> Expected:
    """One run's time: steps by the speed of finished runs of this size, or else of a few steps; samples by a few batches."""
    if config.trainer.accelerator == "cuda" and not torch.cuda.is_available():
        return Expected(None, "no GPU here")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        step, forward = _speeds(config, built)
    finally:
        torch.set_num_threads(before)
    training, scoring = config.training, config.evaluation
    size = built.solution.size
    alike = [
        made["wall_time_s"] / made["steps"]
        for made in finished
        if (made["variant"], made["world"]) == (config.variant.name, config.world.name)
        and made["size"] == {"width": size.width, "hidden": size.hidden}
        and made["samples_seen"] == made["steps"] * training.batch_size
    ]
    source = f"speed of {len(alike)} finished runs" if alike else "3 steps tried now"
    seconds = training.steps * (statistics.median(alike) if alike else step)
    if not alike:  # what finished runs' time holds already
        seconds += training.validations * training.validation_clips * forward
    samples = built.protocol.sampler.evaluations(tuple(config.world.interface().modalities), []) * scoring.clips
    if not any(metrics.get(name).needs == "samples" for name in config.world.metrics):
        samples = samples // scoring.clips * scoring.previews
    return Expected(seconds + forward * (samples + scoring.loss_clips) + START_S, source)


def _speeds(config: Config, built: Parts) -> tuple[float, float]:
    """Seconds of a training step, and of a forward pass of one clip in scoring."""
    device = device_of(config)
    model = network(config, built.solution).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def timed(work: Callable[[], object], times: int) -> float:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    rows = config.training.batch_size

    def step() -> None:
        batch = config.world.batch("train", torch.arange(rows, device=device))
        draws = built.drawing(batch.streams, generators("plan", 0, batch.index.tolist()))
        losses = built.objective.per_sample(model, batch, draws)
        built.objective.total(losses, built.objective.counts(batch, draws)).backward()
        optimizer.step()
        optimizer.zero_grad()

    size = min(config.evaluation.batch_size, config.evaluation.clips)
    batch = next(batches(config.world, "validation", size, size, device))
    draws = built.scoring(batch.streams, generators("plan", 0, batch.index.tolist()))

    @torch.no_grad()
    def forward() -> None:
        built.objective.plain().per_sample(model, batch, draws)

    autocast = torch.autocast(device.type, torch.bfloat16, enabled="bf16" in config.trainer.precision)
    with autocast:
        return timed(step, 3), timed(forward, 2) / size
