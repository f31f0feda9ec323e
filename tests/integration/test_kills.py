"""A short campaign of kills; the long one is ``python sweeps/kills.py``."""

import json
import os
import signal

import pytest
import torch

from nava_lab.training.averaging import Averaging
from sweeps import kills
from tests.ranks import needs_fork

pytestmark = needs_fork


def test_a_run_that_is_killed_at_any_moment_ends_as_an_unbroken_one(tmp_path, capsys, monkeypatch):
    """And a second campaign does nothing again; and one that finds a difference says so."""
    lives, live = [], kills.live

    def over_once(begin, root, number, *about):
        """The first life of run 1 ends before it is killed."""
        lives.append(number)
        if number == 1 and lives.count(1) == 1:
            kills.finish(begin, root)
            return None
        return live(begin, root, number, *about)

    monkeypatch.setattr(kills, "live", over_once)
    arguments = ["--kills", "4", "--each", "2", "--seed", "1", "--out", str(tmp_path), "training.steps=12", "evaluation.clips=4"]
    assert kills.main(arguments) == 0
    assert "4 kills of" in capsys.readouterr().out
    assert kills.main(arguments) == 0
    assert "equal" not in capsys.readouterr().err
    path = tmp_path / "kills.json"
    runs = json.loads(path.read_text())["runs"]
    assert sum(len(run["kills"]) for run in runs) == 4
    assert [bool(run["clock_s"]) for run in runs[:2]] == [False, True]
    assert all(run["kills"] for run in runs)
    assert runs[0]["compared"] == 2
    assert runs[1]["compared"] > 0
    clocked, twin = (kills.only_run(tmp_path / name) for name in ("run-1", "twin"))
    assert len(kills.numbered(twin / "checkpoints")) > 6  # of all steps but those of validations
    assert not kills.differences(clocked, twin, among=True)
    newest = kills.numbered(clocked / "checkpoints")[0].name
    saved = torch.load(twin / "checkpoints" / newest, weights_only=True)
    torch.save({**saved, "global_step": 0}, twin / "checkpoints" / newest)
    assert kills.differences(clocked, twin, among=True) == [f"{newest}: what is no tensor"]
    (twin / "checkpoints" / newest).unlink()
    assert kills.differences(clocked, twin, among=True)[0].startswith("checkpoints: ")
    run, other = (kills.only_run(tmp_path / name) for name in ("run-0", "unbroken"))
    log = run / "metrics.jsonl"
    log.write_text(log.read_text()[:-3])
    assert kills.differences(run, other) == ["metrics.jsonl"]


@pytest.mark.slow
def test_seeds_in_one_process_that_are_killed_end_as_unbroken_ones(tmp_path, capsys):
    arguments = ["--kills", "1", "--seed", "3", "--out", str(tmp_path), "training.steps=8", "evaluation.clips=4"]
    assert kills.main([*arguments, "seeds=2"]) == 0
    assert "1 kills of 1 runs" in capsys.readouterr().out
    assert len(kills.runs_in(tmp_path / "run-0")) == 2
    log = kills.runs_in(tmp_path / "run-0")[1] / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    (told,) = kills.differences_of_all(tmp_path / "run-0", tmp_path / "unbroken", True)
    assert told == f"{log.parent.name}: metrics.jsonl"


def test_an_average_that_forgets_how_far_it_is_would_be_seen(tmp_path, monkeypatch):
    """A planted mistake: it begins anew after a kill."""
    begin = kills.forked([*kills.SMALL, "training.steps=12", "evaluation.clips=4"])
    roots, right = (tmp_path / "broken", tmp_path / "whole"), Averaging.on_train_batch_end
    kills.finish(begin, roots[1])

    def dies(self, trainer, *about):
        right(self, trainer, *about)
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    roots[0].mkdir()
    with monkeypatch.context() as life:
        life.setattr(Averaging, "on_train_batch_end", dies)
        _, status = os.waitpid(begin(roots[0]), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert list(roots[0].glob("*/checkpoints/0*.ckpt"))
    monkeypatch.setattr(Averaging, "load_state_dict", lambda self, state: None)
    kills.finish(begin, roots[0])
    found = kills.differences(*map(kills.only_run, roots))
    assert any(line.startswith("model.safetensors: ") for line in found)
