"""Who does what: units of work that several workers share, none lost and none done twice.

A unit is a *slot*. Its attempts are trials of one Optuna study, marked with the slot's name, so whatever storage holds the
trials also settles who works on what; the only primitive needed is that a waiting trial starts for one caller alone.

- A worker claims a slot by starting a waiting attempt, and then keeps the attempt's ``beat`` counting.
- An attempt whose beat stands still for the length of a lease, or whose worker is a dead process of this machine, is given up by
  whoever sees it, and a new attempt with the same parameters takes its place; so the new attempt finds the old one's checkpoints.
- Beats are compared with the observer's own clock: machines need not agree on the time.
- Where two attempts of a slot come to exist (two workers saw the same need), the one with the lower number counts.
- A worker that was given up while it lived (paused, or cut off) learns so from its next beat, and ends its run.
- A worker may hold several claims. Each beats and ends by itself, and one that is lost is lost alone.
- What one worker at a time may do (to choose a point that nobody has) is a slot as well: the ``turn``.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

SLOT, WORKER, BEAT, ERROR = "slot", "worker", "beat", "error"
FIXED = "fixed_params"  # what Optuna keeps of a trial that was enqueued with parameters
BEATS_PER_LEASE = 6
TURN, TURN_POLL_S = "turn", 0.05


def this_worker() -> str:
    """This process, told apart from any other on any machine: place, process id, start."""
    return f"{_place()}|{os.getpid()}|{_started(os.getpid())}"


def _place() -> str:
    """The machine (since it was booted) and the process namespace; ids of processes mean something within one place."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(Path(path).read_text().strip() if "boot" in path else os.readlink(path))
        except OSError:  # not Linux: the host's name has to do
            continue
    return "/".join(parts)


