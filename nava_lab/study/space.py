"""What is tuned: the space of a study's settings, and how it is searched."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nava_lab.registry import nearest
from nava_lab.study.grammar import StudyError, as_mapping, checked_keys, is_number, number, seeds_of, shown, whole

TUNING_SEEDS = 10_000  # the first seed of tuning runs; confirmation counts from 0, so no seed is used for both
SAMPLERS = ("grid", "tpe", "random", "nsga2")
PRUNERS = ("none", "median", "halving")
VALIDATION_LOSS = "validation/loss"
LOSSES = (VALIDATION_LOSS, "loss")  # what a pruner, which sees validation losses, may speak for
CLOSED = ("low", "high", "both")
TUNING_FIELDS = ("space", "trials", "seeds", "metric", "sampler", "pruner", "front")


@dataclass(frozen=True)
class Dimension:
    """One setting that is tuned: a list of values, or a range.

    Attributes:
        key: the config key.
        values: what a list holds; empty for a range.
        low, high: a range's ends.
        log: whether a range is even in the logarithm.
        steps: how many values of a range the grid sampler takes, ends included.
        whole: whether a range holds whole numbers alone (both of its ends are written as such).
        closed: "low", "high" or "both", where nothing lies beyond an end (a dropout below 0, a share above 1), so that an optimum
            there asks for no wider space; empty where both could be moved.
    """

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    steps: int = 0
    whole: bool = False
    closed: str = ""

    def grid(self) -> tuple[Any, ...]:
        """The values that the grid sampler takes."""
        if self.values:
            return self.values
        shares = [step / (self.steps - 1) for step in range(self.steps)]
        if self.log:
            values = [float(f"{self.low * (self.high / self.low) ** share:.6g}") for share in shares]
        else:
            values = [self.low + (self.high - self.low) * share for share in shares]
        return tuple(dict.fromkeys(round(value) for value in values)) if self.whole else tuple(values)

    @property
    def count(self) -> float:
        """How many values there are; infinite for a range of numbers that are not whole."""
        return len(self.values) if self.values else round(self.high) - round(self.low) + 1 if self.whole else math.inf

    def ends(self) -> tuple[Any, ...]:
        """Its extremes; every value of a list that has no order."""
        if not self.values:
            return (round(self.low), round(self.high)) if self.whole else (self.low, self.high)
        return (min(self.values), max(self.values)) if all(map(is_number, self.values)) else self.values

    def at_random(self, rng: random.Random) -> Any:
        if self.values:
            return rng.choice(self.values)
        if self.log:
            drawn = self.low * (self.high / self.low) ** rng.random()
            return min(max(round(drawn), round(self.low)), round(self.high)) if self.whole else drawn
        return rng.randint(round(self.low), round(self.high)) if self.whole else rng.uniform(self.low, self.high)

    def bound(self, value: Any) -> str:
        """ "low" or "high" where the value lies at (or within 2 % of) an end of an ordered dimension that could be moved."""
        end = self._end(value)
        return "" if self.closed in (end, "both") else end

    def at_closed(self, value: Any) -> str:
        """ "low" or "high" where it lies at an end beyond which there is nothing."""
        end = self._end(value)
        return end if self.closed in (end, "both") else ""

    def _end(self, value: Any) -> str:
        ordered = self.values or (self.low, self.high)
        if len(ordered) < 2 or not all(map(is_number, ordered)):
            return ""
        low, high, at = min(ordered), max(ordered), float(value)
        if self.values:
            return "low" if at <= low else "high" if at >= high else ""
        share = math.log(at / low) / math.log(high / low) if self.log else (at - low) / (high - low)
        return "low" if share <= 0.02 else "high" if share >= 0.98 else ""


@dataclass(frozen=True)
class Tuning:
    """How each point's own settings are chosen, with the same space and trials for every point.

    Attributes:
        space: what is tuned.
        trials: trials per point; with the grid sampler, as many as the grid has.
        seeds: seeds per trial; a trial's value is their mean. None of them is a confirmation seed.
        metric: what is optimised on the validation split: a score, or "validation/loss". Empty for the study's metric.
        sampler: grid, tpe, random; or nsga2, which minds ``metric`` and training FLOPs per sample at once.
        pruner: what ends bad trials early by the validation loss on the way: none, median or halving; for a tuning by the loss
            alone. Which trials it ends depends on which others have ended before, and so on the number of workers.
        front: nsga2 only: how many points of the Pareto front are confirmed.
    """

    space: tuple[Dimension, ...]
    trials: int = 8
    seeds: tuple[int, ...] = (TUNING_SEEDS,)
    metric: str = ""
    sampler: str = "tpe"
    pruner: str = "none"
    front: int = 4

    @property
    def two_objectives(self) -> bool:
        return self.sampler == "nsga2"


def tuning_of(value: Any, where: str, metric: str) -> Tuning:
    """A tuning from its fields; ``metric`` is the study's, taken where it names none of its own."""
    fields = as_mapping(value, where)
    checked_keys(fields, TUNING_FIELDS, where)
    space = tuple(
        _dimension(key, part, f"{where}.space.{key}") for key, part in as_mapping(fields.get("space"), f"{where}.space").items()
    )
    if not space:
        raise StudyError(f"{where}.space must name what is tuned")
    sampler, pruner = fields.get("sampler", "tpe"), fields.get("pruner", "none")
    for part in space if sampler != "nsga2" else ():  # a front spans its space, ends included
        _check_inside(part, f"{where}.space.{part.key}")
    for key, name, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if name not in known:
            raise StudyError(f"{where}.{key}={name}: {nearest(str(name), list(known))}")
    if sampler == "nsga2" and pruner != "none":
        raise StudyError(f"{where}: a trial with two objectives cannot be pruned; set pruner: none")
    tuned_by = str(fields.get("metric") or metric)
    if pruner != "none" and tuned_by not in LOSSES:
        raise StudyError(
            f"{where}: pruner {pruner} ends trials by the validation loss, and they are judged by {tuned_by}, which ranks them "
            f"otherwise: set pruner: none, or metric: {VALIDATION_LOSS}"
        )
    trials = fields.get("trials", 8)
    if sampler == "grid":
        ranges = [part.key for part in space if not part.values and part.steps < 2]
        if ranges:
            raise StudyError(f"{where}.space.{ranges[0]} needs steps of at least 2 for the grid sampler")
        cells = math.prod(len(part.grid()) for part in space)
        if fields.get("trials", cells) != cells:
            raise StudyError(
                f"{where}.trials={trials}: the grid has {cells} cells; leave trials out, or give tuning.sampler=tpe with it"
            )
        trials = cells
    cells = math.prod(part.count for part in space)
    if whole(trials, f"{where}.trials", least=1) > cells:
        raise StudyError(f"{where}.trials={trials}: the space has {cells} points, and none is tried twice; give at most {cells}")
    return Tuning(
        space,
        trials,
        seeds_of(fields.get("seeds", 1), TUNING_SEEDS, f"{where}.seeds"),
        tuned_by,
        sampler,
        pruner,
        whole(fields.get("front", 4), f"{where}.front", least=1),
    )


