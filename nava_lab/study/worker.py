"""A worker: takes what is left of a study, one run after the other, until nothing is.

    python -m nava_lab.study.worker FOLDER STORAGE LEASE_S PARENT TOGETHER

PARENT is the process that started it: a worker ends when that is gone. TOGETHER is how many seeds it trains at once.
Any number of workers may be at one study, on any machines that reach its storage and its folder.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError

from nava_lab.config import Config, composed, load
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
from nava_lab.study.seeds import Ended, configs_of, run_seeds
from nava_lab.study.space import VALIDATION_LOSS
from nava_lab.study.tuning import higher_is_better, suggest
from nava_lab.training.callbacks import EndedEarly, Stopped, Watch
from nava_lab.training.ending import sigterm_ends
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
        together: how many seeds that share all other settings it trains in one process, at most.
    """

    def __init__(self, ledger: Ledger, tell: Tell, stop: Callable[[], bool] = lambda: False, together: int = 1):
        self.ledger, self.tell, self.stop, self.together = ledger, tell, stop, together
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
        """Run a task's runs, with tasks that can be trained with it, and say in the storage what came out."""
        with ExitStack() as claims:
            claims.enter_context(task.claim)
            tasks = [task]
            for other in self.ledger.alike(task, self.together - 1):
                claims.enter_context(other.claim)
                tasks.append(other)
            if len(tasks) > 1:
                self._do_together(tasks)
            else:
                self._end(task, partial(self._values, task), time.monotonic())

    def _end(self, task: Task, values: Callable[[], list[list[float]]], began: float, beside: int = 0) -> None:
        """Say in the storage, and tell, what comes of a task.

        Args:
            task: of this worker.
            values: what each of its runs is judged by, or the error that ends the task.
            began: when it did, by the monotonic clock.
            beside: how many others share that time.
        """
        claim = task.claim
        try:
            outcome = self._finish(claim, values())
        except Stopped:
            claim.release()
            outcome = "given up"
        except EndedEarly:
            outcome = "pruned" if claim.prune() else "given up"
        except RunBusy:
            claim.release()
            self.ledger.set_aside(task)
            return
        except Changed:
            raise
        except Exception as error:  # whatever a part under development raises: its slot has failed, and others go on
            counted = claim.fail(f"{type(error).__name__}: {' '.join(str(error).split())}"[:1500])
            outcome = f"failed: {in_words(error)}" if counted else "taken over by another worker"
        counts = self.ledger.write().counts()
        ended = sum(counts[state] for state in ("finished", "failed", "pruned"))
        name = f"{task.phase} {task.point.key}" + (f" {claim.slot}" if task.phase == TUNING else f" seed {task.seeds[0]}")
        time_taken = f"{time.monotonic() - began:.0f} s" + (f" with {beside} more" if beside else "")
        self.tell(f"[{ended}/{sum(counts.values())}] {name}: {outcome} ({time_taken})")

    def _finish(self, claim: Claim, values: list[list[float]]) -> str:
        means = [sum(part) / len(part) for part in zip(*values, strict=True)]
        if not all(map(math.isfinite, means)):
            claim.fail(f"what is judged by came out as {means}")
            return f"failed: {means}"
        counted = claim.finish(means)
        return " and ".join(f"{mean:.4g}" for mean in means) + ("" if counted else ", taken over by another worker")

    def _do_together(self, tasks: Sequence[Task]) -> None:
        """Tasks of one seed each, in one training. Each ends by itself; those that are left when that ends are given up."""
        began, left = time.monotonic(), {task.seeds[0]: task for task in tasks}

        def stop() -> bool:
            return self._is_over(left.values())

        def end(seed: int, made: Path | Exception) -> None:
            task = left.pop(seed)
            self._end(task, partial(self._read_all, task, made), began, len(tasks) - 1)
            if stop():
                raise Stopped

        try:
            self._run_together([(task, task.seeds[0]) for task in tasks], tasks[0].tuned, end, stop)
        except Exception as error:
            made = error if len(left) == len(tasks) else Stopped()  # whom it was of has been told, and the others can go on
            for task in left.values():
                self._end(task, partial(self._read_all, task, made), began, len(tasks) - 1)

    def _read_all(self, task: Task, made: Path | Exception) -> list[list[float]]:
        """As ``_read``, of a task of one seed."""
        return [self._read(task, task.seeds[0], made)]

    def _is_over(self, tasks: Iterable[Task]) -> bool:
        """Whether what is being done is to be left as it is."""
        return self.stop() or any(task.claim.lost for task in tasks)

    def _values(self, task: Task) -> list[list[float]]:
        """Train and score a task's runs (or find them done); what each is judged by."""
        tuning, tuned = self.study.tuning, task.tuned
        if task.phase == TUNING and tuning:
            tuned = suggest(task.claim, tuning.space)
            if min(self.together, len(task.seeds)) > 1 and (tuning.pruner == "none" or tuning.two_objectives):
                return self._values_together(task, tuned)
        return [self._value(task, number, tuned) for number in range(len(task.seeds))]

    def _values_together(self, task: Task, tuned: Mapping[str, Any]) -> list[list[float]]:
        """As ``_values``, of a trial that no pruner ends: it need not look at one seed before the next."""
        values: dict[int, list[float]] = {}

        def end(seed: int, made: Path | Exception) -> None:
            values[seed] = self._read(task, seed, made)
            self._report(task, seed)

        for start in range(0, len(task.seeds), self.together):
            parts = [(task, seed) for seed in task.seeds[start : start + self.together]]
            self._run_together(parts, tuned, end, lambda: self._is_over([task]))
        return [values[seed] for seed in task.seeds]

    def _report(self, task: Task, seed: int) -> None:
        """Tell a trial the validations of a run that it did not see, as it would have been told of them by ``_judge``."""
        folder = self.root / task.claim.trial.user_attrs[f"{RUN} {seed}"]
        judge = self._judge(task, task.seeds.index(seed), record.read(folder)["steps"])
        for line in read_log(folder / "metrics.jsonl"):
            if VALIDATION_LOSS in line:
                judge(int(line["step"]), line[VALIDATION_LOSS])

    def _run_together(
        self, parts: Sequence[tuple[Task, int]], tuned: Mapping[str, Any], end: Ended, stop: Callable[[], bool]
    ) -> None:
        """Train and score runs that differ in their seeds alone; ``end`` is told of each, and ``stop`` asked after every step."""
        task, seeds = parts[0][0], [seed for _, seed in parts]
        configs = configs_of(composed(self._overrides(task, seeds[0], tuned)), seeds)
        self.ledger.check_unchanged(task.point)
        folders = [self._folder(config) for config in configs]
        for (of, seed), folder in zip(parts, folders, strict=True):
            try:
                of.claim.note(f"{RUN} {seed}", folder.name)
            except UpdateFinishedTrialError:  # given up already: it ends as a training does that loses a claim
                raise Stopped(f"{of.claim.slot} was taken over") from None
        self.ledger.write()
        watch = Watch(folders[0] / "metrics.jsonl", lambda step, loss: False, stop)
        run_seeds(configs, self._pass_on, [watch], ended=end)

    def _value(self, task: Task, number: int, tuned: Mapping[str, Any]) -> list[float]:
        """Train and score one run (or find it done); what it is judged by."""
        claim, seed = task.claim, task.seeds[number]
        overrides = self._overrides(task, seed, tuned)
        config = load(overrides)
        self.ledger.check_unchanged(task.point)
        folder = self._folder(config)
        claim.note(f"{RUN} {seed}", folder.name)
        self.ledger.write()

        def stop() -> bool:
            return self._is_over([task])

        if re_executes(config):
            in_own_process(overrides, lambda: not stop())
        else:
            judge = self._judge(task, number, config.training.steps)
            run(config, self._pass_on, [Watch(folder / "metrics.jsonl", judge, stop)])
        return self._read(task, seed, folder)

    def _read(self, task: Task, seed: int, made: Path | Exception) -> list[float]:
        """What a run is judged by; what it failed of is raised."""
        if isinstance(made, Exception):
            raise made
        value = self._judged_by(task, made)
        task.claim.note(f"{VALUE} {seed}", value[0])
        return value

    def _folder(self, config: Config) -> Path:
        return self.root / run_name(config.resolved, config.world.data_version())

    def _overrides(self, task: Task, seed: int, tuned: Mapping[str, Any]) -> list[str]:
        return self.study.overrides(task.point, seed, tuned) + self._settings(task)

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
    folder, place, lease_s = Path(arguments[0]), arguments[1], float(arguments[2])
    parent, together = map(int, arguments[3:])

    def tell(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    # A worker whose starter was killed must not go on unseen beside those that are started next.
    ledger = Ledger(load_study(folder).study, folder, place, lease_s)
    worker = Worker(ledger, tell, lambda: os.getppid() != parent, together)
    try:
        with sigterm_ends():
            worker.work()
    except StudyError as error:
        tell(f"worker {os.getpid()}: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # whoever started it says what there is to say


if __name__ == "__main__":
    main(sys.argv[1:])
