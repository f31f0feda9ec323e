"""Does a run that is killed at any moment end as an unbroken one, bit for bit?

    python sweeps/kills.py                                    # 30 kills, about 3 minutes on one core
    python sweeps/kills.py --kills 200 variant=dual_tower training.steps=60
    python sweeps/kills.py seeds=3                            # seeds in one process; equal to rounding where one went on alone
    python sweeps/kills.py --fresh trainer=fsdp trainer.accelerator=cpu trainer.devices=2     # two processes and their shards

Held fixed: the run. Varied: when it is killed (SIGKILL, no warning), drawn from a seed: at any moment from start to finish, or
within a few milliseconds of a checkpoint's write being seen. A run is killed --each times, each time continued by the same
command, then left to finish and compared with one that nobody touched: averaged weights, log, record, scores of every clip, and
in the last checkpoints weights, optimiser, average and position in the data (randomness is drawn per clip, so there is no
generator to keep). One that ends before its first kill begins anew and is killed sooner. Every second run is saved by the clock
alone, after a time that is drawn, the shortest of which is over with every step; it is compared with an unbroken run that keeps a
checkpoint of every step, and so is the other unbroken run. Seeds of one process (seeds=3) are compared up to rounding, for one of
them may have to go on alone. Left out are seconds, and the git revision, which a file saved nearby changes. kills.json goes into
--out; what stands there is not done again.

A life begins as a fork of this process, which has everything imported; with --fresh as a new process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

import nava_lab.study.run  # noqa: F401 - imported here, so that no fork needs to
from nava_lab.cli import in_one_line
from nava_lab.cli import main as nava
from nava_lab.config import load
from nava_lab.study.identity import code_fingerprint
from nava_lab.study.multirun import re_executes
from nava_lab.study.record import write_json
from nava_lab.study.seeds import asked
from nava_lab.training import callbacks
from nava_lab.training.saved import SUFFIX, numbered, parted, whole

SMALL = [
    *("experiment=smoke", "variant=unified", "variant.depth=2", "budget.parameters=60_000", "world=gaussian"),
    *("training.steps=24", "training.checkpoints=6", "training.checkpoint_minutes=0"),  # by the clock: see ``saved_by``
    *("evaluation.previews=0", "output.progress=false", "logger=none"),
]
LEFT_OUT = ("wall_time_s", "seconds", "revision")  # what two equal runs may differ in
COMPANY = ("stacked_with", "beside")  # who shared their steps
POLL_S = 0.0003
EVERY_STEP = 1e-6  # seconds
CLOCKS_S = (EVERY_STEP, 0.03, 0.12)  # after how long a run is saved that the clock saves
MARKS = {"anywhere": "", "writing": "w"}
KEEPING = "--keeping"
Life = Callable[[Path], int]


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        run: number of the run.
        aimed: "anywhere", or "writing", at a checkpoint's write.
        after_s: seconds since the life began.
        checkpoint: step of the newest whole checkpoint then.
        torn: whether it left a write unfinished.
    """

    run: int
    aimed: str
    after_s: float
    checkpoint: int
    torn: bool


def saved_by(number: int, draw: random.Random) -> float:
    """The clock that a run is saved by, in seconds; 0 for the moments of its settings."""
    return draw.choice(CLOCKS_S) if number % 2 else 0.0


def by_clock(seconds: float) -> list[str]:
    return [f"training.checkpoint_minutes={seconds / 60}", "training.checkpoints=0"] if seconds else []


def keep_all(words: Sequence[str]) -> None:
    """``nava`` with a checkpoint of every step that is saved, not of the last two alone."""
    callbacks.KEPT = 10**9
    nava(words)


def forked(settings: Sequence[str], keeping: bool = False) -> Life:
    """Starts lives as forks of this process."""

    def begin(root: Path) -> int:
        child = os.fork()
        if child:
            return child
        os.setsid()
        with (root / "told.txt").open("a") as told:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
        code = 1
        try:
            (keep_all if keeping else nava)(["train", *settings, f"output.root={root}"])
            code = 0
        finally:
            os._exit(code)

    return begin


def fresh(settings: Sequence[str], keeping: bool = False) -> Life:
    """Starts lives as processes of their own."""

    def begin(root: Path) -> int:
        program = [__file__, KEEPING] if keeping else ["-m", "nava_lab"]
        command = [sys.executable, *program, "train", *settings, f"output.root={root}"]
        with (root / "told.txt").open("a") as told:
            return subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True).pid

    return begin


def ended(process: int) -> bool:
    """Whether a life is over; RuntimeError where it ended by itself and badly."""
    found, status = os.waitpid(process, os.WNOHANG)
    if not found:
        return False
    if os.waitstatus_to_exitcode(status) > 0:
        raise RuntimeError(f"a run failed by itself, with status {os.waitstatus_to_exitcode(status)}: see told.txt in its folder")
    return True


