"""A study whose workers train the seeds of a point in one process: the same runs and records, killed, lost, fallen or not."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from nava_lab.cli import main
from nava_lab.registry import PACKAGE
from nava_lab.study import worker as workers
from nava_lab.study.conduct import Wish, conduct
from nava_lab.study.ledger import Ledger, folder_of
from nava_lab.study.worker import Share, Worker
from nava_lab.training.callbacks import Watch
from nava_lab.training.log import read_log
from tests.integration.test_seeds import assert_same_run

STUDY = """# Do seeds that are trained in one process end as seeds that are not?
fixed:
  world: gaussian
  variant: unified
  variant.depth: 2
  experiment: smoke
  trainer: cpu
  budget.parameters: 60_000
  training: {steps: 12, batch_size: 4, validation_clips: 4, validations: 2, checkpoints: 3}
  evaluation: {clips: 4, loss_clips: 4, previews: 0}
  logger: none
vary: {}
seeds: 3
metric: cross_modal_use
"""


def study(together=1, retry_failed=False):
    """Conduct the study of this folder; what is told, and how it ends."""
    told = []
    return told, conduct(Wish(Path("question.yaml"), together=together, retry_failed=retry_failed), told.append)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "question.yaml").write_text(STUDY)
    return tmp_path


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """The study as it ends where seeds are trained one after another."""
    folder = tmp_path_factory.mktemp("one_by_one")
    (folder / "question.yaml").write_text(STUDY)
    before = os.getcwd()
    os.chdir(folder)
    try:
        result = study()[1]
    finally:
        os.chdir(before)
    return replace(result, folder=folder / result.folder, runs=[replace(run, folder=folder / run.folder) for run in result.runs])


def assert_ends_alike(result, one_by_one, seeds=(0, 1, 2)):
    """The same study, to rounding: its name and plan, and for each of these seeds its run."""
    assert result.folder.name == one_by_one.folder.name
    for run, single in zip(result.runs, one_by_one.runs, strict=True):
        assert (run.point, run.phase, run.seed) == (single.point, single.phase, single.seed)
        if run.seed in seeds:
            assert run.state == "finished"
            assert_same_run(run.folder, single.folder)
            assert run.value == pytest.approx(single.value, rel=1e-3, abs=1e-5)


def test_a_killed_study_goes_on_from_its_checkpoints_and_ends_as_one_of_single_runs(here, one_by_one):
    """SIGKILL takes the only worker, with all of its claims; and what was done together is found by a study that does not."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nava_lab", "study", "question.yaml", "--together", "3"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 300
        while len(list(here.glob("runs/*/checkpoints/*.ckpt"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not list(here.glob("runs/*/record.json"))
    told, result = study(together=3)
    assert any("3 seeds (0, 1, 2) in one training" in line for line in told)
    assert sum("continuing from" in line for line in told) == 3
    assert sum(line.endswith(" s with 2 more)") for line in told) == 3
    assert_ends_alike(result, one_by_one)
    told, _ = study()
    assert told[-1].endswith("3 runs, all checked; 3 finished before")  # and nothing was taken up again


class Meddling(Watch):
    """Does something to the training in its fifth step."""

    def on_train_batch_end(self, trainer, pl_module, *rest):
        if trainer.global_step == 5:
            self.meddle(pl_module)
        super().on_train_batch_end(trainer, pl_module, *rest)


def test_a_seed_that_falls_fails_its_own_slot_and_is_retried_alone(here, one_by_one, monkeypatch):
    class Spoil(Meddling):
        def meddle(self, module):
            with torch.no_grad():
                next(module.network.parameters())[1] = float("nan")

    monkeypatch.setattr(workers, "Watch", Spoil)
    _, result = study(together=3)
    assert [run.state for run in result.runs] == ["finished", "failed", "finished"]
    fallen = result.runs[1]
    assert f"{fallen.folder.name}: the loss is nan at step 5; its state is safe at step 3" in fallen.error
    assert_ends_alike(result, one_by_one, (0, 2))
    monkeypatch.setattr(workers, "Watch", Watch)
    _, result = study(together=3, retry_failed=True)
    assert_ends_alike(result, one_by_one)


def test_a_lost_claim_ends_the_training_and_gives_the_other_seeds_back(here, one_by_one, monkeypatch):
    """One of three is given up by somebody who took this worker for dead; another worker then goes on with all three."""
    held = []

    class Lose(Meddling):
        def meddle(self, module):
            claim = held[0].claim
            claim.board.study._storage.set_trial_state_values(claim._id, TrialState.FAIL)
            limit = time.monotonic() + 30
            while not claim.lost:
                assert time.monotonic() < limit
                time.sleep(0.01)

    monkeypatch.setattr(workers, "Watch", Lose)
    folder = folder_of(here / "runs", one_by_one.study)
    ledger = Ledger(one_by_one.study, folder, str(folder / "journal.log"), lease_s=0.3)
    told = []
    held.append(ledger.next())
    Worker(ledger, told.append, share=Share(3)).do(held[0])
    assert sum(": given up (" in line for line in told) == 3
    slots = ledger.board(None).slots().values()
    assert [slot.state for slot in slots] == ["open"] * 3
    assert ledger.write().counts()["finished"] == 0
    monkeypatch.setattr(workers, "Watch", Watch)
    Worker(ledger, told.append, share=Share(3)).work()
    assert sum("continuing from 0000003.ckpt" in line for line in told) == 3
    assert [len(slot.attempts) for slot in ledger.board(None).slots().values()] == [2] * 3
    assert_ends_alike(ledger.result(), one_by_one)
    steps = [[line["step"] for line in read_log(path)] for path in here.glob("runs/*/metrics.jsonl")]
    assert all(len(set(found)) == len(found) for found in steps)


def test_what_cannot_be_stacked_is_refused_before_anything_starts(here, capsys):
    for settings, told in {
        ("trainer.devices=2",): "--together 3: seeds are stacked on one device: set trainer.devices=1",
        ("logger=wandb", "logger.project=p"): "--together 3: W&B keeps one open run per process",
        ("training.weight_decay=0.${seed}",): "--together 3: some other setting depends on the seed",
    }.items():
        with pytest.raises(SystemExit):
            main(["study", "question.yaml", "--together", "3", *settings])
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "question.yaml", "--together", "0"])
    assert "--together 0: at least 1" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_plan_tells_what_of_it_is_not_known(here, capsys):
    main(["study", "question.yaml", "--plan", "--together", "3"])
    assert (
        "that is one seed after the other; what --together 3 saves of it, `nava bench seeds` measures" in capsys.readouterr().out
    )
    assert not (here / "runs").exists()
