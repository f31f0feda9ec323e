"""Which level of each world does each family master in 10 CPU minutes?

    . .venv/bin/activate
    python sweeps/ladder.py --workers 2                 # 21 to 63 runs: 2 to 6 hours on two cores; again: continues
    python sweeps/ladder.py --workers 2 --minutes 2     # a fifth of the training, and its table says so
    python sweeps/ladder.py --workers 2 --order down    # from the hardest level: sooner done where most is mastered
    python sweeps/ladder.py --minutes 2 --table         # the table of what is there
    python sweeps/ladder.py --worlds pulse,bind --variants unified budget.parameters=500_000

Held fixed: parameters, seed, batch size, scoring; on `speakers` every turn sees its own timbre alone, without which
cross-attention cannot tell whose voice is whose. Varied: family, world, difficulty. A family climbs a world from its easiest
level and stops at the first that it does not master (``--order down``: from the hardest, and stops at the first that it masters;
``all`` tries every level); all worlds' first levels come first. Each run trains for as many steps as fit into its CPU minutes,
counted over all cores in a short trial beforehand; scoring comes on top. A level is mastered where the headline's interval over
clips lies above half of what true clips score, and so does that of what else the world's levels make harder (its ``mastery``:
`entangle`'s levels add classes, so what the text says must be there as well as in time). What is known is kept rung by rung, so a
killed ladder goes on where it was, and several processes may climb in one folder. Writes ladder.json and ladder.md.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from nava_lab.cli import in_one_line
from nava_lab.config import load
from nava_lab.registry import nearest, worlds
from nava_lab.rng import generators
from nava_lab.study import record
from nava_lab.study.build import network, parts
from nava_lab.study.conduct import threads_for
from nava_lab.study.identity import code_fingerprint, variant_fingerprint
from nava_lab.study.run import device_of, run
from nava_lab.training.module import GenerativeModule
from nava_lab.training.quiet import quieten
from nava_lab.worlds.base import DIFFICULTIES

FAMILIES = ("dual_tower", "unified", "align_then_fuse")
TRIAL = 6  # steps of the trial, after two to warm up
MASTERED = 0.5
IDLE_S = 2.0
ORDERS = ("up", "down", "all")


def climbed() -> list[str]:
    """Worlds with levels on which a model can do better than chance."""
    return [name for name in worlds if worlds.get(name).LEVELS and worlds.get(name).paired]


@dataclass(frozen=True)
class Rung:
    """One run: a family on a level of a world.

    Attributes:
        world: its name.
        level: easy, medium or hard.
        variant: the family.
        minutes: CPU minutes of training.
        more: further settings.
        folder: where what is known of it is kept.
    """

    world: str
    level: str
    variant: str
    minutes: float
    more: tuple[str, ...]
    folder: Path

    @property
    def settings(self) -> list[str]:
        return [
            f"variant={self.variant}",
            f"world={self.world}",
            f"difficulty={self.level}",
            *worlds.get(self.world).climbs_with,
            *self.more,
        ]

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(json.dumps([self.settings, self.minutes]).encode()).hexdigest()[:8]
        return self.folder / "rungs" / f"{self.world}-{self.level}-{self.variant}-{digest}.json"

    def known(self) -> dict[str, Any]:
        """What is known, by this very code."""
        made_by = {"code": code_fingerprint(), "variant_code": variant_fingerprint(self.variant), "torch": torch.__version__}
        fresh = {"world": self.world, "level": self.level, "variant": self.variant, "minutes": self.minutes, "made_by": made_by}
        if not self.path.exists():
            return fresh
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found if found["made_by"] == made_by else fresh

    def climb(self) -> dict[str, Any]:
        """Train and score it, or go on with that; the steps are counted once, so that they are the same again."""
        row = self.known()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if "steps" not in row:
            row["steps"] = rounded(60 * self.minutes / cpu_seconds_per_step(self.settings))
            record.write_json(self.path, row)
        began = time.monotonic()
        folder = run(load([*self.settings, f"training.steps={row['steps']}"]), tell)
        made = record.read(folder)
        asked = (made["headline"], *worlds.get(self.world).mastery)
        true = {name: made["truth"].get(name, {}).get("value") for name in asked}
        row |= {
            "found": {name: made["scores"][name] for name in asked},
            "truth": {name: 1.0 if value is None else value for name, value in true.items()},
            "run": folder.name,
        }
        row["wall_s"] = round(time.monotonic() - began)
        record.write_json(self.path, row)
        return row


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


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


def mastered(row: Mapping[str, Any]) -> bool:
    """Whether every score that is asked lies above half of what true clips get."""
    return all(found["low"] is not None and found["low"] > MASTERED * row["truth"][name] for name, found in row["found"].items())


def open_rungs(rungs: Sequence[Rung], order: str) -> list[Rung]:
    """Those that are not done and whose turn it is, the first levels first.

    Args:
        rungs: of all.
        order: "up", where every easier level is mastered; "down", where every harder one is not; "all".
    """
    rows = {(rung.world, rung.variant, rung.level): rung.known() for rung in rungs}
    levels = DIFFICULTIES[::-1] if order == "down" else DIFFICULTIES

    def in_reach(rung: Rung) -> bool:
        earlier = [rows.get((rung.world, rung.variant, level)) for level in levels[: levels.index(rung.level)]]
        met = ("found" in row and mastered(row) == (order == "up") for row in earlier if row is not None)
        return order == "all" or all(met)

    ordered = sorted(rungs, key=lambda rung: levels.index(rung.level))
    return [rung for rung in ordered if "found" not in rows[rung.world, rung.variant, rung.level] and in_reach(rung)]


def climb_all(rungs: Sequence[Rung], order: str) -> None:
    """One process's share: any open rung that no other process is at, until there is none."""
    while rungs_left := open_rungs(rungs, order):
        for rung in rungs_left:
            rung.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(rung.path.with_suffix(".lock"), timeout=0):
                    if "found" in rung.known():
                        break  # by another process, meanwhile
                    row = rung.climb()
            except Timeout:
                continue
            done = sum("found" in other.known() for other in rungs)
            said = "mastered" if mastered(row) else "not mastered"
            place = f"[{done} of at most {len(rungs)}] {rung.world} {rung.level} {rung.variant}"
            scores = ", ".join(f"{name} {interval(found)}" for name, found in row["found"].items())
            tell(f"{place}: {scores}, {said} ({row['steps']} steps, {row['wall_s']} s)")
            break
        else:
            time.sleep(IDLE_S)