def writing(root: Path) -> set[tuple[str, int, int]]:
    """Checkpoints that are being written, or whose write was left unfinished; a later write of the same is another."""
    found = set()
    for path in root.glob(f"*/checkpoints/.*{SUFFIX}.tmp"):
        with suppress(FileNotFoundError):  # finished in this moment
            about = path.stat()
            found.add((path.name, about.st_ino, about.st_ctime_ns if path.is_dir() else 0))
    return found


def kill(process: int) -> None:
    """The life with all its processes, without warning."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # killed before it had a group of its own
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def live(begin: Life, root: Path, number: int, draw: random.Random, lasts: float) -> Kill | None:
    """One life, killed at a moment that is drawn; None where it ended before."""
    root.mkdir(parents=True, exist_ok=True)
    aimed = draw.choice(("anywhere", "writing"))
    wait, nth, late = draw.uniform(0, lasts), draw.randint(1, 3), draw.uniform(0, 0.004)
    left, began, seen, before = writing(root), time.monotonic(), 0, False
    process = begin(root)
    while not ended(process):
        now = bool(writing(root) - left) if aimed == "writing" else False
        seen, before = seen + (now and not before), now
        if (aimed == "anywhere" and time.monotonic() - began >= wait) or (seen == nth and now):
            time.sleep(late if now else 0)
            kill(process)
            whole_ones = [path for folder in root.glob("*/checkpoints") for path in numbered(folder)]
            newest = max((int(path.stem) for path in whole_ones), default=0)
            return Kill(number, aimed, round(time.monotonic() - began, 3), newest, bool(writing(root) - left))
        time.sleep(POLL_S)
    return None


def finish(begin: Life, root: Path) -> float:
    """One life to its end; seconds."""
    root.mkdir(parents=True, exist_ok=True)
    began, process = time.monotonic(), begin(root)
    while not ended(process):
        time.sleep(0.01)
    return time.monotonic() - began


def differences_of_all(root: Path, other: Path, rounded: bool = False, among: bool = False) -> list[str]:
    """In what two folders of runs differ (see ``differences``)."""
    mine, others = runs_in(root), runs_in(other)
    if [run.name for run in mine] != [run.name for run in others]:
        return [f"runs: {', '.join(run.name for run in mine)}"]
    pairs = list(zip(mine, others, strict=True))
    marks = [f"{run.name}: " if len(pairs) > 1 else "" for run in mine]
    return [mark + line for mark, pair in zip(marks, pairs, strict=True) for line in differences(*pair, rounded, among)]


def differences(run: Path, other: Path, rounded: bool = False, among: bool = False) -> list[str]:
    """In what two runs' folders differ: at all, or by more than rounding; ``among``: the other has further checkpoints."""
    found = [
        name
        for name in ("metrics.jsonl", "per_clip.json")
        if (run / name).read_text() != (other / name).read_text()
        and not (rounded and alike(*(values_in(folder / name) for folder in (run, other)), True))
    ]
    out = LEFT_OUT + COMPANY * rounded
    one, two = (timeless(json.loads((path / "record.json").read_text()), out) for path in (run, other))
    found += [] if alike(one, two, rounded) else ["record.json"]
    one, two = (load_file(path / "model.safetensors") for path in (run, other))
    found += unequal("model.safetensors", one, two, rounded)
    names = [[path.name for path in numbered(folder / "checkpoints")] for folder in (run, other)]
    if names[0] != ([name for name in names[1] if name in names[0]] if among else names[1]):
        return [*found, f"checkpoints: {names[0]}, not {names[1]}"]
    for name in names[0]:
        (rest, tensors), (other_rest, others) = (parted(whole(folder / "checkpoints" / name)) for folder in (run, other))
        found += [] if alike(timeless(rest, out), timeless(other_rest, out), rounded) else [f"{name}: what is no tensor"]
        found += unequal(name, tensors, others, rounded)
    return found


def unequal(file: str, one: dict[Any, torch.Tensor], two: dict[Any, torch.Tensor], rounded: bool = False) -> list[str]:
    def same(name: Any) -> bool:
        mine, other = one[name], two[name]
        if not rounded or not mine.is_floating_point():
            return torch.equal(mine, other)
        return mine.shape == other.shape and bool((mine - other).abs().max() <= 1e-3 * (1e-3 + other.abs().max()))

    names = sorted({*one, *two}, key=str)
    wrong = [name for name in names if name not in one or name not in two or not same(name)]
    return [f"{file}: {len(wrong)} of {len(names)} tensors, such as {wrong[0]}"] if wrong else []


