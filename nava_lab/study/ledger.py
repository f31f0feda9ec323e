"""A study as its storage tells it: what is left to do, who is at what, and what has come out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial

from nava_lab.study.claims import ERROR, Board, Claim, Slot
from nava_lab.study.record import write_json
from nava_lab.study.results import CONFIRMATION, NAME, TUNING, Choice, PlannedRun, StudyResult, as_json, front_point
from nava_lab.study.spec import Point, Study
from nava_lab.study.storage import open_storage
from nava_lab.study.tuning import choose, direction, higher_is_better, sampler_of, slots_of, tuning_study, untunable

RUN, VALUE = "run", "value"  # of an attempt, with the seed: the run's folder, and what came out of it
BUSY_S = 5.0


@dataclass(frozen=True)
class Task:
    """A claimed slot: what is to be run under it."""

    claim: Claim
    point: Point
    phase: str
    seeds: tuple[int, ...]
    tuned: Mapping[str, Any]  # of a confirmation; a tuning asks its trial


def folder_of(root: Path, study: Study) -> Path:
    """Where a study is kept: its name says edition and contents, so an edited study is another one (and shares finished runs)."""
    digest = hashlib.sha256(json.dumps([study.source, study.question], sort_keys=True).encode()).hexdigest()[:8]
    return root / "studies" / "-".join(part for part in (study.name, study.edition, digest) if part)


class Ledger:
    """A study's slots in their storage.

    Args:
        study: what is to be done.
        folder: the study's folder.
        place: the storage: a database's URL, or a journal's path.
        lease_s: seconds of silence after which a worker counts as dead.
    """

    def __init__(self, study: Study, folder: Path, place: str, lease_s: float = 60.0):
        self.study, self.folder, self.lease_s = study, folder, lease_s
        self.up = higher_is_better(study.metric)
        folder.mkdir(parents=True, exist_ok=True)
        self.storage = open_storage(place)
        self._boards: dict[str, Board] = {}
        self._busy: dict[str, float] = {}

    def board(self, point: Point | None) -> Board:
        """The slots of a point's tuning; of all confirmations for None."""
        key = f"{self.folder.name}/{'confirmation' if point is None else point.key}"
        if key not in self._boards:
            if point is None:
                made = optuna.create_study(
                    storage=self.storage, study_name=key, directions=[direction(self.up)], load_if_exists=True
                )
            else:
                assert self.study.tuning is not None
                made = tuning_study(self.storage, key, self.study.tuning)
            self._boards[key] = Board(made, self.folder / ".slots.lock", self.lease_s)
        return self._boards[key]

    def tunings(self) -> dict[str, dict[str, Slot]]:
        """Slots of every point's tuning, by the point's key."""
        return {point.key: self.board(point).slots() for point in self.study.points} if self.study.tuning else {}

    def choices(self, tunings: Mapping[str, Mapping[str, Slot]]) -> dict[str, Choice]:
        found: dict[str, Choice] = {}
        for key, slots in tunings.items():
            point = self.study.point(key)
            for choice in choose(self.study, point, slots):
                found[front_point(point, choice).key if choice.front else key] = choice
        return found

    def confirmed(self, choices: Mapping[str, Choice]) -> list[tuple[Point, Mapping[str, Any]]]:
        """The points whose settings are known, with what was tuned."""
        if self.study.tuning is None:
            return [(point, {}) for point in self.study.points]
        if self.study.tuning.two_objectives:
            return [(front_point(self.study.point(choice.point), choice), {}) for choice in choices.values()]
        return [(point, choices[point.key].tuned) for point in self.study.points if point.key in choices]

    def next(self) -> Task | None:
        """Claim something: tuning trials before confirmations, and what many points need before what one needs more of."""
        for board in self._all_boards():
            board.give_up_dead()
        tunings = self.tunings()
        for task in self._tuning_candidates(tunings):
            return task
        pairs = self.confirmed(self.choices(tunings))
        if not pairs:
            return None
        board = self.board(None)
        slots = board.slots()
        for seed in self.study.seeds:
            for point, tuned in pairs:
                name = _confirmation(point, seed, tuned)
                claim = self._claim(board, slots, name, {})
                if claim is not None:
                    return Task(claim, point, CONFIRMATION, (seed,), tuned)
        return None

    def _tuning_candidates(self, tunings: Mapping[str, Mapping[str, Slot]]) -> Iterable[Task]:
        tuning = self.study.tuning
        if tuning is None:
            return
        for name, fixed in slots_of(tuning).items():
            for point in self.study.points:
                board = self.board(point)
                board.study.sampler = sampler_of(
                    tuning, board.study.study_name, name, len(board.study.get_trials(deepcopy=False))
                )
                claim = self._claim(board, tunings[point.key], name, fixed)
                if claim is not None:
                    yield Task(claim, point, TUNING, tuning.seeds, {})

    def _claim(self, board: Board, slots: Mapping[str, Slot], name: str, fixed: Mapping[str, Any]) -> Claim | None:
        state = slots[name].state if name in slots else "open"
        key = f"{board.study.study_name}/{name}"
        if state not in ("open", "waiting") or self._busy.get(key, 0.0) > time.monotonic():
            return None
        if state == "open":
            board.add({name: fixed})
        return board.claim([name])

    def set_aside(self, task: Task) -> None:
        """Leave a slot alone for a while: somebody outside of the study is at its run."""
        self._busy[f"{task.claim.board.study.study_name}/{task.claim.slot}"] = time.monotonic() + BUSY_S

    def retry_failed(self) -> int:
        """Let what failed be tried again; how many slots that are."""
        count = 0
        for board in self._all_boards():
            failed = [name for name, slot in board.slots().items() if slot.state == "failed"]
            board.add({name: {} for name in failed}, retry=failed)
            count += len(failed)
        return count

    def _all_boards(self) -> list[Board]:
        points: Sequence[Point | None] = (*(self.study.points if self.study.tuning else ()), None)
        return [self.board(point) for point in points]

    def result(self) -> StudyResult:
        """The whole study as it is now."""
        tunings, tuning = self.tunings(), self.study.tuning
        choices = self.choices(tunings)
        runs: list[PlannedRun] = []
        for point in self.study.points if tuning else ():
            for number, name in enumerate(slots_of(tuning)):  # type: ignore[arg-type]
                slot = tunings[point.key].get(name, Slot(name))
                runs += [self._planned(slot, point, TUNING, seed, number) for seed in tuning.seeds]  # type: ignore[union-attr]
        slots = self.board(None).slots()
        pairs = {point.key: (point, tuned) for point, tuned in self.confirmed(choices)}
        waiting = {} if tuning and tuning.two_objectives else {point.key: (point, None) for point in self.study.points}
        for point, tuned in {**waiting, **pairs}.values():
            for seed in self.study.seeds:
                if tuned is not None:
                    name = _confirmation(point, seed, tuned)
                    runs.append(self._planned(slots.get(name, Slot(name)), point, CONFIRMATION, seed, None, tuned))
                elif untunable(self.study, tunings[point.key]):
                    error = "no trial of its tuning ended with a value"
                    runs.append(PlannedRun(point.key, point.budget, CONFIRMATION, seed, "failed", error=error))
                else:
                    runs.append(PlannedRun(point.key, point.budget, CONFIRMATION, seed))
        return StudyResult(self.study, self.folder, self.up, tuple(runs), choices)

    def _planned(
        self, slot: Slot, point: Point, phase: str, seed: int, number: int | None, tuned: Mapping[str, Any] | None = None
    ) -> PlannedRun:
        told = slot.trial or next(reversed(slot.attempts), None)
        notes = told.user_attrs if told else {}
        run, value = notes.get(f"{RUN} {seed}"), notes.get(f"{VALUE} {seed}")
        state = {"open": "missing", "waiting": "missing"}.get(slot.state, slot.state)
        if slot.state in ("running", "pruned", "failed") and value is not None:
            state = "finished"  # this seed's run, though not all of the trial
        elif slot.state == "running" and run is None:
            state = "missing"
        folder = self.folder.parent.parent / run if run else None
        chosen = tuned if tuned is not None else _params(told)
        error = notes.get(ERROR, "") if state == "failed" else ""
        return PlannedRun(point.key, point.budget, phase, seed, state, folder, dict(chosen), number, value, error)

    def write(self) -> StudyResult:
        """Bring ``study.json`` up to date."""
        with FileLock(self.folder / ".study.lock"):
            result = self.result()
            write_json(self.folder / NAME, as_json(result))
        return result


def _confirmation(point: Point, seed: int, tuned: Mapping[str, Any]) -> str:
    """A confirmation's slot: settings that tuning chooses otherwise later are another one."""
    chosen = ", ".join(f"{key}={value}" for key, value in sorted(tuned.items()))
    return f"{point.key}, seed {seed}" + (f", {chosen}" if chosen else "")


def _params(trial: FrozenTrial | None) -> Mapping[str, Any]:
    return trial.params if trial else {}
