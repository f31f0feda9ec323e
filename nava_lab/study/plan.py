"""What a study will do, before anything starts: every run with its parameters, FLOPs and expected time."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig

from nava_lab.budget.measure import Cost
from nava_lab.budget.solve import Solution
from nava_lab.config import Config, ConfigError, composed, typed
from nava_lab.evaluation.protocol import batches
from nava_lab.registry import metrics, nearest
from nava_lab.rng import generators
from nava_lab.study import record
from nava_lab.study.build import Parts, network
from nava_lab.study.grammar import StudyError, spoken
from nava_lab.study.multirun import re_executes
from nava_lab.study.results import CONFIRMATION, TUNING
from nava_lab.study.run import device_of, prepared
from nava_lab.study.seeds import check_stackable, configs_of
from nava_lab.study.space import VALIDATION_LOSS
from nava_lab.study.spec import Point, Study
from nava_lab.study.statistics import SEEDS_FOR_A_VERDICT, too_many
from nava_lab.study.tuning import prunes_little, slots_of

CORNERS = 32  # of the tuned space that are built for every point
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
    """One point's runs: they differ in seed and tuned settings, and cost the same where none of these changes the cost.

    Attributes:
        point: which.
        config: of one of its confirmation runs, of the costliest.
        solution: its size and cost; where these are tuned, of the costliest run.
        least: the cost of the cheapest run; where tuning leaves the cost alone, the same.
        least_flops: its training FLOPs.
        tunings: runs of its tuning.
        confirmations: runs that confirm it.
        expected: the time of one run, of the costliest.
    """

    point: Point
    config: Config
    solution: Solution
    least: Cost
    least_flops: float
    tunings: int
    confirmations: int
    expected: Expected

    @property
    def flops(self) -> float:
        """Training FLOPs of one run, of the costliest."""
        return training_flops(self.config, self.cost)

    @property
    def cost(self) -> Cost:
        return self.solution.cost


def training_flops(config: Config, cost: Cost) -> float:
    return float(cost.flops_per_sample) * config.training.steps * config.training.batch_size


@dataclass(frozen=True)
class Plan:
    """A whole study before it starts."""

    study: Study
    points: tuple[PlannedPoint, ...]

    @property
    def warnings(self) -> list[str]:
        """What the plan cannot answer, a sentence each, before anything is computed."""
        seeds, tuning = len(self.study.seeds), self.study.tuning
        found = [told] if tuning and (told := prunes_little(tuning)) else []
        if seeds < SEEDS_FOR_A_VERDICT:
            return [*found, f"{seeds} seeds: exploratory, a verdict takes {SEEDS_FOR_A_VERDICT}"]
        for budget in self.study.budgets:
            labels = sum(point.budget == budget for point in self.study.points)
            if tuning and tuning.two_objectives:  # each design of a front against what costs no more
                asked = tuning.front * labels - 1
            elif self.study.contrasts:
                asked = sum(part.budget == budget for part in self.study.contrasts)
            else:
                asked = labels * (labels - 1) // 2
            told = too_many(asked, seeds)
            found += [f"at equal {spoken(budget)}: {told}" if budget else told] if told else []
        return found

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
        """Of all runs one after the other, at most; None where one of them could not be told."""
        each = [part.expected.seconds for _, part, _, _ in self.runs()]
        return None if any(part is None for part in each) else float(sum(part for part in each if part is not None))


def settings_of(study: Study) -> list[dict[str, Any]]:
    """Points of the tuned space at which every run is composed before any starts.

    Every value of every list is among them, and every corner, so that the costliest run is (where there are more corners
    than ``CORNERS``, the two at the ends of the diagonal); whatever lies between the ends of a range is as legal as they are.
    """
    space = study.tuning.space if study.tuning else ()
    ends = [part.ends() for part in space]
    if math.prod(map(len, ends)) > CORNERS:
        ends = [(part[0], part[-1]) for part in ends]
        corners = list(zip(*ends, strict=True))
    else:
        corners = list(itertools.product(*ends))
    lists = [part.values or part.ends() for part in space]
    corners += [tuple(part[number % len(part)] for part in lists) for number in range(max(map(len, lists), default=0))]
    return [dict(zip([part.key for part in space], corner, strict=True)) for corner in dict.fromkeys(corners)]


def plan_of(study: Study, root: Path, timed: bool, threads: int | None = None, together: int = 1) -> Plan:
    """Compose and build every point at the corners of the tuned space; StudyError says which one cannot be meant.

    Args:
        study: what is planned.
        root: where finished runs are looked for, whose speed tells what others will take.
        timed: whether to find out how long runs take.
        threads: torch threads that each worker will have; None for as many as now.
        together: how many seeds of a point are to be trained in one process; of more than one, what cannot be is refused.
    """
    finished = finished_runs(root) if timed else []
    points: list[PlannedPoint] = []
    for point in study.points:
        (config, built), (cheap, least) = _built(study, point, together)
        _check(study, point, config)
        expected = expect(config, built, finished, threads) if timed else Expected(None, "not asked for")
        tunings = len(slots_of(study.tuning)) * len(study.tuning.seeds) if study.tuning else 0
        confirmations = len(study.seeds) * (study.tuning.front if study.tuning and study.tuning.two_objectives else 1)
        points.append(
            PlannedPoint(point, config, built.solution, least, training_flops(cheap, least), tunings, confirmations, expected)
        )
    return Plan(study, tuple(points))


def _built(study: Study, point: Point, together: int) -> tuple[tuple[Config, Parts], tuple[Config, Cost]]:
    """A point's costliest run, and its cheapest one with its cost."""
    made = []
    try:
        for tuned in settings_of(study):
            asked = composed(study.overrides(point, study.seeds[0], tuned))
            config = typed(asked)
            if together > 1:
                _check_together(asked, config, study.seeds, together)
            made.append((config, prepared(config)))
    except ConfigError as error:
        raise StudyError(f"{study.name}, {point.key}: {error}") from None

    def flops(part: tuple[Config, Parts]) -> float:
        return training_flops(part[0], part[1].solution.cost)

    cheap, parts = min(made, key=flops)
    return max(made, key=flops), (cheap, parts.solution.cost)


