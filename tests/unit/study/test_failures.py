"""What a run stops of by itself ends in one message, with its state safe, and the same command continues it."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from nava_lab.cli import main
from nava_lab.config import load
from nava_lab.study import run as running
from nava_lab.study.failures import RunFailed
from nava_lab.training import saved

SMALL = [
    *("experiment=smoke", "variant=unified", "variant.depth=2", "budget.parameters=60_000", "world=gaussian"),
    *("training.steps=8", "training.validations=2", "training.checkpoints=3", "evaluation.previews=0", "evaluation.clips=4"),
    *("evaluation.loss_clips=8", "output.progress=false", "logger=none", "trainer=cpu"),
]


class At(pl.Callback):
    """Does something after a step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == self.step:
            self.do(trainer, module)


def no_room_for_the_next(trainer, module):
    """The next checkpoint goes to a device that takes nothing."""
    saved.unfinished(Path(trainer.default_root_dir) / "checkpoints" / "0000006.ckpt").symlink_to("/dev/full")


def not_a_number(trainer, module):
    with torch.no_grad():
        next(module.network.parameters()).fill_(float("nan"))


CASES = {
    "full disk": (no_room_for_the_next, "the disk is full", "free some space"),
    "nan": (not_a_number, "weights are infinite or not a number at step 5", "lower training.lr=0.003"),
    "torch on a CPU": (lambda *_: torch.empty(1 << 55, dtype=torch.uint8), "out of memory", "trainer.accumulate=2"),
    "python": (lambda *_: bytearray(1 << 60), "out of memory", "trainer.checkpoint_activations=true"),
    "a GPU": (
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
        "out of memory",
        "nava train --continue",
    ),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("unbroken")
    return running.run(load([*SMALL, f"output.root={root}"]), lambda message: None)


@pytest.mark.parametrize("name", CASES)
def test_a_failure_says_where_the_run_is_and_what_to_do(name, tmp_path, unbroken):
    do, what, remedy = CASES[name]
    config = load([*SMALL, f"output.root={tmp_path}"])
    with pytest.raises(RunFailed) as caught:
        running.run(config, lambda message: None, [At(5, do)])
    told, (folder,) = str(caught.value), tmp_path.glob("unified-*")
    assert str(folder) in told
    assert what in told
    assert remedy in told
    assert "safe at step" in told
    assert json.loads((folder / "failed.json").read_text())["error"] == told
    running.run(config, lambda message: None)
    assert not (folder / "failed.json").exists()
    for file in ("metrics.jsonl", "per_clip.json", "model.safetensors"):
        mine, other = ((path / file).read_bytes() for path in (folder, unbroken))
        assert mine[-50_000:] == other[-50_000:], file  # the head of a safetensors file tells the seconds


class Spoil(pl.Callback):
    """A gradient that is no number, in one step."""

    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == self.step - 1:
            next(part for part in module.parameters() if part.grad is not None).grad.fill_(float("nan"))


def test_a_last_step_that_breaks_the_weights_ends_no_run(tmp_path):
    """Its own loss is of the weights before it, and no later one tells."""
    with pytest.raises(RunFailed, match=r"weights are infinite or not a number at step 8; its state is safe at step 6"):
        running.run(load([*SMALL, f"output.root={tmp_path}"]), lambda message: None, [Spoil(8)])
    assert [path.name for path in tmp_path.glob("*/*.json") if path.name in ("record.json", "failed.json")] == ["failed.json"]
    assert not list(tmp_path.glob("*/model.safetensors"))


def test_a_command_ends_without_a_traceback_and_not_with_zero(tmp_path, monkeypatch, capsys):
    """Also where memory runs out in scoring: then the training is done, and smaller batches score it to the same numbers."""

    def too_much(*arguments, **options):
        return torch.empty(1 << 55, dtype=torch.uint8)

    monkeypatch.setattr(running, "evaluate", too_much)
    with pytest.raises(SystemExit) as ended:
        main(["train", *SMALL, f"output.root={tmp_path}"])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "its training is finished and safe" in told
    monkeypatch.undo()
    command = told.split("nava train ")[1].split()
    assert command[-1] == "evaluation.batch_size=32"
    main(["train", *command])
    assert len(list(tmp_path.glob("*/record.json"))) == 1
