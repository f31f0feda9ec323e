"""``nava bench seeds``: what training several seeds together brings over one after the other.

Training steps of the config, from batch to updated weights, through Lightning as ``nava train`` takes them: of one seed alone,
and of all seeds in one training, so many of them computed at once. Throughput is samples per second of all seeds, and the ratio
is to the single run's. Cases alternate in rounds, so that a machine that is busy for a while slows all of them; each figure is
the median.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nava_lab.bench.devices import WARM_UP, Steps
from nava_lab.config import Config, load
from nava_lab.rng import stable_seed
from nava_lab.study.build import network, parts
from nava_lab.study.fit import trainer_of
from nava_lab.study.run import device_of
from nava_lab.study.seeds import at_once, check_stackable, stacked_module
from nava_lab.training.averaging import averaging
from nava_lab.training.data import WorldData
from nava_lab.training.machine import prepare_layers
from nava_lab.training.module import GenerativeModule
from nava_lab.training.stacked import StackedData

GPU_TARGET, CPU_TARGET = 5.0, 1.0  # times the throughput of one after the other


def seconds(config: Config, seeds: int, together: int) -> list[float]:
    """Of every step of a training: of one seed alone where ``together`` is 0."""
    built, clock, machine = parts(config), Steps(), config.trainer
    numbers = range(seeds)
    if together:
        module: GenerativeModule = stacked_module(config, numbers, built, together)
        data: WorldData = StackedData(config.world, config.training, numbers)
    else:
        torch.manual_seed(stable_seed("init", 0))
        model = network(config, built.solution)
        prepare_layers(model, machine.compile, machine.checkpoint_activations)
        module = GenerativeModule(model, built.objective, built.drawing, config.training, 0, machine.accumulate)
        data = WorldData(config.world, config.training, 0)
    with TemporaryDirectory() as folder:
        trainer_of(config, Path(folder), [*averaging(config.training), clock]).fit(module, data)
    return clock.seconds()


def measure(config: Config, counts: Sequence[int], together: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A row for the single run, and one per number of seeds and way of computing them, ``nava train``'s own always among them."""
    cases = [(1, 0)]
    for seeds in counts:
        cases += [(seeds, many) for many in dict.fromkeys(min(many, seeds) for many in (*together, at_once(config, seeds)))]
    taken: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            taken[case] += seconds(config, *case)
    steps = {case: statistics.median(found) for case, found in taken.items()}
    alone = steps[1, 0]
    return [
        {
            "seeds": seeds,
            "at_once": many,
            "step_ms": 1e3 * step,
            "seed_steps_per_s": seeds / step,
            "samples_per_s": seeds * config.training.batch_size / step,
            "ratio": seeds * alone / step,
        }
        for (seeds, many), step in steps.items()
    ]


def exponent(rows: Sequence[dict[str, Any]]) -> float:
    """The slope of a step's time over the number of seeds, both as logarithms; not a number for one count."""
    x, y = ([math.log(row[key]) for row in rows] for key in ("seeds", "step_ms"))
    middle = statistics.fmean(x) if x else 0.0
    spread = sum((value - middle) ** 2 for value in x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / spread if spread else math.nan


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str]) -> int:
    """Print a row per case; 1 where what ``nava train`` would choose misses this device's target."""
    reader = argparse.ArgumentParser(prog="nava bench seeds", allow_abbrev=False)
    reader.add_argument("settings", nargs="*")
    reader.add_argument("--seeds", default=[8], type=_numbers)
    reader.add_argument("--together", default=None, type=_numbers)
    reader.add_argument("--steps", default=6, type=int)
    reader.add_argument("--rounds", default=3, type=int)
    reader.add_argument("--json", action="store_true")
    options = reader.parse_intermixed_args(list(arguments))
    counts, most = options.seeds, max(options.seeds)
    if min(counts) < 2 or min(options.together or [1]) < 1 or min(options.steps, options.rounds) < 1:
        raise ValueError("--seeds must be at least 2, --together, --steps and --rounds at least 1")
    more = ["training.validations=0", "training.checkpoints=0", "training.checkpoint_minutes=0", "logger=none"]
    more += ["output.progress=false"]
    config = load([*options.settings, *more, f"training.steps={options.steps + WARM_UP}"])
    check_stackable(config)
    config.world.prepare()
    chosen = at_once(config, most)
    rows = measure(config, counts, options.together or sorted({1, 2, most, chosen}), options.rounds)
    on_gpu = device_of(config).type == "cuda"
    target = GPU_TARGET if on_gpu else CPU_TARGET
    ours = [row for row in rows if row["at_once"] == at_once(config, row["seeds"]) and row["seeds"] > 1]
    missed = [f"{row['seeds']} seeds {row['ratio']:.3f} (at least {target:g})" for row in ours if row["ratio"] < target]
    device = torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    about = {
        "variant": config.variant.name,
        "world": config.world.name,
        "batch_size": config.training.batch_size,
        "device": device,
    }
    if options.json:
        print(json.dumps({**about, "target": target, "rows": rows, "exponent": exponent(ours), "missed": missed}, indent=2))
        return int(bool(missed))
    print("seeds   at once   ms per step   samples per s   of one after another")
    for row in rows:
        many = f"{row['at_once']:7}" if row["at_once"] else "  alone"
        print(f"{row['seeds']:5}   {many}   {row['step_ms']:11.1f}   {row['samples_per_s']:13.1f}   {row['ratio']:.2f}")
    print(f"nava train computes {chosen} at once here; target {target:g}; {', '.join(f'{k} {v}' for k, v in about.items())}")
    if len(counts) > 1:
        print(f"a step's time goes with seeds to the power of {exponent(ours):.2f} (1 is linear)")
    print(f"missed: {'; '.join(missed) or 'nothing'}")
    return int(bool(missed))