def together(workers: int, words: Sequence[str]) -> None:
    """The same command in so many processes, which share the rungs; what one leaves that dies, the others take up."""
    environment = {"OMP_NUM_THREADS": str(threads_for(workers)), **os.environ}
    command = [sys.executable, __file__, *words, "--workers=1", f"--parent={os.getpid()}"]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(workers)]
    try:
        ended = [process.wait() for process in processes]
        if any(ended):
            raise ValueError("a process has ended before all was done, and said why above; the same command goes on")
    finally:
        for process in processes:
            process.terminate()


def end_with(parent: int) -> None:
    """End this process, whatever it is at, when the one that started it is gone: it must not go on unseen."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(IDLE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def tables(rungs: Sequence[Rung]) -> str:
    """The hardest level mastered, then the scores behind it, as Markdown; what has not been tried says so."""
    rows = {(rung.world, rung.level, rung.variant): rung.known() for rung in rungs}
    rows = {key: row for key, row in rows.items() if "found" in row}
    named = list(dict.fromkeys(world for world, _, _ in rows))
    families = list(dict.fromkeys(rung.variant for rung in rungs))
    levels = [level for level in DIFFICULTIES if any(rung.level == level for rung in rungs)]
    first = ["| world | score | " + " | ".join(families) + " |", "|---|---|" + "---|" * len(families)]
    second = ["| world | level | score | " + " | ".join(families) + " |", "|---|---|---|" + "---|" * len(families)]
    for world in named:
        scores = list(next(row["found"] for (name, _, _), row in rows.items() if name == world))
        cells = (hardest([rows.get((world, level, family)) for level in levels], levels) for family in families)
        first.append(f"| `{world}` | {' and '.join(scores)} | " + " | ".join(cells) + " |")
        for level, score in itertools.product(levels, scores):
            if any((world, level, family) in rows for family in families):
                found = (rows.get((world, level, family)) for family in families)
                shown = ("" if row is None else f"{interval(row['found'][score])}, {row['steps']} steps" for row in found)
                second.append(f"| `{world}` | {level} | {score} | " + " | ".join(shown) + " |")
    minutes = rungs[0].minutes
    title = f"Hardest level mastered in {minutes:g} CPU minute{'s' * (minutes != 1)} of training, one seed:"
    beside = "The scores behind it, with 95 % intervals over clips; what is empty was not tried:"
    return "\n".join([title, "", *first, "", beside, "", *second]) + "\n"


def hardest(rows: Sequence[Mapping[str, Any] | None], levels: Sequence[str]) -> str:
    """The hardest level mastered, none easier having been tried in vain, and whether that is all that there is to know."""
    tried = [(number, mastered(row)) for number, row in enumerate(rows) if row is not None]
    climb = list(itertools.takewhile(lambda one: one[1], tried))
    reached = climb[-1][0] if climb else -1
    failed = tried[len(climb)][0] if len(climb) < len(tried) else None
    if not tried:
        return "not tried"
    if failed is None:
        return levels[reached] + (" or more" if reached + 1 < len(rows) else "")
    if failed > reached + 1:  # what lies between has not been tried
        return f"{levels[reached]} or more, below {levels[failed]}" if climb else f"below {levels[failed]}"
    return levels[reached] if climb else "none"


def interval(score: Mapping[str, float | None]) -> str:
    value, low, high = ("undefined" if score[name] is None else f"{score[name]:.2f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main(words: Sequence[str] | None = None) -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    reader.add_argument("--variants", default=",".join(FAMILIES))
    reader.add_argument("--worlds", default=",".join(climbed()))
    reader.add_argument("--levels", default=",".join(DIFFICULTIES))
    reader.add_argument("--minutes", type=float, default=10.0, help="CPU minutes of training per run")
    reader.add_argument("--order", choices=ORDERS, default="up", help="of the levels: from the easiest, from the hardest, all")
    reader.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    reader.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    reader.add_argument("--out", type=Path, default=Path("runs/ladder"))
    reader.add_argument("--table", action="store_true", help="train nothing")
    reader.add_argument("settings", nargs="*", help="settings of every run: budget.parameters=500_000, say")
    arguments = reader.parse_args(words)
    quieten()
    if arguments.parent:
        end_with(arguments.parent)
    for world in arguments.worlds.split(","):
        if world not in climbed():
            raise ValueError(
                f"--worlds {world}: {nearest(world, climbed())}; a ladder is climbed where there is something to find"
            )
    chosen = itertools.product(*(getattr(arguments, name).split(",") for name in ("worlds", "levels", "variants")))
    rungs = [Rung(*names, arguments.minutes, tuple(arguments.settings), arguments.out) for names in chosen]
    for rung in rungs:
        if rung.variant == rungs[0].variant or (rung.world, rung.level) == (rungs[0].world, rungs[0].level):
            load(rung.settings)  # whatever cannot be meant is refused before anything is trained
    if arguments.workers > 1 and not arguments.table:
        together(arguments.workers, list(sys.argv[1:] if words is None else words))
    elif not arguments.table:
        climb_all(rungs, arguments.order)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [row for rung in rungs if "found" in (row := rung.known())]
    record.write_json(arguments.out / "ladder.json", {"minutes": arguments.minutes, "rows": rows})
    text = tables(rungs)
    (arguments.out / "ladder.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    in_one_line(main)
