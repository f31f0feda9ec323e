"""A study whose workers train the seeds of a point in one process: the same runs and records, killed, lost, fallen or not."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nava_lab.cli import main
from nava_lab.registry import PACKAGE
from nava_lab.study import worker as workers
from nava_lab.study.conduct import Wish, conduct
from nava_lab.training.callbacks import Watch
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
seeds: 2
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


def assert_ends_alike(result, one_by_one):
    """The same study, to rounding: its name, its plan, its runs."""
    assert result.folder.name == one_by_one.folder.name
    for run, single in zip(result.runs, one_by_one.runs, strict=True):
        assert (run.point, run.phase, run.seed) == (single.point, single.phase, single.seed)
        assert run.state == "finished"
        assert_same_run(run.folder, single.folder)
        assert run.value == pytest.approx(single.value, rel=1e-3, abs=1e-5)


class Meddling(Watch):
    """Does something to the training in its fifth step."""

    def on_train_batch_end(self, trainer, pl_module, *rest):
        if trainer.global_step == 5:
            self.meddle(pl_module)
        super().on_train_batch_end(trainer, pl_module, *rest)


class Kill(Meddling):
    def meddle(self, module):
        os.kill(os.getpid(), signal.SIGKILL)


class Spoil(Meddling):
    """Makes one seed's weights no numbers any more."""

    def meddle(self, module):
        with torch.no_grad():
            next(module.network.parameters())[1] = float("nan")


def killed():
    """What a command of its own does: it begins the study and is killed in the middle of the training."""
    workers.Watch = Kill
    study(together=2)


def test_killed_with_all_claims_and_one_seed_fallen_a_study_ends_as_one_of_single_runs(here, one_by_one, monkeypatch):
    """The seed that fell is tried again by a command without --together, which finds the other one finished."""
    command = [sys.executable, "-c", f"from {__name__} import killed; killed()"]
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, env=env, capture_output=True).returncode == -signal.SIGKILL
    monkeypatch.setattr(workers, "Watch", Spoil)
    told, result = study(together=2)
    assert any("2 seeds (0, 1) in one training" in line for line in told)
    assert sum("continuing from 0000003.ckpt" in line for line in told) == 2
    assert sum(line.endswith(" s with 1 more)") for line in told) == 2
    assert [run.state for run in result.runs] == ["finished", "failed"]
    assert f"{result.runs[1].folder.name}: the loss is nan at step 5; its state is safe at step 3" in result.runs[1].error
    monkeypatch.setattr(workers, "Watch", Watch)
    told, result = study(retry_failed=True)
    assert any("1 finished before" in line for line in told)
    assert sum("continuing from" in line for line in told) == 1
    assert_ends_alike(result, one_by_one)


def test_what_cannot_be_stacked_is_refused_before_anything_starts(here, capsys):
    for settings, told in {
        ("trainer.devices=2",): "--together 2: seeds are stacked on one device: set trainer.devices=1",
        ("logger=wandb", "logger.project=p"): "--together 2: W&B keeps one open run per process",
        ("training.weight_decay=0.${seed}",): "--together 2: some other setting depends on the seed",
    }.items():
        with pytest.raises(SystemExit):
            main(["study", "question.yaml", "--together", "2", *settings])
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "question.yaml", "--together", "0"])
    assert "--together 0: at least 1" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_plan_tells_what_of_it_is_not_known(here, capsys):
    main(["study", "question.yaml", "--plan", "--together", "2"])
    assert (
        "that is one seed after the other; what --together 2 saves of it, `nava bench seeds` measures" in capsys.readouterr().out
    )
    assert not (here / "runs").exists()
