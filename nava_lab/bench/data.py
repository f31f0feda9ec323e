"""``nava bench data``: how much faster clips are rendered than the model consumes them in training.

Both are seconds per clip on the device that the config trains on, at the training's batch size: ``world.batch``, and a
training step (draws, loss, gradient, AdamW). They alternate, so that a machine that is busy for a while slows both; each figure
is the median.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nava_lab.config import Config, load
from nava_lab.registry import worlds
from nava_lab.rng import generators, stable_seed
from nava_lab.study.build import network, parts
from nava_lab.study.run import device_of
from nava_lab.training.module import GenerativeModule

TARGET = 20.0


def measure(config: Config, repeats: int) -> dict[str, Any]:
    """One row: seconds per clip of rendering and of training, and their ratio."""
    torch.manual_seed(stable_seed("init", config.seed))
    built, device, size = parts(config), device_of(config), config.training.batch_size
    module = GenerativeModule(network(config, built.solution), built.objective, built.drawing, config.training, config.seed)
    model = module.network.to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    rendering, training = [], []
    for repeat in range(repeats + 1):
        index = torch.arange(repeat * size, (repeat + 1) * size, device=device)
        batch, seconds = _timed(lambda index=index: config.world.batch("train", index), device)  # type: ignore[misc]

        def step(batch: Any = batch) -> None:
            draws = built.drawing(batch.streams, generators("bench", 0, batch.index.tolist()))
            losses = built.objective.per_sample(model, batch, draws)
            built.objective.total(losses, built.objective.counts(batch, draws)).backward()
            optimizer.step()
            optimizer.zero_grad()

        _, step_seconds = _timed(step, device)
        if repeat:  # the first warms up
            rendering.append(seconds / size)
            training.append(step_seconds / size)
    render, train = statistics.median(rendering), statistics.median(training)
    return {"world": config.world.name, "render_ms": 1e3 * render, "train_ms": 1e3 * train, "ratio": train / render}


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = now()
    made = work()
    return made, now() - began


def main(arguments: Sequence[str]) -> int:
    """Print a row for the config's world, or for all that need no files; 1 where one is rendered too slowly."""
    rest = [part for part in arguments if part not in ("--json", "--all")]
    repeats = 5
    for part in [part for part in rest if part.startswith("--")]:
        key, _, value = part.partition("=")
        if key != "--repeats" or not value.isdigit() or int(value) < 1:
            raise ValueError(f"there is no option {part}; known: --json, --all, --repeats=N and KEY=VALUE")
        repeats = int(value)
        rest.remove(part)
    if "--all" in arguments:
        if any(part.startswith("world=") for part in rest):
            raise ValueError("--all measures every world: leave world=... out")
        configs = [load([*rest, f"world={name}"]) for name in worlds if not worlds.get(name).SHORTCUTS]
    else:
        configs = [load(rest)]
    rows = []
    for config in configs:
        config.world.prepare()
        rows.append(measure(config, repeats))
    about = {
        "variant": configs[0].variant.name,
        "batch_size": configs[0].training.batch_size,
        "threads": torch.get_num_threads(),
        "device": str(device_of(configs[0])),
    }
    if "--json" in arguments:
        print(json.dumps({"target": TARGET, **about, "repeats": repeats, "rows": rows}, indent=2))
    else:
        print(f"{'':12} rendering   training step   ratio   (ms per clip; target: at least {TARGET:g} times faster)")
        for row in rows:
            print(f"{row['world']:12} {row['render_ms']:9.3f}   {row['train_ms']:13.2f}   {row['ratio']:5.0f}")
        print(f"below the target: {', '.join(missed(rows)) or 'none'}   ({', '.join(f'{k} {v}' for k, v in about.items())})")
    return int(bool(missed(rows)))


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Worlds that are rendered too slowly."""
    return [row["world"] for row in rows if row["ratio"] < TARGET]
