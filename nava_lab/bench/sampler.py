"""``nava bench sampler``: what a solver and guidance cost over the bare model evaluations that they ask for.

A ratio: seconds of a whole sampling over the seconds spent inside the network during it. Both belong to the same evaluations
on the same inputs, so the ratio is no matter of how fast the machine is at the moment. Drawing noise, once at the start and in
every step of a stochastic solver, is timed apart: ``with_noise`` is of everything and is what the target is about, ``ratio`` of
arithmetic alone.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from nava_lab.config import Config, load
from nava_lab.flow import draws as drawn
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.guidance.base import Term
from nava_lab.flow.noise import normal_like
from nava_lab.flow.sampling import Sampler
from nava_lab.flow.solvers import base
from nava_lab.registry import guidance, solvers
from nava_lab.rng import generators, stable_seed
from nava_lab.study.build import Parts, interface, network, parts
from nava_lab.study.run import device_of

TARGET = 1.03


class Clock:
    """Seconds spent in a function, while it is watched."""

    def __init__(self, inner: Callable[..., Any], device: torch.device):
        self.inner, self.device, self.seconds = inner, device, 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, *arguments: Any) -> Any:
        began = self.now()
        found = self.inner(*arguments)
        self.seconds += self.now() - began
        return found


class Timed(Clock):
    """A network that keeps count of its evaluations (per sample) and of the seconds inside them."""

    rows = 0

    def __call__(self, *arguments: Any) -> Any:
        self.rows += len(arguments[2].tokens)  # (streams, levels, text, cut)
        return super().__call__(*arguments)


def measure(config: Config, batch_size: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """One row per solver; for Heun also with guidance by text, and with every part that training allows. Medians over repeats."""
    torch.manual_seed(stable_seed("init", config.seed))
    built, device = parts(config), device_of(config)
    model = network(config, built.solution).to(device).eval()
    batch = config.world.batch("test", torch.arange(batch_size, device=device))
    samplers = cases(config, built, steps)
    return [_row(name, model, batch, sampler, device, repeats) for name, sampler in samplers.items()]


def cases(config: Config, built: Parts, steps: int) -> dict[str, Sampler]:
    """A sampler per label, which says solver and guidance, whatever the config says of them."""
    plain = replace(built.protocol.sampler, steps=steps, guidance=Guidance())
    found = {name: replace(plain, solver=solvers.get(name)()) for name in solvers}
    text = Guidance((guidance.get("text")(3.0),), config.evaluation.branch_rows)
    return found | {
        "heun, text": replace(found["heun"], guidance=text),
        "heun, guided": replace(found["heun"], guidance=_guided(config, built)),
    }


def _guided(config: Config, built: Parts) -> Guidance:
    """Every term that this run's training allows, at its example, and every modifier."""
    told = interface(config).text
    encode = config.world.encode
    examples = [guidance.get(name)(**guidance.get(name).example) for name in guidance]
    chosen = []
    for part in examples:
        try:
            part.check(encode)
        except ValueError:  # its example speaks of what this world has no words for
            continue
        if not part.untrained(built.drawing, told):
            chosen.append(part)
    terms = [part for part in chosen if isinstance(part, Term)]
    return Guidance(tuple(chosen) if terms else (), config.evaluation.branch_rows, encode)


def _row(name: str, model: Any, batch: Any, sampler: Sampler, device: torch.device, repeats: int) -> dict[str, Any]:
    ratios, whole_ratios, own, evaluations = [], [], [], 0
    for repeat in range(repeats + 1):
        timed, noise = Timed(model, device), Clock(normal_like, device)
        draws = generators("bench", 0, range(len(batch)))
        with patch.object(base, "normal_like", noise), patch.object(drawn, "normal_like", noise):
            began = timed.now()
            sampler(timed, batch.streams, batch.text, draws)
            whole = timed.now() - began
        if repeat:  # the first warms up
            ratios.append((whole - noise.seconds) / timed.seconds)
            whole_ratios.append(whole / timed.seconds)
            own.append((whole - noise.seconds - timed.seconds) * 1e3 / sampler.steps)
        evaluations = timed.rows // len(batch)
    return {
        "solver": name,
        "evaluations": evaluations,
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "with_noise": statistics.median(whole_ratios),
        "own_ms_per_step": statistics.median(own),
    }


def main(arguments: Sequence[str]) -> int:
    """Print the table, or with ``--json`` the rows; 1 where a ratio, its noise included, exceeds the target."""
    options = {"--batch-size": 16, "--steps": 20, "--repeats": 3}
    rest, queue = [], [part for part in arguments if part != "--json"]
    while queue:
        part = queue.pop(0)
        key, _, value = part.partition("=")
        if key in options:
            value = value or (queue.pop(0) if queue else "")
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"{key}={value} must be a whole number of at least 1")
            options[key] = int(value)
        elif "=" in part and not part.startswith("--"):
            rest.append(part)
        else:
            raise ValueError(f"there is no option {part}; known: --json, {', '.join(options)} and KEY=VALUE")
    config = load(rest)
    config.world.prepare()
    rows = measure(config, options["--batch-size"], options["--steps"], options["--repeats"])
    if "--json" in arguments:
        about = {"variant": config.variant.name, "threads": torch.get_num_threads(), "device": str(device_of(config))}
        print(
            json.dumps({"target": TARGET, **about, **{key[2:]: value for key, value in options.items()}, "rows": rows}, indent=2)
        )
    else:
        print(f"{'':14} evaluations   ratio [least, most]     with noise   own ms a step   (target: with noise at most {TARGET})")
        for row in rows:
            print(
                f"{row['solver']:14} {row['evaluations']:11}   {row['ratio']:.4f} [{row['least']:.4f}, {row['most']:.4f}]"
                f"   {row['with_noise']:10.4f}   {row['own_ms_per_step']:10.2f}"
            )
        print(f"above the target: {', '.join(missed(rows)) or 'none'}")
    return int(bool(missed(rows)))


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The cases that cost more than the target, noise included."""
    return [row["solver"] for row in rows if row["with_noise"] > TARGET]