def _started(pid: int) -> str:
    """When a process began, as its system counts; "0" where that cannot be told, "" where it does not exist."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return "" if after[0] in "ZX" else after[19]


def is_dead(worker: str) -> bool:
    """Whether a worker is known to be dead: a process of this place that does not exist any more."""
    place, pid, started = worker.rsplit("|", 2)
    return place == _place() and _started(int(pid)) != started


@dataclass
class Slot:
    """A unit of work as its attempts tell it.

    ``state``: "open" (nobody is on it), "waiting" (to be claimed), "running", "finished", "pruned" or "failed".
    """

    name: str
    state: str = "open"
    trial: FrozenTrial | None = None  # the attempt that decides
    attempts: list[FrozenTrial] = field(default_factory=list)


class Board:
    """The slots of one Optuna study, seen by one worker.

    Args:
        study: holds the attempts.
        lock: a file whose lock keeps workers of one file system from adding the same slot at once (a courtesy: a doubled
            attempt is sorted out all the same).
        lease_s: seconds without a beat after which an attempt is given up.
        is_there: whether what an ended attempt left behind is still there. Asked when the board is made alone: what ends
            meanwhile may come late over a network's file system.
    """

    def __init__(
        self,
        study: optuna.Study,
        lock: Path,
        lease_s: float = 60.0,
        is_there: Callable[[FrozenTrial], bool] = lambda trial: True,
    ):
        self.study, self.lock, self.lease_s = study, lock, lease_s
        self._seen: dict[int, tuple[Any, float]] = {}
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self._gone = {trial._trial_id for trial in ended if SLOT in trial.user_attrs and not is_there(trial)}

    def slots(self) -> dict[str, Slot]:
        """Every slot that was ever added."""
        by_name: dict[str, list[FrozenTrial]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if SLOT in trial.user_attrs:
                by_name.setdefault(trial.user_attrs[SLOT], []).append(trial)
        return {name: self._slot(name, attempts) for name, attempts in by_name.items()}

    def _slot(self, name: str, attempts: list[FrozenTrial]) -> Slot:
        def first(*states: TrialState) -> FrozenTrial | None:
            return next((trial for trial in attempts if trial.state in states), None)

        # The last that ended: one before it was made again because what it left behind was gone.
        if (trial := next((trial for trial in reversed(attempts) if self._is_done(trial)), None)) is not None:
            return Slot(name, "finished", trial, attempts)
        if (trial := first(TrialState.PRUNED)) is not None:
            return Slot(name, "pruned", trial, attempts)
        if (trial := first(TrialState.RUNNING, TrialState.WAITING)) is not None:
            return Slot(name, "running" if trial.state == TrialState.RUNNING else "waiting", trial, attempts)
        errors = [trial for trial in attempts if ERROR in trial.user_attrs]
        return Slot(name, "failed", errors[-1], attempts) if errors else Slot(name, "open", None, attempts)

    def _is_done(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.COMPLETE and trial._trial_id not in self._gone

    def add(self, wanted: Mapping[str, Mapping[str, Any]], retry: Iterable[str] = ()) -> None:
        """Let every wanted slot (with its fixed parameters) have an attempt; failed ones in ``retry`` get a new one."""
        with FileLock(self.lock):
            slots, retry = self.slots(), set(retry)
            for name, fixed in wanted.items():
                slot = slots.get(name, Slot(name))
                if slot.state == "open" or (slot.state == "failed" and name in retry):
                    # An attempt that was given up may have sampled its parameters already: the next one keeps them.
                    known = next((part for part in map(_point, reversed(slot.attempts)) if part), {})
                    self.study.enqueue_trial({**known, **fixed}, user_attrs={SLOT: name})

    def tried(self, but: str) -> set[tuple[tuple[str, Any], ...]]:
        """The points, as sorted parameters, that attempts of all slots ``but`` one are at or were at, or are to be at."""
        found = set()
        for trial in self.study.get_trials(deepcopy=False):
            if trial.user_attrs.get(SLOT, but) != but:
                found.add(tuple(sorted(_point(trial).items())))
        return found

    def give_up_dead(self) -> None:
        """Give up the attempts of workers that are dead or silent."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if SLOT in trial.user_attrs and self._is_stale(trial):
                _finish(self.study, trial._trial_id, TrialState.FAIL)

    def _is_stale(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker is not None and is_dead(worker):
            return True
        beat, now = trial.user_attrs.get(BEAT), time.monotonic()
        known, since = self._seen.get(trial._trial_id, (None, None))
        if since is None or known != beat:
            self._seen[trial._trial_id] = (beat, now)
            return False
        return now - since > self.lease_s

    def claim(self, order: Sequence[str]) -> Claim | None:
        """Start an attempt of the first slot in ``order`` that waits for one; None where none does."""
        slots = self.slots()
        for name in order:
            slot = slots.get(name)
            if slot is None or slot.state != "waiting":
                continue
            assert slot.trial is not None
            mine = slot.trial._trial_id
            try:
                if not self.study._storage.set_trial_state_values(mine, TrialState.RUNNING):
                    continue
            except UpdateFinishedTrialError:
                continue
            if self._is_doubled(name, slot.trial.number):
                _finish(self.study, mine, TrialState.FAIL)
                continue
            return Claim(self, name, mine)
        return None

    def _is_doubled(self, name: str, number: int) -> bool:
        """Whether another attempt of the slot counts instead of attempt ``number``."""
        for trial in self.slots()[name].attempts:
            done = self._is_done(trial) or trial.state == TrialState.PRUNED
            if done or (trial.number < number and trial.state in (TrialState.RUNNING, TrialState.WAITING)):
                return True
        return False


class Claim:
    """One worker's hold on a slot; use it as a context, within which its beat goes on, and which gives back what has not ended.

    Attributes:
        slot: its name.
        trial: the attempt, to suggest from and report to.
    """

    def __init__(self, board: Board, slot: str, trial_id: int):
        self.board, self.slot, self._id = board, slot, trial_id
        self._beat, self._end, self._gone = 0, threading.Event(), threading.Event()
        self._said, self._ended = time.monotonic(), False
        self.board.study._storage.set_trial_user_attr(trial_id, WORKER, this_worker())
        self.trial = optuna.Trial(board.study, trial_id)
        self._thread = threading.Thread(target=self._go_on, daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if not self._ended:
            self.release()

    @property
    def lost(self) -> bool:
        """Whether somebody else took over, or may have."""
        return self._gone.is_set()

    def _go_on(self) -> None:
        while not self._end.wait(self.board.lease_s / BEATS_PER_LEASE):
            self._beat += 1
            try:
                self.board.study._storage.set_trial_user_attr(self._id, BEAT, self._beat)
                self._said = time.monotonic()
            except (UpdateFinishedTrialError, KeyError):
                self._gone.set()
                return
            except Exception:  # storages raise what their drivers raise; silence for a whole lease means that others take over
                if time.monotonic() - self._said > self.board.lease_s:
                    self._gone.set()
                    return

    @property
    def fixed(self) -> Mapping[str, Any]:
        """The parameters that the attempt was added with, or fixed at since."""
        return self.board.study._storage.get_trial(self._id).system_attrs.get(FIXED, {})

    def fix(self, parameters: Mapping[str, Any]) -> None:
        """Let the attempt be at these parameters, whatever its study's sampler would say."""
        self.board.study._storage.set_trial_system_attr(self._id, FIXED, dict(parameters))
        self.trial = optuna.Trial(self.board.study, self._id)

    def note(self, key: str, value: Any) -> None:
        self.trial.set_user_attr(key, value)

    def finish(self, values: Sequence[float]) -> bool:
        """Whether the result counts: not if the slot was given up meanwhile."""
        return self._tell(values=list(values))

    def prune(self) -> bool:
        return self._tell(state=TrialState.PRUNED)

    def _tell(self, **result: Any) -> bool:
        self._ended = True
        try:
            self.board.study.tell(self.trial, **result)
        except UpdateFinishedTrialError:
            return False
        except ValueError:  # what tell raises where the trial was given up before
            if self.board.study._storage.get_trial(self._id).state != TrialState.RUNNING:
                return False
            raise
        return True

    def fail(self, error: str) -> bool:
        """Failed for a reason of its own: not tried again until somebody asks for it."""
        self._ended = True
        try:
            self.note(ERROR, error)
        except UpdateFinishedTrialError:
            return False
        return _finish(self.board.study, self._id, TrialState.FAIL)

    def release(self) -> bool:
        """Give the slot back: the next one to see it goes on where this one stopped."""
        self._ended = True
        return _finish(self.board.study, self._id, TrialState.FAIL)


def turn_of(study_name: str) -> str:
    """The Optuna study that holds the turn of a study's boards: their names begin with its folder."""
    return f"{study_name.split('/')[0]}/{TURN}"


@contextmanager
def turn(of: Board) -> Iterator[None]:
    """Wait for the turn among all workers of a study, and hold it.

    It is as safe as claims are, being one: between machines that share nothing but the storage, and when its holder dies.
    """
    study = optuna.create_study(storage=of.study._storage, study_name=turn_of(of.study.study_name), load_if_exists=True)
    board = Board(study, of.lock, of.lease_s)
    while True:
        board.give_up_dead()
        board.add({TURN: {}})
        claim = board.claim([TURN])
        if claim is not None:
            break
        time.sleep(TURN_POLL_S)
    with claim:
        yield


def _point(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters that an attempt is at, or is to be at."""
    return {**trial.system_attrs.get(FIXED, {}), **trial.params}


def _finish(study: optuna.Study, trial_id: int, state: TrialState) -> bool:
    """End an attempt; whether it was this call that did."""
    try:
        return study._storage.set_trial_state_values(trial_id, state)
    except UpdateFinishedTrialError:
        return False
