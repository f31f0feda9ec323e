"""No slot is lost and none is done twice, whoever is killed when, on every kind of storage."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from nava_lab.registry import PACKAGE
from nava_lab.study.claims import SLOT, TURN, WORKER, Board, Claim, is_dead, this_worker, turn, turn_of
from nava_lab.study.storage import mend, open_storage
from tests.unit.study.databases import mysql, postgresql

STRESS = Path(__file__).with_name("stress.py")


def board(place, folder, lease=60.0):
    study = optuna.create_study(storage=open_storage(str(place)), study_name="s", load_if_exists=True)
    return Board(study, folder / "lock", lease)


@pytest.fixture
def two(tmp_path):
    """Two workers' boards over one journal."""
    return [board(tmp_path / "journal.log", tmp_path) for _ in range(2)]


def dead_worker():
    """The name that a process had which is dead now."""
    code = "from nava_lab.study.claims import this_worker; print(this_worker())"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.strip()


def test_a_slot_is_claimed_once_and_its_result_is_everybodys(two):
    first, second = two
    first.add({"a": {}, "b": {}})
    second.add({"a": {}, "b": {}})
    mine, other = first.claim(["a", "b"]), second.claim(["a", "b"])
    assert (mine.slot, other.slot) == ("a", "b")
    assert first.claim(["a", "b"]) is None
    assert mine.finish([0.5])
    assert second.slots()["a"].state == "finished"
    assert len(second.slots()["a"].attempts) == 1


def test_a_dead_workers_slot_goes_on_with_the_same_parameters(two):
    first, second = two
    first.add({"a": {}})
    claim = first.claim(["a"])
    x = claim.trial.suggest_float("x", 0, 1)
    first.study._storage.set_trial_user_attr(claim._id, WORKER, dead_worker())
    second.give_up_dead()
    assert second.slots()["a"].state == "open"
    second.add({"a": {}})
    again = second.claim(["a"])
    assert again.trial.suggest_float("x", 0, 1) == x
    assert not claim.finish([1.0])  # the one that was given up has no say any more
    assert again.finish([2.0])
    assert first.slots()["a"].trial.values == [2.0]


def test_a_silent_worker_loses_its_slot_and_learns_it_and_a_beating_one_keeps_it(tmp_path):
    lease = 2.0  # of which a busy machine may hold a beat back for most
    first, second = board(tmp_path / "j", tmp_path, lease), board(tmp_path / "j", tmp_path, lease)
    first.add({"a": {}})
    with first.claim(["a"]) as claim:
        limit = time.monotonic() + 1.5 * lease
        while time.monotonic() < limit:
            second.give_up_dead()
            time.sleep(0.05)
        assert second.slots()["a"].state == "running"
        assert not claim.lost
        second.study._storage.set_trial_state_values(claim._id, TrialState.FAIL)  # as one that took it for dead
        time.sleep(lease)
        assert claim.lost
    second.add({"a": {}})
    silent = second.claim(["a"])  # never beats
    first.give_up_dead()
    time.sleep(1.1 * lease)
    first.give_up_dead()
    assert first.slots()["a"].state == "open"
    assert not silent.finish([1.0])


def test_of_two_attempts_the_first_counts(two):
    first, second = two
    for _ in range(2):  # two workers that saw the same need at once
        first.study.enqueue_trial({}, user_attrs={SLOT: "a"})
    claim = first.claim(["a"])
    late = second.study.get_trials(deepcopy=False)[1]
    assert second.study._storage.set_trial_state_values(late._trial_id, TrialState.RUNNING)
    assert second._is_doubled("a", late.number)
    assert not first._is_doubled("a", 0)
    assert claim.finish([1.0])
    assert second.claim(["a"]) is None


def test_what_failed_stays_failed_until_it_is_retried(two):
    first, second = two
    first.add({"a": {}})
    first.claim(["a"]).fail("ValueError: too bad")
    second.add({"a": {}})
    assert second.claim(["a"]) is None
    assert second.slots()["a"].state == "failed"
    second.add({"a": {}}, retry=["a"])
    assert second.claim(["a"]).finish([1.0])
    assert first.slots()["a"].state == "finished"


