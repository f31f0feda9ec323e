"""From a tuning's words to Optuna's: what a trial is asked to try, and which trial is chosen."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection

from nava_lab.registry import metrics, nearest
from nava_lab.rng import stable_seed
from nava_lab.study.claims import Claim, Slot, turn
from nava_lab.study.grammar import StudyError
from nava_lab.study.results import Choice
from nava_lab.study.space import VALIDATION_LOSS, Dimension, Tuning
from nava_lab.study.spec import Point, Study


def higher_is_better(score: str) -> bool:
    """The direction that some metric declares for a score; StudyError where none does."""
    if score == VALIDATION_LOSS:
        return False
    for name in metrics:
        found = metrics.get(name).direction(score)
        if found is not None:
            return bool(found)
    known = [part for name in metrics for part in metrics.get(name).higher_is_better_by_score]
    raise StudyError(f"no metric declares whether a high or a low {score} is good; {nearest(score, sorted(known))}")


def direction(up: bool) -> StudyDirection:
    return StudyDirection.MAXIMIZE if up else StudyDirection.MINIMIZE


STARTUP = {"median": 4, "halving": 1}  # trials that end with a value before these pruners end any


def prunes_little(tuning: Tuning) -> str:
    """A sentence where a pruner has next to nothing left to end when it begins; else empty."""
    first = STARTUP.get(tuning.pruner, 0)
    if not first or tuning.trials > first + 1:
        return ""
    several = "trials have" if first > 1 else "trial has"
    return (
        f"pruner {tuning.pruner} ends nothing before {first} {several} ended, and a point has {tuning.trials}: set pruner: none, "
        "or more trials (of a grid, more cells)"
    )


def slots_of(tuning: Tuning) -> dict[str, dict[str, Any]]:
    """A point's trials by name, with the parameters that are fixed beforehand: all of them in a grid, else none."""
    if tuning.sampler == "grid":
        keys = [part.key for part in tuning.space]
        cells = itertools.product(*(part.grid() for part in tuning.space))
        return {f"trial {number}": dict(zip(keys, cell, strict=True)) for number, cell in enumerate(cells)}
    return {f"trial {number}": {} for number in range(tuning.trials)}


def tuning_study(storage: optuna.storages.BaseStorage, name: str, tuning: Tuning) -> optuna.Study:
    """A point's Optuna study, made where it is missing."""
    directions = [direction(higher_is_better(tuning.metric)), *([direction(False)] if tuning.two_objectives else [])]
    pruners: dict[str, Any] = {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=STARTUP["median"]),
        "halving": optuna.pruners.SuccessiveHalvingPruner,
    }
    return optuna.create_study(
        storage=storage, study_name=name, directions=directions, pruner=pruners[tuning.pruner](), load_if_exists=True
    )