def _check_together(asked: DictConfig, config: Config, seeds: Sequence[int], together: int) -> None:
    """Refuse runs whose seeds cannot be trained in one process."""
    told = f"--together {together}"
    check_stackable(config, told, "seeds are trained one after the other")
    configs_of(asked, seeds[:2], told)


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


@dataclass(frozen=True)
class Finished:
    """A finished run as far as its speed tells that of others: its record and its config."""

    record: Mapping[str, Any]
    config: Mapping[str, Any]

    def is_like(self, config: Config, built: Parts) -> bool:
        """Whether a step of it took the work of this config's: the same cost of a clip, batch, attention and machine."""
        made, size = self.record, built.solution.size
        return (
            (made["variant"], made["world"]) == (config.variant.name, config.world.name)
            and made["size"] == {"width": size.width, "hidden": size.hidden}
            and made["flops_per_sample"] == built.solution.cost.flops_per_sample
            and made["samples_seen"] == made["steps"] * config.training.batch_size
            and made["evaluation"].get("device") == str(device_of(config))
            and all(self.config.get(group) == config.resolved[group] for group in ("trainer", "attention"))
            and not made.get("machines")  # continued elsewhere
            and not made.get("stacked_with")  # whose time is a share of several seeds'
        )


def finished_runs(root: Path) -> list[Finished]:
    found: list[Finished] = []
    for path in sorted(root.glob(f"*/{record.NAME}")):
        try:
            config: Any = yaml.safe_load(path.with_name("config.yaml").read_text(encoding="utf-8"))
            found.append(Finished(record.read(path.parent), config))
        except (record.BadRecord, OSError):
            continue
    return found


def expect(config: Config, built: Parts, finished: Sequence[Finished], threads: int | None) -> Expected:
    """One run's time: steps by the speed of finished runs like it, or else of a few steps; samples by a few batches."""
    if config.trainer.accelerator == "cuda" and not torch.cuda.is_available():
        return Expected(None, "no GPU here")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        step, forward = _speeds(config, built)
    finally:
        torch.set_num_threads(before)
    training, scoring = config.training, config.evaluation
    alike = [made.record["wall_time_s"] / made.record["steps"] for made in finished if made.is_like(config, built)]
    beside = "with as many workers at once as they had"
    source = f"speed of {len(alike)} finished runs, {beside}" if alike else "3 steps tried now"
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
