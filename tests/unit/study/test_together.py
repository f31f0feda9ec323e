"""Who takes which seeds together, what each of them ends as, and what no worker trains together."""

import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from nava_lab.study import ledger as ledger_module
from nava_lab.study import run as runs
from nava_lab.study import worker as workers
from nava_lab.study.claims import WORKER, this_worker
from nava_lab.study.conduct import Wish, share
from nava_lab.study.failures import RunFailed
from nava_lab.study.ledger import Ledger, folder_of
from nava_lab.study.run import RunBusy
from nava_lab.study.spec import read_study
from nava_lab.study.worker import Worker

STUDY = """# Who trains which seeds?
fixed: {world: gaussian, experiment: smoke, variant: unified, variant.depth: 2, budget.parameters: 60_000, logger: none}
metric: cross_modal_use
"""
TWO = "{training.batch_size: [4, 8]}"


@pytest.fixture
def ledgers(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "basis_of", lambda study, point: point.key)  # nothing here changes a config

    def make(more="seeds: 8\n", count=1, points="{}", lease_s=60.0):
        (tmp_path / "shares.yaml").write_text(f"{STUDY}vary: {points}\n{more}")
        study = read_study(tmp_path / "shares.yaml")
        folder = folder_of(tmp_path / "runs", study)
        return [Ledger(study, folder, str(folder / "journal.log"), lease_s) for _ in range(count)]

    return make


def taken(ledger, together):
    """What a worker takes at once: some seeds of one point."""
    task = ledger.next()
    tasks = [task, *ledger.alike(task, together - 1)] if task else []
    assert len({part.point.key for part in tasks}) <= 1
    return tasks


def test_a_worker_takes_one_points_seeds_and_another_the_next_points(ledgers):
    first, second = ledgers(count=2, points=TWO)
    one, two = taken(first, 8), taken(second, 8)
    assert [part.seeds for part in one] == [part.seeds for part in two] == [(seed,) for seed in range(8)]
    assert {one[0].point.key, two[0].point.key} == {"batch_size=4", "batch_size=8"}
    assert taken(first, 8) == []
    for task in [*one, *two]:
        assert task.claim.release()
    assert [len(taken(ledger, 3)) for ledger in (first, second)] == [3, 3]  # no more than was asked for
    assert [len(taken(ledger, 1)) for ledger in (first, second)] == [1, 1]
    assert [len(taken(ledger, 8)) for ledger in (first, second, first)] == [4, 4, 0]  # of a point what is left


def test_workers_share_what_is_left():
    wishes = [Wish(Path("q.yaml"), workers=workers, together=together) for workers, together in ((1, 8), (2, 8), (3, 8), (2, 1))]
    assert [share(wish, 32) for wish in wishes] == [8, 8, 8, 1]
    assert [share(wish, 8) for wish in wishes] == [8, 4, 3, 1]
    assert [share(wish, 0) for wish in wishes] == [1, 1, 1, 1]


def test_all_seeds_of_a_worker_that_dies_are_taken_by_the_next_one(ledgers):
    first, second = ledgers(count=2)
    held = taken(first, 8)
    for task in held:
        first.storage.set_trial_user_attr(task.claim._id, WORKER, this_worker().rpartition("|")[0] + "|never")
    again = taken(second, 8)
    assert [task.claim.slot for task in again] == [task.claim.slot for task in held]
    assert not any(task.claim.finish([1.0]) for task in held)
    assert all(task.claim.finish([2.0]) for task in again)


def made(config, root):
    folder = root / runs.run_name(config.resolved, config.world.data_version())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "identity.json").write_text(json.dumps(runs.identify(config)))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 20, "validation/loss": float(config.seed)}) + "\n")
    scores = {"cross_modal_use": {"value": float(config.seed)}, "loss": {"value": float(config.seed)}}
    (folder / "record.json").write_text(json.dumps({"schema": 1, "steps": 20, "scores": scores}))
    return folder


