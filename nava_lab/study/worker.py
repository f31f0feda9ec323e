"""A worker: takes what is left of a study, one run after the other, until nothing is.

    python -m nava_lab.study.worker FOLDER STORAGE LEASE_S PARENT

PARENT is the process that started it: a worker ends when that is gone.
Any number of workers may be at one study, on any machines that reach its storage and its folder.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nava_lab.config import load
from nava_lab.memory import keep_memory
from nava_lab.study import record
from nava_lab.study.claims import Claim
from nava_lab.study.failures import in_words
from nava_lab.study.grammar import StudyError, override
from nava_lab.study.identity import run_name
from nava_lab.study.ledger import RUN, VALUE, Changed, Ledger, Task
from nava_lab.study.multirun import in_own_process, re_executes
from nava_lab.study.results import CONFIRMATION, TUNING, load_study
from nava_lab.study.run import RunBusy, run
from nava_lab.study.space import VALIDATION_LOSS
from nava_lab.study.tuning import higher_is_better, suggest
from nava_lab.training.callbacks import EndedEarly, Watch
from nava_lab.training.log import read_log
from nava_lab.training.quiet import quieten

Tell = Callable[[str], None]
IDLE_S = 2.0
WARMUP = 0.3  # the share of a run's steps within which no pruner ends it


class Worker:
    """One process's share of a study.

    Args:
        ledger: the study in its storage.
        tell: where progress is said.
        stop: asked after every step; whether to leave everything as it is and end.
    """

    def __init__(self, ledger: Ledger, tell: Tell, stop: Callable[[], bool] = lambda: False):
        self.ledger, self.tell, self.stop = ledger, tell, stop
        self.study, self.root = ledger.study, ledger.folder.parent.parent

    def work(self) -> None:
        """Until nothing is left, or others are at what is left and have finished it."""
        while not self.stop():
            task = self.ledger.next()
            if task is not None:
                self.do(task)
            elif self.ledger.result().complete:
                return
            else:
                time.sleep(IDLE_S)

    def do(self, task: Task) -> None:
        """Run a task's runs and say in the storage what came out."""
        claim, began = task.claim, time.monotonic()
        name = f"{task.phase} {task.point.key}" + (f" {claim.slot}" if task.phase == TUNING else f" seed {task.seeds[0]}")
        with claim:
            try:
                tuned = suggest(claim, self.study.tuning.space) if task.phase == TUNING and self.study.tuning else task.tuned
                values = [self._value(task, number, dict(tuned)) for number in range(len(task.seeds))]
                outcome = self._finish(claim, values)
            except EndedEarly:
                pruned = not (claim.lost or self.stop())
                outcome = "pruned" if pruned and claim.prune() else "given up"
                if not pruned:
                    claim.release()
            except RunBusy:
                claim.release()
                self.ledger.set_aside(task)
                return
            except Changed:
                claim.release()
                raise
            except Exception as error:  # whatever a part under development raises: its slot has failed, and others go on
                counted = claim.fail(f"{type(error).__name__}: {' '.join(str(error).split())}"[:1500])
                outcome = f"failed: {in_words(error)}" if counted else "taken over by another worker"
            except BaseException:
                claim.release()  # stopped by hand: whoever goes on need not wait for the lease to run out
                raise
        counts = self.ledger.write().counts()
        ended = sum(counts[state] for state in ("finished", "failed", "pruned"))
        self.tell(f"[{ended}/{sum(counts.values())}] {name}: {outcome} ({time.monotonic() - began:.0f} s)")

    def _finish(self, claim: Claim, values: list[list[float]]) -> str:
        means = [sum(part) / len(part) for part in zip(*values, strict=True)]
        if not all(map(math.isfinite, means)):
            claim.fail(f"what is judged by came out as {means}")
            return f"failed: {means}"
        counted = claim.finish(means)
        return " and ".join(f"{mean:.4g}" for mean in means) + ("" if counted else ", taken over by another worker")

    def _value(self, task: Task, number: int, tuned: dict[str, Any]) -> list[float]:
        """Train and score one run (or find it done); what it is judged by."""
        claim, seed = task.claim, task.seeds[number]
        overrides = self.study.overrides(task.point, seed, tuned) + self._settings(task)
        config = load(overrides)
        self.ledger.check_unchanged(task.point)
        folder = self.root / run_name(config.resolved, config.world.data_version())
        claim.note(f"{RUN} {seed}", folder.name)
        self.ledger.write()

        def stop() -> bool:
            return claim.lost or self.stop()

        if re_executes(config):
            in_own_process(overrides, lambda: not stop())
        else:
            judge = self._judge(task, number, config.training.steps)
            run(config, self._pass_on, [Watch(folder / "metrics.jsonl", judge, stop)])
        value = self._judged_by(task, folder)
        claim.note(f"{VALUE} {seed}", value[0])
        return value

    def _settings(self, task: Task) -> list[str]:
        settings: dict[str, Any] = {"output.root": str(self.root), "output.progress": False}
        if task.phase == TUNING:
            settings |= {"evaluation.split": "validation", "evaluation.previews": 0}
        return [override(key, value) for key, value in settings.items()]

    def _judge(self, task: Task, number: int, steps: int) -> Callable[[int, float], bool]:
        """Report validations to the trial and ask its pruner, once the learning rate's warm-up and the first steps are past."""
        tuning = self.study.tuning
        if task.phase == CONFIRMATION or tuning is None or tuning.two_objectives:
            return lambda step, loss: False
        first = WARMUP * steps
        sign = -1.0 if higher_is_better(tuning.metric) else 1.0  # a pruner knows one direction, the trial's own

        def judge(step: int, loss: float) -> bool:
            task.claim.trial.report(sign * loss, number * steps + step)
            return step >= first and task.claim.trial.should_prune()

        return judge

    def _judged_by(self, task: Task, folder: Path) -> list[float]:
        made = record.read(folder)
        tuning = self.study.tuning
        metric = tuning.metric if task.phase == TUNING and tuning else self.study.metric
        if metric == VALIDATION_LOSS:
            losses = [line[VALIDATION_LOSS] for line in read_log(folder / "metrics.jsonl") if VALIDATION_LOSS in line]
            if not losses:
                raise ValueError(f"{folder.name} took no validation loss: set training.validations")
            value = losses[-1]
        elif metric in made["scores"]:
            value = made["scores"][metric]["value"]
            if value is None:
                raise ValueError(f"{metric} is not defined for {folder.name}: its clips hold nothing to count")
        else:
            raise ValueError(f"{folder.name} has no score {metric}; it has {', '.join(sorted(made['scores']))}")
        cost = [float(made["flops_per_sample"])] if task.phase == TUNING and tuning and tuning.two_objectives else []
        return [value, *cost]

    def _pass_on(self, message: str) -> None:
        if " previews in " not in message:
            self.tell(message)


def main(arguments: list[str]) -> None:
    quieten()
    keep_memory()
    folder, place, lease_s, parent = Path(arguments[0]), arguments[1], float(arguments[2]), int(arguments[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def tell(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    # A worker whose starter was killed must not go on unseen beside those that are started next.
    worker = Worker(Ledger(load_study(folder).study, folder, place, lease_s), tell, lambda: os.getppid() != parent)
    try:
        worker.work()
    except StudyError as error:
        tell(f"worker {os.getpid()}: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # whoever started it says what there is to say


if __name__ == "__main__":
    main(sys.argv[1:])