def _dimension(key: str, value: Any, where: str) -> Dimension:
    fields = as_mapping({"values": value} if isinstance(value, list) else value, where)
    listed = "values" in fields
    checked_keys(fields, ("values", "closed") if listed else ("low", "high", "log", "steps", "closed"), where)
    closed = fields.get("closed", "")
    if closed and closed not in CLOSED:
        raise StudyError(f"{where}.closed={closed}: {nearest(str(closed), list(CLOSED))}")
    if listed:
        return _list(key, fields["values"], closed, where)
    low, high = (number(fields.get(name), f"{where}.{name}") for name in ("low", "high"))
    log = bool(fields.get("log", False))
    if low >= high or (log and low <= 0):
        raise StudyError(f"{where}: low={low:g} must be below high={high:g}" + (" and above 0" if log else ""))
    integers = all(isinstance(fields[name], int) for name in ("low", "high"))
    steps = whole(fields.get("steps", 0), f"{where}.steps", least=0)
    return Dimension(key, (), low, high, log, steps, integers, closed)


def _check_inside(part: Dimension, where: str) -> None:
    """Of two numbers either is at an end, so whichever is best, the next one beyond may be better."""
    if len(part.values) == 2 and all(map(is_number, part.values)) and part.closed != "both":
        low, high = map(shown, part.values)
        raise StudyError(
            f"{where} lists two numbers, and whichever is best lies at an end: list three or more, give a range (low, high), or "
            f"say that there is nothing beyond, {{values: [{low}, {high}], closed: both}}"
        )


def _list(key: str, values: Any, closed: str, where: str) -> Dimension:
    """A list of values; one of numbers has ends, as a range has."""
    if not isinstance(values, list) or len(values) < 2:
        raise StudyError(f"{where} lists fewer than two values: fix it instead")
    if any(isinstance(part, list | Mapping) for part in values):
        raise StudyError(f"{where} must list plain values; what needs lists can vary, as named levels")
    numbers = all(map(is_number, values))
    if closed and not numbers:
        raise StudyError(f"{where}.closed={closed}: only numbers have ends")
    return Dimension(key, tuple(values), closed=closed)
