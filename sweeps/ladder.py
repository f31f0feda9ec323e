"""Which level of each world does each family master in 10 CPU minutes?

    . .venv/bin/activate
    python sweeps/ladder.py                                   # every family, world and level: hours; again: continues
    python sweeps/ladder.py --worlds pulse,bind --levels easy,hard --minutes 2
    python sweeps/ladder.py --table                           # the table of what is there

Held fixed: parameters, seed, batch size, scoring. Varied: family, world, difficulty. Each run trains for as many steps as fit
into its CPU minutes, counted over all cores in a short trial beforehand; the count is kept in ladder.json, so that a run that was
killed is continued. A level is mastered where the headline's interval over clips lies above half of what true clips score.
Writes ladder.json and ladder.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nava_lab.cli import in_one_line
from nava_lab.config import load
from nava_lab.registry import worlds
from nava_lab.rng import generators
from nava_lab.study import record
from nava_lab.study.build import network, parts
from nava_lab.study.run import device_of, run
from nava_lab.training.module import GenerativeModule
from nava_lab.training.quiet import quieten
from nava_lab.worlds.base import DIFFICULTIES

FAMILIES = ("dual_tower", "unified", "align_then_fuse")
TRIAL = 6  # steps of the trial, after two to warm up
MASTERED = 0.5


def climbed() -> list[str]:
    """Worlds with levels on which a model can do better than chance."""
    return [name for name in worlds if worlds.get(name).LEVELS and worlds.get(name).paired]


def cpu_seconds_per_step(settings: Sequence[str]) -> float:
    """CPU time of a training step, summed over threads: what a busy machine does not change much."""
    config = load(settings)
    config.world.prepare()
    built, device, size = parts(config), device_of(config), config.training.batch_size
    module = GenerativeModule(network(config, built.solution), built.objective, built.drawing, config.training, config.seed)
    model, optimizer = module.network.to(device), module.configure_optimizers()["optimizer"]
    began = 0.0
    for step in range(TRIAL + 2):
        if step == 2:
            began = time.process_time()
        batch = config.world.batch("train", torch.arange(step * size, (step + 1) * size, device=device))
        draws = built.drawing(batch.streams, generators("ladder", 0, batch.index.tolist()))
        losses = built.objective.per_sample(model, batch, draws)
        built.objective.total(losses, built.objective.counts(batch, draws)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - began) / TRIAL


def rounded(steps: float) -> int:
    """Two digits, so that the count says no more than the trial knows."""
    scale = 10 ** max(0, len(str(int(steps))) - 2)
    return max(1, int(steps / scale) * scale)


def main(words: Sequence[str] | None = None) -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    reader.add_argument("--variants", default=",".join(FAMILIES))
    reader.add_argument("--worlds", default=",".join(climbed()))
    reader.add_argument("--levels", default=",".join(DIFFICULTIES))
    reader.add_argument("--minutes", type=float, default=10.0, help="CPU minutes of training per run")
    reader.add_argument("--out", type=Path, default=Path("runs/ladder"))
    reader.add_argument("--table", action="store_true", help="train nothing")
    reader.add_argument("settings", nargs="*", help="settings of every run: budget.parameters=500_000, say")
    arguments = reader.parse_args(words)
    quieten()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "ladder.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for world in [] if arguments.table else arguments.worlds.split(","):
        for level in arguments.levels.split(","):
            for variant in arguments.variants.split(","):
                climb(path, known, (world, level, variant), arguments.minutes, arguments.settings)
    text = tables(list(known.values()))
    (arguments.out / "ladder.md").write_text(text, encoding="utf-8")
    print(text)


def climb(path: Path, known: dict[str, Any], rung: tuple[str, str, str], minutes: float, more: Sequence[str]) -> None:
    """Train and score one rung, or find that it is done."""
    world, level, variant = rung
    settings = [f"variant={variant}", f"world={world}", f"difficulty={level}", *more]
    key = " ".join([*settings, f"{minutes:g} minutes"])
    row = known.setdefault(key, {"world": world, "level": level, "variant": variant, "minutes": minutes})
    if "steps" not in row:
        row["steps"] = rounded(60 * minutes / cpu_seconds_per_step(settings))
        record.write_json(path, known)
    folder = run(load([*settings, f"training.steps={row['steps']}"]), lambda message: print(message, file=sys.stderr))
    made = record.read(folder)
    headline = made["headline"]
    row |= {"headline": headline, "found": made["scores"][headline], "truth": made["truth"].get(headline, {}).get("value", 1.0)}
    record.write_json(path, known)


def mastered(row: Mapping[str, Any]) -> bool:
    return row["found"]["low"] is not None and row["found"]["low"] > MASTERED * row["truth"]


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The hardest level mastered, then the scores behind it, as Markdown."""
    done = [row for row in rows if "found" in row]
    named = list(dict.fromkeys(row["world"] for row in done))
    families = list(dict.fromkeys(row["variant"] for row in done))
    first = ["| world | score | " + " | ".join(families) + " |", "|---|---|" + "---|" * len(families)]
    second = ["| world | level | " + " | ".join(families) + " |", "|---|---|" + "---|" * len(families)]
    for world in named:
        mine = [row for row in done if row["world"] == world]
        highest = []
        for family in families:
            held = [row["level"] for row in mine if row["variant"] == family and mastered(row)]
            highest.append(next((level for level in reversed(DIFFICULTIES) if level in held), "none"))
        first.append(f"| `{world}` | {mine[0]['headline']} | " + " | ".join(highest) + " |")
        for level in DIFFICULTIES:
            cells = {row["variant"]: row["found"] for row in mine if row["level"] == level}
            if cells:
                shown = (cells.get(family) for family in families)
                second.append(f"| `{world}` | {level} | " + " | ".join(interval(cell) for cell in shown) + " |")
    return "\n".join([*first, "", *second]) + "\n"


def interval(score: Mapping[str, float] | None) -> str:
    return "" if score is None else f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"


if __name__ == "__main__":
    in_one_line(main)