def test_each_seed_ends_as_it_did_and_those_that_were_not_tried_are_open(ledgers, monkeypatch, tmp_path):
    """One finishes, one fails, another process is at one; then an error ends what is left, and was none of the last one's."""
    (ledger,) = ledgers("seeds: 5\n")

    def run_seeds(configs, tell, watchers, ended):
        ended(0, made(configs[0], tmp_path / "runs"))
        ended(1, ValueError("too bad"))
        ended(2, RunBusy("somebody else"))
        ended(3, RunFailed("no memory", "MemoryError"))
        raise RunFailed("no memory", "MemoryError")

    monkeypatch.setattr(workers, "run_seeds", run_seeds)
    Worker(ledger, print, together=5).do(ledger.next())
    slots = ledger.board(None).slots()
    assert Counter(slot.state for slot in slots.values()) == {"finished": 1, "failed": 2, "open": 2}
    errors = {slot.trial.user_attrs["error"] for slot in slots.values() if slot.state == "failed"}
    assert errors == {"ValueError: too bad", "RunFailed: no memory"}
    left = taken(ledger, 5)
    assert [task.seeds for task in left] == [(4,)]  # the one that another process is at is set aside for a while


def test_a_lost_claim_ends_the_training_and_gives_the_other_seeds_back(ledgers, monkeypatch, tmp_path):
    """One of three is given up by somebody who took this worker for dead; a worker then goes on with all three."""
    (ledger,) = ledgers("seeds: 3\n", lease_s=0.3)
    told, first = [], ledger.next()

    def run_seeds(configs, tell, watchers, ended):
        claim = first.claim
        claim.board.study._storage.set_trial_state_values(claim._id, TrialState.FAIL)
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            watchers[0].on_train_batch_end(SimpleNamespace(is_global_zero=True, world_size=1, global_step=3), None, None, None, 0)
            time.sleep(0.01)

    monkeypatch.setattr(workers, "run_seeds", run_seeds)
    Worker(ledger, told.append, together=3).do(first)
    assert sum(": given up (" in line for line in told) == 3
    slots = ledger.board(None).slots()
    assert [slot.state for slot in slots.values()] == ["open"] * 3
    again = taken(ledger, 3)
    assert [task.claim.slot for task in again] == [*slots]


def test_an_error_before_any_seed_was_tried_fails_them_all(ledgers, monkeypatch):
    (ledger,) = ledgers("seeds: 3\n")

    def run_seeds(configs, tell, watchers, ended):
        raise KeyError("video")

    monkeypatch.setattr(workers, "run_seeds", run_seeds)
    Worker(ledger, print, together=3).work()
    assert ledger.result().counts() == {"finished": 0, "failed": 3, "running": 0, "pruned": 0, "missing": 0}


TUNING = "seeds: 1\ntuning: {{space: {{training.lr: {{values: [1e-3, 1e-2], closed: both}}}}, sampler: grid, seeds: 3, metric: validation/loss{more}}}\n"


@pytest.mark.parametrize(("pruner", "calls"), [("", [2, 1]), (", pruner: halving", [])])
def test_a_trials_seeds_are_trained_together_unless_a_pruner_looks_at_each(ledgers, monkeypatch, tmp_path, pruner, calls):
    (ledger,) = ledgers(TUNING.format(more=pruner))
    found, single = [], []

    def run_seeds(configs, tell, watchers, ended):
        found.append(len(configs))
        for config in configs:
            assert config.evaluation.split == "validation"
            ended(config.seed, made(config, tmp_path / "runs"))

    def run(config, tell, watchers):
        single.append(config.seed)
        made(config, tmp_path / "runs")

    monkeypatch.setattr(workers, "run_seeds", run_seeds)
    monkeypatch.setattr(workers, "run", run)
    Worker(ledger, print, together=2).do(ledger.next())
    assert ledger.result().counts("tuning")["finished"] == 3
    assert (found, len(single)) == (calls, 0 if calls else 3)
    if calls:  # what a trial that saw each run would have been told
        seeds = ledger.study.tuning.seeds
        (slots,) = ledger.tunings().values()
        told = {20 * (number + 1): float(seed) for number, seed in enumerate(seeds)}
        assert [slot.trial.intermediate_values for slot in slots.values()] == [told]
