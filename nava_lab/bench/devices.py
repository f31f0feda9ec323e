"""``nava bench devices``: what further processes bring, each with as many clips as one alone has.

A training step of the config, from batch to updated weights, with the batch growing with the processes (weak scaling). With
p processes samples per second should be p times those of one; the exponent of samples per second in p, fitted over all
counts, should be 1. On a CPU a process is one thread, so that one process does not already use the cores of the others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
import torch.multiprocessing as processes
from lightning.pytorch.utilities import rank_zero_only

from nava_lab.config import Config, load
from nava_lab.rng import stable_seed
from nava_lab.study.build import network, parts
from nava_lab.study.fit import devices_of, trainer_of
from nava_lab.training.averaging import averaging
from nava_lab.training.data import WorldData
from nava_lab.training.machine import prepare_layers
from nava_lab.training.module import GenerativeModule
from nava_lab.training.quiet import quieten

STRATEGIES = ("ddp", "fsdp")
WARM_UP = 3  # steps that are not counted


class Steps(pl.Callback):
    """Seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.ends[WARM_UP - 1 :], self.ends[WARM_UP:], strict=False)]


def configured(settings: Sequence[str], strategy: str, count: int, steps: int) -> Config:
    """The config on so many processes, each with the clips that it gives to one."""
    each = load(settings).training.batch_size
    more = ["training.validations=0", "training.checkpoints=0", "training.checkpoint_minutes=0", "logger=none"]
    more += ["output.progress=false"]
    more += [f"training.steps={steps + WARM_UP}", f"training.batch_size={each * count}", f"training.validation_clips={count}"]
    return load([*settings, *more, f"trainer.strategy={strategy}", f"trainer.devices={count}"])


def measure(settings: Sequence[str], strategy: str, count: int, steps: int) -> dict[str, Any]:
    """One row: the median step of so many processes."""
    config = configured(settings, strategy, count, steps)
    with TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        out = Path(folder) / "seconds.json"
        processes.spawn(_work, (list(settings), strategy, count, steps, port, str(out)), nprocs=count)  # type: ignore[no-untyped-call]
        seconds = statistics.median(json.loads(out.read_text()))
    rate = config.training.batch_size / seconds
    return {"strategy": strategy, "processes": count, "step_ms": 1e3 * seconds, "samples_per_s": rate}


def _work(rank: int, settings: list[str], strategy: str, count: int, steps: int, port: int, out: str) -> None:
    """One process, started as torchrun would start it."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in own.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="bench", OMP_NUM_THREADS="1")  # Lightning else sets more
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    quieten()
    torch.set_num_threads(1)
    config = configured(settings, strategy, count, steps)
    built, clock = parts(config), Steps()
    torch.manual_seed(stable_seed("init", config.seed))
    model, machine = network(config, built.solution), config.trainer
    prepare_layers(model, machine.compile, machine.checkpoint_activations)
    sharded = devices_of(config).sharded
    module = GenerativeModule(model, built.objective, built.drawing, config.training, config.seed, machine.accumulate, sharded)
    trainer = trainer_of(config, Path(out).parent, [*averaging(config.training), clock])
    trainer.fit(module, WorldData(config.world, config.training, config.seed))
    if not rank:
        Path(out).write_text(json.dumps(clock.seconds()))


def exponent(rows: Sequence[dict[str, Any]]) -> float:
    """The slope of samples per second over processes, both as logarithms; not a number for one count."""
    x, y = ([math.log(row[key]) for row in rows] for key in ("processes", "samples_per_s"))
    middle, spread = statistics.fmean(x), sum((value - statistics.fmean(x)) ** 2 for value in x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / spread if spread else math.nan


def main(arguments: Sequence[str]) -> int:
    """Print a row per strategy and count, and each strategy's exponent."""
    reader = argparse.ArgumentParser(prog="nava bench devices", allow_abbrev=False)
    reader.add_argument("settings", nargs="*")
    reader.add_argument("--processes", default=[1, 2], type=lambda text: [int(part) for part in text.split(",")])
    reader.add_argument("--strategies", default=list(STRATEGIES), type=lambda text: text.split(","))
    reader.add_argument("--steps", default=20, type=int)
    reader.add_argument("--json", action="store_true")
    options = reader.parse_intermixed_args(list(arguments))
    settings, strategies, counts, steps = options.settings, options.strategies, options.processes, options.steps
    if unknown := set(strategies) - set(STRATEGIES):
        raise ValueError(f"--strategies {','.join(sorted(unknown))}: known are {', '.join(STRATEGIES)}")
    if min(counts) < 1 or steps < 1:
        raise ValueError("--processes and --steps must be at least 1")
    rows = [measure(settings, strategy, count, steps) for strategy in strategies for count in counts]
    fitted = {strategy: exponent([row for row in rows if row["strategy"] == strategy]) for strategy in strategies}
    if options.json:
        print(json.dumps({"steps": steps, "rows": rows, "exponents": fitted}, indent=2))
        return 0
    print("strategy   processes   ms per step   samples per s   per process, of one's")
    for row in rows:
        first = next(one for one in rows if one["strategy"] == row["strategy"])
        share = row["samples_per_s"] / row["processes"] / (first["samples_per_s"] / first["processes"])
        rate = row["samples_per_s"]
        print(f"{row['strategy']:8}   {row['processes']:9}   {row['step_ms']:11.2f}   {rate:13.1f}   {share:.2f}")
    told = ", ".join(f"{strategy} {slope:.2f}" for strategy, slope in fitted.items())
    print(f"samples per second go with processes to the power of {told} (1 is linear)")
    return 0
