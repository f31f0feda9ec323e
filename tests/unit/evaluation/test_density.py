"""What a lead's slope along the density of events is worth: one and the same defect must not seem to grow (sweeps/event_density.yaml).

Simulated clips of `pulse`: sounds 30 ms off, against sounds 30 ms off of which 15 % are missing. One seed a simulation.
"""

from functools import cache

import numpy as np
import pytest
import torch

from nava_lab.config import load
from nava_lab.evaluation import score, sync
from nava_lab.registry import PACKAGE, metrics, worlds
from nava_lab.streams import Batch
from nava_lab.study.spec import read_study
from nava_lab.study.statistics import paired_slopes
from nava_lab.worlds.base import Events

DENSITIES, SEEDS, CLIPS = (0.5, 2.0), range(8), 96
SCORES = ("sync_auc", "sync_error_ms")


@pytest.fixture(autouse=True, scope="module")
def values_alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "RESAMPLES", 2)
        patch.setattr(sync, "PARTNERS", 8)
        yield


@cache
def found(density, seed, missing=0.0, off_s=0.030):
    """The scores of true flashes with sounds that are off, and of which some are missing; infinitely off, with another clip's."""
    world, chance = worlds.get("pulse")(density=density), np.random.default_rng((seed, int(10 * density)))
    index = torch.arange(seed * CLIPS, (seed + 1) * CLIPS)
    seen = world.truth("test", index)
    true = seen if np.isfinite(off_s) else world.truth("test", index + 10_000)
    off = torch.from_numpy((off_s if np.isfinite(off_s) else 0.0) * chance.standard_normal(true.seconds.shape))
    kept = torch.from_numpy(chance.random(true.seconds.shape) >= missing)
    heard = Events(true.seconds + off, true.kind, true.amplitude, true.real & kept)
    metric = metrics.get("sync")(world)
    metric.update_samples(Batch({}, world.tokenizer(["red disc"]), index), {"video": seen, "audio": heard})
    computed = metric.compute()
    return {name: computed[name].value for name in SCORES}


def slope(name, worse):
    """How the lead of what is 30 ms off over something worse changes per event per second; positive: the lead grows."""
    sign = 1 if name == "sync_auc" else -1
    steps = [
        (density, *({seed: sign * part(density, seed)[name] for seed in SEEDS} for part in (found, worse)))
        for density in DENSITIES
    ]
    return paired_slopes("good", "worse", steps).interval


def same_defect(density, seed):
    return found(density, seed, missing=0.15)


def test_a_defect_that_does_not_grow_grows_in_sync_auc_and_not_in_sync_error():
    in_auc, in_error = (slope(name, same_defect) for name in SCORES)
    assert in_auc.low > 0.02  # this is the score, not the model
    assert in_error.low < 0 < in_error.high
    assert in_error.high < 2.0
    for density in DENSITIES:  # and it is seen there
        lead = np.mean([same_defect(density, seed)["sync_error_ms"] - found(density, seed)["sync_error_ms"] for seed in SEEDS])
        assert lead > 2.0


def test_a_defect_that_grows_is_seen_in_both():
    def growing(density, seed):
        return found(density, seed, off_s=0.030 + 0.015 * density)

    assert slope("sync_auc", growing).low > 0
    assert slope("sync_error_ms", growing).low > 5.0


def test_without_any_synchrony_the_error_falls_with_density():
    """What sync_error_ms has of its own: who is near chance seems to gain on the others."""

    def unrelated(density, seed):
        return found(density, seed, off_s=float("inf"))

    found_slope = slope("sync_error_ms", unrelated)
    assert found_slope.mean < -10.0
    assert found_slope.high < 0


def test_the_study_is_judged_by_what_has_no_such_slope():
    study = read_study(PACKAGE.parent / "sweeps" / "event_density.yaml")
    assert study.metric == "sync_error_ms"
    assert study.tuning.metric == "sync_auc"
    assert any(part.along == "world.density" for part in study.contrasts)
    again = read_study(PACKAGE.parent / "sweeps" / "event_density.yaml", overrides=["metric=sync_auc"])
    assert again.points == study.points
    assert again.tuning == study.tuning  # so that its runs are the same ones
    assert load(again.overrides(again.points[0], 0)).resolved == load(study.overrides(study.points[0], 0)).resolved