def test_this_process_lives_and_another_place_is_never_known_to_be_dead():
    assert not is_dead(this_worker())
    assert is_dead(dead_worker())
    assert not is_dead("elsewhere|1|0")


def test_a_line_cut_short_by_a_kill_is_cut_off(tmp_path):
    one = board(tmp_path / "j", tmp_path)
    one.add({"a": {}})
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    two = board(tmp_path / "j", tmp_path)
    assert two.claim(["a"]).finish([1.0])
    assert board(tmp_path / "j", tmp_path).slots()["a"].state == "finished"
    mend(tmp_path / "j")


def stress(place, folder, slots=16, workers=3, kills=6):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, str(STRESS), str(place), str(folder), str(slots), "30"]
    running, killed = [subprocess.Popen(command, env=env) for _ in range(workers)], []
    chance = random.Random(0)
    limit = time.monotonic() + 120
    while any(process.poll() is None for process in running):
        assert time.monotonic() < limit
        time.sleep(0.1)
        begun = (folder / "begun").read_text().split("\n") if (folder / "begun").exists() else []
        if len(killed) < kills and len(begun) > 2 * (len(killed) + 1):
            victim = chance.choice([process for process in running if process.poll() is None])
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            killed.append(victim.pid)
            running[running.index(victim)] = subprocess.Popen(command, env=env)
    assert all(process.returncode == 0 for process in running)
    done = Counter((folder / "done").read_text().splitlines())
    assert len(killed) == kills
    # A worker killed between its result and its line has done the slot and not said so: none twice, and none missing in storage.
    assert set(done.values()) == {1}
    study = optuna.load_study(study_name="stress", storage=open_storage(str(place)))
    finished = Counter(trial.user_attrs[SLOT] for trial in study.trials if trial.state == TrialState.COMPLETE)
    assert finished == Counter({f"slot {number}": 1 for number in range(slots)})
    assert len(done) >= slots - kills


def test_workers_killed_at_random_lose_and_double_nothing_in_a_journal(tmp_path):
    stress(tmp_path / "journal.log", tmp_path)


def test_workers_killed_at_random_lose_and_double_nothing_in_postgresql(tmp_path):
    with postgresql(tmp_path / "pg") as url:
        stress(url, tmp_path, slots=12, workers=2, kills=3)


def test_workers_killed_at_random_lose_and_double_nothing_in_mysql(tmp_path):
    with mysql(tmp_path / "my") as url:
        stress(url, tmp_path, slots=8, workers=2, kills=2)


def test_the_turn_is_held_by_one_and_given_back_by_the_dead(tmp_path):
    """Two workers at two boards of a study, who share no lock of files."""
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = (board(tmp_path / "j", tmp_path / name, lease=2.0) for name in "ab")
    held, waited = [], []

    def wait():
        with turn(second):
            waited.append(len(held))

    with turn(first):
        other = threading.Thread(target=wait)
        other.start()
        time.sleep(2.5)  # longer than a lease: its holder beats
        held.append(True)
    other.join(20)
    assert waited == [1]
    study = optuna.load_study(study_name=turn_of(first.study.study_name), storage=first.study._storage)
    study.enqueue_trial({}, user_attrs={SLOT: TURN, WORKER: dead_worker()})
    assert study._storage.set_trial_state_values(study.trials[-1]._trial_id, TrialState.RUNNING)
    wait()
    assert waited == [1, 1]


def test_a_storage_that_cannot_be_opened_says_so_without_its_password():
    pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match=r"postgresql://\.\.\.@127.0.0.1:1/none") as error:
        open_storage("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)


def test_a_claim_is_a_context(two):
    two[0].add({"a": {}})
    claim = two[0].claim(["a"])
    assert isinstance(claim, Claim)
    with claim:
        pass
    assert two[1].slots()["a"].state == "open"  # what has not ended within it is given back
    assert not claim.release()
    two[0].add({"a": {}})
    with two[0].claim(["a"]) as claim:
        assert claim.finish([1.0])
    assert two[1].slots()["a"].state == "finished"
