"""``nava bench start``: seconds from the command to the end of the first training step, part by part.

A fresh process runs what ``nava train`` runs, in a folder of its own, and stops after its first step. ``--cold`` empties the
system's file cache before each run, so that every library is read from disk, as on a machine that has just been started; it
needs the right to (root), and says so where it lacks it. Nothing heavy is imported here: the child pays for its imports itself.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TARGET = 15.0  # seconds to the first step on two cores, cold
PARTS = ("python", "config", "imports", "size and data", "trainer", "first step")
CACHES = Path("/proc/sys/vm/drop_caches")
MARK = "nava bench start: "


def child(overrides: Sequence[str], began: float) -> None:
    """The training's beginning; prints the moments that end each part. ``began``: when the process was started, in wall time."""
    moments = [began, time.time()]
    from nava_lab.config import load

    config = load([*overrides, "logger=tensorboard"])
    moments.append(time.time())
    import lightning.pytorch as pl

    from nava_lab.study.run import prepared, run

    moments.append(time.time())
    prepared(config)
    moments.append(time.time())

    class First(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            moments.append(time.time())

        def on_train_batch_end(self, *arguments: object) -> None:
            moments.append(time.time())
            print(MARK + json.dumps(moments), flush=True)
            os._exit(0)  # the run that began is nobody's: its folder goes with its parent's

    run(config, lambda message: None, [First()])


def measure(overrides: Sequence[str], cold: bool) -> dict[str, float]:
    """Seconds of each part in a process of its own."""
    if cold:
        try:
            os.sync()
            CACHES.write_text("3\n")
        except OSError as error:
            raise ValueError(
                f"--cold empties the file cache through {CACHES}, which this user or system does not let: {error}"
            ) from None
    code = "import sys; from nava_lab.bench.start import child; child(sys.argv[2:], float(sys.argv[1]))"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, str(time.time()), *overrides, f"output.root={folder}"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in made.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise ValueError(f"the training did not reach its first step:\n{made.stderr[-2000:]}")
    moments = json.loads(line.removeprefix(MARK))
    return {name: moments[at + 1] - moments[at] for at, name in enumerate(PARTS)}


def main(arguments: Sequence[str]) -> int:
    """``nava bench start [KEY=VALUE ...] [--cold] [--repeats=N] [--json]``; 1 where the median is above the target."""
    repeats, overrides = 3, [part for part in arguments if not part.startswith("--")]
    for part in (part for part in arguments if part.startswith("--") and part not in ("--cold", "--json")):
        name, _, value = part.partition("=")
        if name != "--repeats" or not value.isdigit() or int(value) < 1:
            raise ValueError(f"there is no option {part}; known: --cold, --json, --repeats=N and KEY=VALUE")
        repeats = int(value)
    rows = [measure(overrides, "--cold" in arguments) for _ in range(repeats)]
    shown = {name: statistics.median(row[name] for row in rows) for name in PARTS}
    total = statistics.median(sum(row.values()) for row in rows)
    if "--json" in arguments:
        print(json.dumps({"target": TARGET, "cold": "--cold" in arguments, "repeats": repeats, "parts": shown, "total": total}))
    else:
        print(", ".join(f"{name} {seconds:.2f}" for name, seconds in shown.items()))
        print(f"first step after {total:.2f} s (target: at most {TARGET:g}{', cold' if '--cold' in arguments else ''})")
    return int(total > TARGET)