def alike(one: Any, two: Any, rounded: bool) -> bool:
    """Whether two trees are equal, at all or up to the rounding of their numbers."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(part, two[key], rounded) for key, part in one.items())
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(alike(*pair, rounded) for pair in zip(one, two, strict=True))
    if rounded and isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-3, abs_tol=1e-4)
    return bool(one == two)


def values_in(path: Path) -> Any:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def timeless(value: Any, out: Sequence[str] = LEFT_OUT) -> Any:
    """The same without what two equal runs may differ in."""
    if isinstance(value, dict):
        return {key: timeless(part, out) for key, part in value.items() if key not in out}
    return [timeless(part, out) for part in value] if isinstance(value, list | tuple) else value


def runs_in(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/record.json"))


def only_run(root: Path) -> Path:
    (found,) = runs_in(root)
    return found


def campaign(out: Path, settings: Sequence[str], kills: int, each: int, seed: int, is_fresh: bool) -> list[dict[str, Any]]:
    """Runs and their kills until there are enough; one entry per run, also in ``out/kills.json``."""
    start = fresh if is_fresh else forked
    about = {"settings": list(settings), "seed": seed, "each": each, "code": code_fingerprint()}
    path = out / "kills.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    done: list[dict[str, Any]] = before["runs"] if {key: before.get(key) for key in about} == about else []
    if not done:
        shutil.rmtree(out, ignore_errors=True)
    unbroken, twin = out / "unbroken", out / "twin"
    if not list(twin.glob("*/record.json")):
        about["lasts"] = finish(start(settings), unbroken)
        finish(start([*settings, *by_clock(EVERY_STEP)], keeping=True), twin)
        if wrong := differences_of_all(unbroken, twin, among=True):
            raise SystemExit(f"two unbroken runs differ, so nothing can be said of killed ones: {'; '.join(wrong)}")
    lasts = about.setdefault("lasts", before.get("lasts", 5.0))
    several = any(part.startswith("seeds=") for part in settings)  # of which one may go on alone, and be summed in another order
    while sum(len(run["kills"]) for run in done) < kills:
        number = len(done)
        root, draw, found = out / f"run-{number}", random.Random(f"{seed} {number}"), []
        clock = saved_by(number, draw)
        begin = start([*settings, *by_clock(clock)])
        wanted, within = min(each, kills - sum(len(run["kills"]) for run in done)), float(lasts)
        while not found:
            shutil.rmtree(root, ignore_errors=True)
            while len(found) < wanted and (one := live(begin, root, number, draw, within)):
                found.append(one)
            within /= 2
        finish(begin, root)
        wrong = differences_of_all(root, twin if clock else unbroken, several, bool(clock))
        compared = sum(len(numbered(run / "checkpoints")) for run in runs_in(root))
        done.append({"clock_s": clock, "kills": [asdict(one) for one in found], "compared": compared, "differences": wrong})
        write_json(path, {**about, "runs": done})
        print(f"run {number}: {len(found)} kills, {'; '.join(done[-1]['differences']) or 'equal'}", file=sys.stderr, flush=True)
    return done


def show(done: Sequence[dict[str, Any]]) -> None:
    table = Table("run", "saved", "killed after s, w: at a write (newest checkpoint)", "writes torn", "compared", "ends equal")
    for number, run in enumerate(done):
        kills = run["kills"]
        told = ", ".join(f"{kill['after_s']:.2f}{MARKS[kill['aimed']]} ({kill['checkpoint']})" for kill in kills)
        when = f"every {run['clock_s']:g} s" if run["clock_s"] else "at moments"
        torn = str(sum(kill["torn"] for kill in kills))
        table.add_row(str(number), when, told, torn, str(run["compared"]), "; ".join(run["differences"]) or "yes")
    Console(width=120).print(table)
    kills = [kill for run in done for kill in run["kills"]]
    tears, broken = sum(kill["torn"] for kill in kills), sum(bool(run["differences"]) for run in done)
    timed = [len(run["kills"]) for run in done if run["clock_s"]]
    print(
        f"{len(kills)} kills of {len(done)} runs, {tears} in the middle of a checkpoint's write; {sum(timed)} of the kills, of "
        f"{len(timed)} runs, where the clock saves; {sum(run['compared'] for run in done)} last checkpoints compared; "
        f"{broken} runs ended otherwise"
    )


def main(words: Sequence[str] | None = None) -> int:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("settings", nargs="*", help="KEY=VALUE on top of a run of seconds")
    reader.add_argument("--kills", type=int, default=30)
    reader.add_argument("--each", type=int, default=3, help="kills of one run")
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--fresh", action="store_true", help="every life a new process")
    reader.add_argument("--out", type=Path, default=Path("runs/kills"))
    arguments = reader.parse_args(words)
    torch.set_num_threads(1)
    settings = [*SMALL, *arguments.settings]
    plain, seeds, _ = asked(settings)
    if not arguments.fresh and not seeds and re_executes(load(plain)):
        raise ValueError("a fork cannot be started again on every device: with several devices add --fresh")
    done = campaign(arguments.out.resolve(), settings, arguments.kills, arguments.each, arguments.seed, arguments.fresh)
    show(done)
    return int(any(run["differences"] for run in done))


if __name__ == "__main__":
    if KEEPING in sys.argv:
        keep_all(sys.argv[2:])
    else:
        in_one_line(main)
