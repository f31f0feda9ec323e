"""``nava study``: from a study's file to its finished folder, with any number of workers and as many interruptions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nava_lab.config import CONFIGS, ConfigError, Output, load
from nava_lab.study.grammar import StudyError, override
from nava_lab.study.ledger import Ledger, folder_of
from nava_lab.study.plan import Plan, plan_of
from nava_lab.study.results import CONFIRMATION, StudyResult
from nava_lab.study.spec import Study, read_study
from nava_lab.study.storage import JOURNAL, repeatable
from nava_lab.study.worker import Worker
from nava_lab.training.ending import noted

Tell = Callable[[str], None]
POLL_S = 1.0


@dataclass(frozen=True)
class Wish:
    """How a study is to be conducted.

    Attributes:
        file: the study's file.
        overrides: ``KEY=VALUE`` on top of it.
        edition: which of its editions; empty for the one that fits this machine.
        workers: processes here.
        storage: a database's URL or a journal's path; empty for a journal in the study's folder.
        retry_failed: whether what failed before is tried again.
        lease_s: seconds of silence after which a worker counts as dead.
        together: how many seeds of a point a worker trains in one process, at most (see ``share``). It changes how runs are
            computed, and nothing of what they, or the study, are.
    """

    file: Path
    overrides: tuple[str, ...] = ()
    edition: str = ""
    workers: int = 1
    storage: str = ""
    retry_failed: bool = False
    lease_s: float = 60.0
    together: int = 1


def read(wish: Wish) -> tuple[Study, Path]:
    """The study that is meant, and the folder of all runs."""
    root = next((part.split("=", 1)[1] for part in reversed(wish.overrides) if part.startswith("output.root=")), Output.root)
    overrides = [part for part in wish.overrides if not part.startswith("output.root=")]
    edition = wish.edition or fitting_edition(wish.file)
    study = read_study(wish.file, edition, overrides, is_here)
    return replace(study, origin=replace(study.origin, storage=repeatable(wish.storage))), Path(root)


def is_here(settings: Mapping[str, Any]) -> bool:
    """Whether this checkout has the variants, worlds and keys that some settings name."""
    try:
        load([override(key, value) for key, value in settings.items()])
    except ConfigError:
        return False
    return True


def fitting_edition(file: Path) -> str:
    """Of a file with editions for kinds of machines, the one for this machine: "gpu" where there is one, else "cpu"."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else {}
    editions = plain.get("editions") if isinstance(plain, dict) else None
    if not isinstance(editions, dict):
        return ""
    import torch

    wanted = "gpu" if torch.cuda.is_available() else "cpu"
    return wanted if wanted in editions else ""


def threads_for(workers: int) -> int:
    """Torch threads per worker, so that all of them together use the cores once."""
    return max(1, (os.cpu_count() or 1) // workers)


def planned(wish: Wish, timed: bool) -> Plan:
    _check(wish)
    study, root = read(wish)
    return plan_of(study, root, timed, threads_for(wish.workers) if wish.workers > 1 else None, wish.together)


def _check(wish: Wish) -> None:
    for name, count in (("--workers", wish.workers), ("--together", wish.together)):
        if count < 1:
            raise StudyError(f"{name} {count}: at least 1")


def conduct(wish: Wish, tell: Tell) -> StudyResult:
    """Run or continue a study until nothing is left; what failed stays failed and is counted."""
    _check(wish)
    study, root = read(wish)
    for level in study.left_out:
        tell(f"left out, for this checkout does not have it: {level}")
    plan = plan_of(study, root, timed=False, together=wish.together)
    for line in plan.warnings:
        tell(line)
    folder = folder_of(root, study)
    place = wish.storage or str(folder / JOURNAL)
    ledger = Ledger(study, folder, place, wish.lease_s)
    if apart := ledger.tell_apart():
        tell(f"{folder}: {apart}, and what they were for is run again (or found, where the very run is in {root})")
    if gone := ledger.gone():
        tell(f"{gone} that were finished before are gone from {root}: made again")
    if wish.retry_failed:
        tell(f"{ledger.retry_failed()} failed are tried again")
    result = ledger.write()
    counts, confirmed = result.counts(), result.counts(CONFIRMATION)
    tell(f"{folder}: {len(plan.runs())} runs, all checked; {counts['finished']} finished before")
    if counts["failed"]:
        tell(f"{counts['failed']} failed before; --retry-failed tries them again")
    left = sum(part.confirmations for part in plan.points) - confirmed["finished"] - confirmed["failed"]
    wish = replace(wish, together=share(wish, left))
    with noted(f"{folder}: the same command continues the study"):
        if wish.workers == 1:
            Worker(ledger, tell, together=wish.together).work()
        else:
            _side_by_side(folder, place, wish, tell)
    return ledger.write()


def share(wish: Wish, left: int) -> int:
    """How many seeds of a point a worker takes at once: of few that are left to confirm no more than an equal part."""
    return max(1, min(wish.together, math.ceil(left / wish.workers)))


def _side_by_side(folder: Path, place: str, wish: Wish, tell: Tell) -> None:
    """Workers in processes of their own; one that dies is reported, and the others take over what it was at."""
    environment = {"OMP_NUM_THREADS": str(threads_for(wish.workers)), **os.environ}
    path = os.pathsep.join(part for part in (str(CONFIGS.parent), os.environ.get("PYTHONPATH", "")) if part)
    own = (wish.lease_s, os.getpid(), wish.together)
    command = [sys.executable, "-m", "nava_lab.study.worker", str(folder), place, *map(str, own)]
    gpus = _gpus()
    processes: list[subprocess.Popen] = []
    for number in range(wish.workers):
        sees = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if len(gpus) > 1 else {}
        processes.append(subprocess.Popen(command, env={**environment, **sees, "PYTHONPATH": path}))
    try:
        left = list(processes)
        while left:
            time.sleep(POLL_S)
            for process in [process for process in left if process.poll() is not None]:
                left.remove(process)
                if process.returncode:
                    tell(f"worker {process.pid} ended with status {process.returncode}; {len(left)} workers go on")
        if all(process.returncode for process in processes):
            raise StudyError("every worker ended before the study did; the same command continues it")
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()


def _gpus() -> Sequence[str]:
    """This machine's GPUs as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
