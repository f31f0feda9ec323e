"""A study as its storage tells it: what is left to do, who is at what, and what has come out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from nava_lab.config import load
from nava_lab.study.basis import basis_of
from nava_lab.study.claims import BEAT, BEATS_PER_LEASE, ERROR, SLOT, WORKER, Board, Claim, Slot, is_dead, turn_of
from nava_lab.study.grammar import StudyError
from nava_lab.study.identity import code_fingerprint, variant_fingerprint
from nava_lab.study.record import write_json
from nava_lab.study.results import CONFIRMATION, NAME, TUNING, Choice, PlannedRun, StudyResult, as_json, front_point
from nava_lab.study.run import state_of
from nava_lab.study.spec import Point, Study
from nava_lab.study.storage import open_storage
from nava_lab.study.tuning import choose, direction, higher_is_better, sampler_of, slots_of, tuning_study, untunable

RUN, VALUE = "run", "value"  # of an attempt, with the seed: the run's folder, and what came out of it
CODE = "code"  # of an attempt: what code made it
BUSY_S = 5.0


class Changed(StudyError):
    """The config or the data of a study are no longer what this worker began with."""


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

    What other code, another config or other data made is told apart by its name: a trial's or confirmation's slot carries
    the code of the package and of its variant, its resolved config and the data's version. So a changed revision, default or
    folder of clips finds its own slots open, and a sampler learns from trials like its own alone. A slot whose run is gone
    from the folder of runs when a worker comes counts as open.

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
        self._codes: dict[str, str] = {}
        self._bases: dict[str, str] = {}

    def code(self, point: Point) -> str:
        """What makes a point's runs: the package's code, its variants' code, and PyTorch (``identity.MADE_BY``)."""
        if point.key not in self._codes:
            tuned = [part.values for part in self.study.tuning.space if part.key == "variant"] if self.study.tuning else []
            named = {**self.study.fixed, **point.settings}.get("variant")
            names = [named] if named else [*tuned[0]] if tuned else [load(self.study.overrides(point, 0)).variant.name]
            self._codes[point.key] = "-".join([code_fingerprint(), *map(variant_fingerprint, names), torch.__version__])
        return self._codes[point.key]

    def _basis(self, point: Point) -> str:
        """The config and data of a point's runs, as this worker met them."""
        if point.key not in self._bases:
            self._bases[point.key] = basis_of(self.study, point)
        return self._bases[point.key]

    def check_unchanged(self, point: Point) -> None:
        """Changed, where a run of the point would now be made by another config or of other data than its slot says."""
        if basis_of(self.study, point) != self._basis(point):
            raise Changed(
                f"{self.folder}: the config or the data of {point.key} have changed since this worker began: the same command "
                "starts what they change anew, and with the old ones back it goes on as before"
            )

    def _mark(self, point: Point) -> str:
        """The end of the names of a point's slots and trials."""
        return f" @{hashlib.sha256(f'{self.code(point)}-{self._basis(point)}'.encode()).hexdigest()[:8]}"

    def board(self, point: Point | None) -> Board:
        """The slots of a point's tuning; of all confirmations for None."""
        key = f"{self.folder.name}/{CONFIRMATION if point is None else point.key + self._mark(point)}"
        if key not in self._boards:
            if point is None:
                made = optuna.create_study(
                    storage=self.storage, study_name=key, directions=[direction(self.up)], load_if_exists=True
                )
            else:
                assert self.study.tuning is not None
                made = tuning_study(self.storage, key, self.study.tuning)
            self._boards[key] = Board(made, self.folder / ".slots.lock", self.lease_s, self._is_there)
        return self._boards[key]

    def _is_there(self, trial: FrozenTrial) -> bool:
        """Whether every run that an ended attempt noted still has its record, made by this code."""
        runs = [run for key, run in trial.user_attrs.items() if key.startswith(f"{RUN} ")]
        return all(state_of(self.folder.parent.parent / run) == "finished" for run in runs)

    def gone(self) -> int:
        """How many finished slots are open again because their runs were deleted, or made anew by other code."""
        return sum(
            slot.state == "open" and any(trial.state == TrialState.COMPLETE for trial in slot.attempts)
            for board in self._all_boards()
            for name, slot in board.slots().items()
            if not self._foreign(board, name)
        )

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
                claim = self._claim(board, slots, self._confirmation(point, seed, tuned), {}, point)
                if claim is not None:
                    return Task(claim, point, CONFIRMATION, (seed,), tuned)
        return None

    def alike(self, task: Task, most: int) -> Iterator[Task]:
        """Claim confirmations, up to ``most``, that differ from a claimed one in nothing but the seed.

        A tuning trial's runs are all within its slot: nothing is like it.
        """
        board = self.board(None)
        slots = board.slots() if most > 0 else {}
        for seed in self.study.seeds if task.phase == CONFIRMATION else ():
            if most < 1:
                return
            claim = self._claim(board, slots, self._confirmation(task.point, seed, task.tuned), {}, task.point)
            if claim is not None:
                most -= 1
                yield Task(claim, task.point, CONFIRMATION, (seed,), task.tuned)

    def _tuning_candidates(self, tunings: Mapping[str, Mapping[str, Slot]]) -> Iterable[Task]:
        tuning = self.study.tuning
        if tuning is None:
            return
        for name, fixed in slots_of(tuning).items():
            for point in self.study.points:
                board = self.board(point)
                board.study.sampler = sampler_of(
                    tuning, self.folder.name, point.key, name, len(board.study.get_trials(deepcopy=False))
                )
                claim = self._claim(board, tunings[point.key], name, fixed, point)
                if claim is not None:
                    yield Task(claim, point, TUNING, tuning.seeds, {})

    def _claim(self, board: Board, slots: Mapping[str, Slot], name: str, fixed: Mapping[str, Any], point: Point) -> Claim | None:
        state = slots[name].state if name in slots else "open"
        key = f"{board.study.study_name}/{name}"
        if state not in ("open", "waiting") or self._busy.get(key, 0.0) > time.monotonic():
            return None
        if state == "open":
            board.add({name: fixed})
        claim = board.claim([name])
        if claim is not None:
            claim.note(CODE, self.code(point))
        return claim

    def set_aside(self, task: Task) -> None:
        """Leave a slot alone for a while: somebody outside of the study is at its run."""
        self._busy[f"{task.claim.board.study.study_name}/{task.claim.slot}"] = time.monotonic() + BUSY_S

    def retry_failed(self) -> int:
        """Let what failed be tried again; how many slots that are."""
        count = 0
        for board in self._all_boards():
            slots = board.slots().items()
            failed = [name for name, slot in slots if slot.state == "failed" and not self._foreign(board, name)]
            board.add({name: {} for name in failed}, retry=failed)
            count += len(failed)
        return count

    def _foreign(self, board: Board, slot: str) -> bool:
        """Whether a slot is of other code, config or data than this; a tuning's board as a whole is of one."""
        return board is self.board(None) and slot.rpartition(" @")[2] not in self._own_marks()

    def _own_marks(self) -> set[str]:
        points = list(self.study.points)
        if self.study.tuning and self.study.tuning.two_objectives:
            points = [point for point, _ in self.confirmed(self.choices(self.tunings()))]
        return {self._mark(point).removeprefix(" @") for point in points}

    def foreign(self) -> list[FrozenTrial]:
        """Attempts that other code, another config or other data made, or make: nothing of them is used here."""
        own, prefix = {board.study.study_name for board in self._all_boards()}, f"{self.folder.name}/"
        own.add(turn_of(prefix))
        others = [name for name in optuna.get_all_study_names(self.storage) if name.startswith(prefix) and name not in own]
        found = [
            trial
            for name in others
            for trial in optuna.load_study(study_name=name, storage=self.storage).get_trials(deepcopy=False)
        ]
        board = self.board(None)
        return found + [
            trial
            for trial in board.study.get_trials(deepcopy=False)
            if SLOT in trial.user_attrs and self._foreign(board, trial.user_attrs[SLOT])
        ]

    def tell_apart(self) -> str:
        """What of this study is of other code, config or data, in words; StudyError while such work is still being done."""
        running = self._running_elsewhere()
        if running:
            time.sleep(1.5 * self.lease_s / BEATS_PER_LEASE)
            alive = [
                trial
                for number, trial in self._running_elsewhere().items()
                if number not in running or running[number].user_attrs.get(BEAT) != trial.user_attrs.get(BEAT)
            ]
            if alive:
                raise StudyError(
                    f"{self.folder} is being worked at with {self._unlike(alive[0])} ({alive[0].user_attrs[WORKER]}): let it "
                    "end, or take the same revision, configs and data here"
                )
        ended = [self._unlike(trial) for trial in self.foreign() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        told = [f"{ended.count(what)} with {what}" for what in dict.fromkeys(ended)]
        return f"of its trials and confirmations, {' and '.join(told)} were made: none is used" if told else ""

    def _unlike(self, trial: FrozenTrial) -> str:
        """In what an attempt that is not of this study as it is now differs."""
        own = {self.code(point) for point in self.study.points}
        return "another config or other data" if trial.user_attrs.get(CODE) in own else "other code"

    def _running_elsewhere(self) -> dict[int, FrozenTrial]:
        """By number, the attempts of other code, config or data whose worker is not known to be dead."""
        return {
            trial._trial_id: trial
            for trial in self.foreign()
            if trial.state == TrialState.RUNNING and WORKER in trial.user_attrs and not is_dead(trial.user_attrs[WORKER])
        }

    def _confirmation(self, point: Point, seed: int, tuned: Mapping[str, Any]) -> str:
        """A confirmation's slot: settings that tuning chooses otherwise later are another one, and so is what its mark tells."""
        chosen = ", ".join(f"{key}={value}" for key, value in sorted(tuned.items()))
        return f"{point.key}, seed {seed}" + (f", {chosen}" if chosen else "") + self._mark(point)

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
                    name = self._confirmation(point, seed, tuned)
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
        gone = told is not None and slot.trial is None and told.state == TrialState.COMPLETE
        notes = told.user_attrs if told and not gone else {}
        run, value = notes.get(f"{RUN} {seed}"), notes.get(f"{VALUE} {seed}")
        state = {"open": "missing", "waiting": "missing"}.get(slot.state, slot.state)
        if slot.state in ("running", "pruned", "failed") and value is not None:
            state = "finished"  # this seed's run, though not all of the trial
        elif slot.state == "running" and run is None:
            state = "missing"
        folder = self.folder.parent.parent / run if run else None
        chosen = tuned if tuned is not None else _params(told)
        error = notes.get(ERROR, "") if state == "failed" else ""
        code = notes.get(CODE, "")
        return PlannedRun(point.key, point.budget, phase, seed, state, folder, dict(chosen), number, value, error, code)

    def write(self) -> StudyResult:
        """Bring ``study.json`` up to date."""
        with FileLock(self.folder / ".study.lock"):
            result = self.result()
            write_json(self.folder / NAME, as_json(result))
        return result


def _params(trial: FrozenTrial | None) -> Mapping[str, Any]:
    return trial.params if trial else {}
