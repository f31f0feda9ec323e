"""Runs and studies made up in a moment: real configs, invented scores. Nothing is trained."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from nava_lab.config import load
from nava_lab.study.identity import run_name
from nava_lab.study.results import CONFIRMATION, TUNING, Choice, PlannedRun, StudyResult, as_json
from nava_lab.study.spec import Origin, study_of


@lru_cache(None)
def resolved(overrides):
    """One composition per set of overrides; a seed goes in afterwards."""
    return load(list(overrides)).resolved


def score(value, spread=0.03, n=64):
    return {"value": value, "low": value - spread, "high": value + spread, "n": n}


def make_run(root, seed, value, overrides=(), parameters=1_000_000, flops=200_000_000, truth=1.0, folder=None, **changes):
    """A finished run's folder; ``changes`` go over its record."""
    config = {**resolved(tuple(overrides)), "seed": seed}
    name = run_name(config, "pulse-1")
    folder = root / (folder or name)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    steps, batch = config["training"]["steps"], config["training"]["batch_size"]
    lags = rng.normal(0, 60 * (1.05 - value), 200).round(2).tolist()
    record = {
        "schema": 1,
        "name": name,
        "variant": config["variant"]["name"],
        "world": config["world"]["name"],
        "seed": seed,
        "identity": {
            "config": name[-10:],
            "data": "pulse-1",
            "code": "c0de",
            "variant_code": "beef",
            "revision": "abc",
            "torch": "2",
        },
        "budget": {"kind": "parameters", "requested": 1_000_000, "realised": parameters},
        "size": {"width": 32, "hidden": 64},
        "parameters": {"total": parameters, "active_per_token": parameters / 2, "groups": {"video": parameters}},
        "flops_per_sample": flops,
        "steps": steps,
        "samples_seen": steps * batch,
        "wall_time_s": 60.0,
        "evaluation": {"clips": 64, "evaluations": 49, "solver": "heun", "guidance": "off", "split": "test"},
        "headline": "sync_auc",
        "higher_is_better": True,
        "shown": ["sync_auc", "f1@80ms", "sync_error_ms", "event_rate_video", "loss"],
        "directions": {"sync_auc": True, "f1@80ms": True, "sync_error_ms": False, "loss": False},
        "exact": ["sync_auc"],
        "truth": {"sync_auc": score(truth, 0.0)},
        "scores": {
            "sync_auc": score(value),
            "f1@80ms": score(0.5 + value / 2),
            "sync_error_ms": score(60 * (1.05 - value), 2),
            "event_rate_video": score(0.9),
            "loss": score(0.1 - value / 50, 0.001),
            "a_newcomers_score": score(0.5),
        },
    } | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    (folder / "per_clip.json").write_text(json.dumps({"sync.index": [0], "sync.lag_ms": lags, "sync.lag_clip": [0] * 200}))
    curve = [0.1 + 0.3 * np.exp(-place / 3) + 0.002 * rng.normal() - value / 50 for place in range(10)]
    lines = [{"step": steps * (place + 1) // 10, "validation/loss": loss} for place, loss in enumerate(curve)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def make_runs(root, means, seeds=8, noise=0.02, overrides=(), **changes):
    """Variants by name with their mean scores; a seed shifts all of them alike."""
    root.mkdir(exist_ok=True)
    made = []
    for seed in range(seeds):
        rng = np.random.default_rng(100 + seed)
        common = 0.03 * rng.normal()
        for variant, mean in means.items():
            value = mean + common + noise * rng.normal()
            flops = {"dual_tower": 133_000_000, "unified": 269_000_000}.get(variant, 203_000_000)
            made.append(make_run(root, seed, value, (f"variant={variant}", *overrides), flops=flops, **changes))
    return made


RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
FIELDS = {
    "fixed": {"world": "pulse", "variant": "align_then_fuse", "variant.depth": 4},
    "vary": {"variant.align_fraction": list(RATIOS)},
    "seeds": 8,
    "metric": "sync_auc",
    "budgets": {"parameters": {"budget.parameters": 1_000_000}, "flops": {"budget.flops": 2e8, "budget.parameters": None}},
    "tuning": {"space": {"training.lr": {"low": 1e-3, "high": 1e-2, "log": True}}, "trials": 4},
    "contrasts": {"against": {"variant.align_fraction": 0.0}},
    "margins": {"sync_auc": 0.02},
}


def make_study(
    root: Path,
    fields=FIELDS,
    value=None,
    failed=(),
    trials=None,
    question="How much of the depth should align?",
    missing=(),
    at_bound=None,
    origin=None,
):
    """A study's folder with its runs in ``root``; ``value(point, seed)`` is the score, ``missing`` and ``at_bound`` by point."""
    study = study_of(fields, "depth_ratio", "cpu", question, "made up", origin=origin or Origin())
    value = value or (
        lambda point, seed: (
            0.6 + 0.3 * float(point.levels["variant.align_fraction"]) * (1.2 - float(point.levels["variant.align_fraction"]))
        )
    )
    runs, choices = [], {}
    for point in study.points:
        rng = np.random.default_rng(len(point.label) * 1000 + len(runs))
        tuned = {}
        if study.tuning:
            space = study.tuning.space[0]
            for trial in range((trials or {}).get(point.key, study.tuning.trials)):
                lr = float(f"{space.low * (space.high / space.low) ** rng.uniform(0.2, 0.8):.3g}")
                found = value(point, 0) - 0.1 * abs(np.log(lr / 3e-3)) + 0.005 * rng.normal()
                runs.append(
                    PlannedRun(
                        point.key, point.budget, TUNING, study.tuning.seeds[0], "finished", None, {space.key: lr}, trial, found
                    )
                )
                tuned = {space.key: lr}
            choices[point.key] = Choice(
                point.key,
                tuned,
                0.7,
                (trials or {}).get(point.key, study.tuning.trials),
                0,
                0,
                (at_bound or {}).get(point.key, {}),
            )
        for seed in study.seeds:
            if point.key in missing or (point.key, seed) in missing:
                runs.append(PlannedRun(point.key, point.budget, CONFIRMATION, seed))
                continue
            if (point.key, seed) in failed:
                runs.append(
                    PlannedRun(point.key, point.budget, CONFIRMATION, seed, "failed", None, tuned, error="the loss is nan")
                )
                continue
            overrides = tuple(part for part in study.overrides(point, seed, tuned) if not part.startswith(("seed=", "budget.")))
            kind = point.budget or "parameters"
            budget = {
                "kind": kind,
                "requested": 1e6 if kind == "parameters" else 2e8,
                "realised": 1e6 if kind == "parameters" else 2e8,
            }
            number = float(value(point, seed)) + 0.02 * np.random.default_rng(seed).normal() + 0.01 * rng.normal()
            folder = make_run(root, seed, number, overrides, folder=f"run-{len(runs)}", budget=budget)
            runs.append(PlannedRun(point.key, point.budget, CONFIRMATION, seed, "finished", folder, tuned))
    folder = root / "studies" / "depth_ratio-cpu-0123456789"
    folder.mkdir(parents=True)
    result = StudyResult(study, folder, True, tuple(runs), choices)
    (folder / "study.json").write_text(json.dumps(as_json(result)))
    return folder