def sampler_of(tuning: Tuning, *who: object) -> optuna.samplers.BaseSampler:
    """A sampler for one trial, seeded by who asks, so that a study that is resumed does not begin the same draws again."""
    seed = stable_seed("sampler", *who) % 2**32
    if tuning.sampler == "tpe":
        startup = max(3, tuning.trials // 4)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
    if tuning.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, tuning.trials // 4))
    return optuna.samplers.RandomSampler(seed=seed)  # of the grid, every slot fixes every parameter


DRAWS = 20  # of the sampler, before a point that nobody tried is drawn at random


def suggest(claim: Claim, space: Sequence[Dimension]) -> dict[str, Any]:
    """The values that a claimed trial tries, by config key: no point that another slot has had, whatever the sampler says.

    Where all of the sampler's draws are taken (it has settled on a point of a small space), any other point is drawn: a trial
    that repeats one would be the same run again, and buy nothing of the equal budget. Workers choose one after the other, on
    whatever machines they are: the turn is the storage's, as claims are.
    """
    asked = {part.key: _distribution(part) for part in space}
    if not set(asked) <= set(claim.fixed):  # a grid's slots, and those that are gone on with, know their point
        with turn(claim.board):
            claim.fix(_untried(claim, space, asked, claim.fixed))
    return {part.key: _suggested(claim.trial, part) for part in space}


def _untried(
    claim: Claim, space: Sequence[Dimension], asked: Mapping[str, BaseDistribution], known: Mapping[str, Any]
) -> dict[str, Any]:
    taken = claim.board.tried(but=claim.slot)
    for _ in range(DRAWS):
        point = {**_proposed(claim, asked), **known}
        if tuple(sorted(point.items())) not in taken:
            return point
    rng = random.Random(stable_seed("untried", claim.board.study.study_name, claim.slot))
    for _ in range(100 * len(taken)):
        if tuple(sorted(point.items())) not in taken:
            break
        point = {**{part.key: part.at_random(rng) for part in space}, **known}
    return point


def _proposed(claim: Claim, asked: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """What the study's sampler would try now, not written down."""
    study, sampler = claim.board.study, claim.board.study.sampler
    trial = study._storage.get_trial(claim.trial._trial_id)
    together = sampler.infer_relative_search_space(study, trial)
    drawn = sampler.sample_relative(study, trial, together)
    return {
        key: drawn[key] if key in drawn else sampler.sample_independent(study, trial, key, distribution)
        for key, distribution in asked.items()
    }


def _suggested(trial: optuna.Trial, part: Dimension) -> Any:
    if part.values:
        return trial.suggest_categorical(part.key, part.values)
    if part.whole:
        return trial.suggest_int(part.key, round(part.low), round(part.high), log=part.log)
    return trial.suggest_float(part.key, part.low, part.high, log=part.log)


def _distribution(part: Dimension) -> BaseDistribution:
    if part.values:
        return CategoricalDistribution(part.values)
    if part.whole:
        return IntDistribution(round(part.low), round(part.high), log=part.log)
    return FloatDistribution(part.low, part.high, log=part.log)


def choose(study: Study, point: Point, slots: Mapping[str, Slot]) -> list[Choice]:
    """What tuning chose for a point: the best trial, or evenly spread points of the front; empty while trials are left."""
    tuning = study.tuning
    assert tuning is not None
    names = list(slots_of(tuning))
    if not all(name in slots and slots[name].state in ("finished", "pruned", "failed") for name in names):
        return []
    ended = [trial for name in names if slots[name].state == "finished" and (trial := slots[name].trial) is not None]
    pruned, failed = (sum(slots[name].state == state for name in names) for state in ("pruned", "failed"))
    up = higher_is_better(tuning.metric)

    def choice(trial: optuna.trial.FrozenTrial, front: int = 0) -> Choice:
        space = () if front else tuning.space  # a front spans its space
        bounds = {part.key: bound for part in space if (bound := part.bound(trial.params[part.key]))}
        return Choice(point.key, dict(trial.params), trial.values[0], len(ended), pruned, failed, bounds, front)

    if not ended:
        return []
    if not tuning.two_objectives:
        # Equal values go to the first trial, whatever the order in which they ended.
        return [choice(max(ended, key=lambda trial: trial.values[0] if up else -trial.values[0]))]
    front = [trial for trial in ended if not any(_dominates(other.values, trial.values, up) for other in ended)]
    front.sort(key=lambda trial: trial.values[1])
    unlike = list({tuple(trial.values): trial for trial in front}.values())
    picked = range(len(unlike)) if len(unlike) <= tuning.front else _spread(len(unlike), tuning.front)
    return [choice(unlike[at], number) for number, at in enumerate(picked, 1)]


def _spread(count: int, wanted: int) -> list[int]:
    if wanted == 1:
        return [count - 1]
    return [round(step * (count - 1) / (wanted - 1)) for step in range(wanted)]


def _dominates(first: Sequence[float], second: Sequence[float], up: bool) -> bool:
    """Whether ``first`` (score, cost) is at least as good in both and better in one."""
    sign = -1 if up else 1
    a, b = (sign * first[0], first[1]), (sign * second[0], second[1])
    return a != b and a[0] <= b[0] and a[1] <= b[1]


def untunable(study: Study, slots: Mapping[str, Slot]) -> bool:
    """Whether all of a point's trials ended and none with a value."""
    assert study.tuning is not None
    names = list(slots_of(study.tuning))
    return all(name in slots and slots[name].state in ("pruned", "failed") for name in names)
