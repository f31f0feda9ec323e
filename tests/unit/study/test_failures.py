"""What a run stops of by itself ends in one message, with its state safe, and the same command continues it."""

import json
import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from nava_lab.cli import in_one_line, main
from nava_lab.config import composed, load
from nava_lab.study import run as running
from nava_lab.study.failures import RunFailed
from nava_lab.study.seeds import configs_of, run_seeds
from nava_lab.training import saved
from nava_lab.training.ending import Asked
from nava_lab.training.settings import TERMINATED

SMALL = [
    *("experiment=smoke", "variant=unified", "variant.depth=2", "budget.parameters=60_000", "world=gaussian"),
    *("training.steps=8", "training.validations=2", "training.checkpoints=3", "evaluation.previews=0", "evaluation.clips=4"),
    *("evaluation.loss_clips=8", "output.progress=false", "logger=none", "trainer=cpu"),
]

OFF = ["training.checkpoints=0", "training.checkpoint_minutes=0"]


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C is heard here also where a shell has begun the tests in the background, whose children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class At(pl.Callback):
    """Does something after a step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == self.step:
            self.do(trainer, module)


def ask_to_end(trainer, module):
    os.kill(os.getpid(), signal.SIGTERM)


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
    ends_as(unbroken, folder)


def ends_as(unbroken, folder):
    for file in ("metrics.jsonl", "per_clip.json", "model.safetensors"):
        mine, other = ((path / file).read_bytes() for path in (folder, unbroken))
        assert mine[-50_000:] == other[-50_000:], file  # the head of a safetensors file tells the seconds


def test_who_is_asked_to_end_saves_first(tmp_path, unbroken, capsys):
    """SIGTERM, after a step at which nothing was due; validated ones wait for the next."""
    config = load([*SMALL, f"output.root={tmp_path}"])
    for step, saved_at in ((3, 3), (4, 5)):
        with pytest.raises(SystemExit) as ended:
            in_one_line(lambda step=step: running.run(config, lambda message: None, [At(step, ask_to_end)]))
        assert ended.value.code == TERMINATED == 143
        (folder,) = tmp_path.glob("unified-*")
        state = f"its state is safe at step {saved_at}, and the same command continues it"
        assert capsys.readouterr().err == f"nava: ended, as SIGTERM asks; {folder}: {state}\n"
        assert saved.numbered(folder / "checkpoints")[0].name == f"{saved_at:07d}.ckpt"
    assert not (folder / "failed.json").exists()
    running.run(config, lambda message: None)
    ends_as(unbroken, folder)


def in_the_last_validation(trainer, module):
    if trainer.global_step == 8:
        ask_to_end(trainer, module)


class Validated(pl.Callback):
    def on_validation_batch_start(self, trainer, module, *_):
        in_the_last_validation(trainer, module)


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("asks", [At(8, ask_to_end), Validated()])
def test_who_is_asked_to_end_in_the_last_step_saves_its_weights_and_ends_before_it_is_scored(
    asks, saves, tmp_path, unbroken, capsys, monkeypatch
):
    config = load([*SMALL, f"output.root={tmp_path}", *([] if saves else OFF)])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        in_one_line(lambda: running.run(config, lambda message: None, [asks]))
    assert ended.value.code == TERMINATED
    assert signal.getsignal(signal.SIGTERM) == before
    told = capsys.readouterr().err
    assert "its training is finished and safe in model.safetensors, and the same command continues it" in told
    (folder,) = tmp_path.glob("unified-*")
    assert not [path.name for path in folder.glob("*.json") if path.name in ("record.json", "failed.json")]
    monkeypatch.setattr(running, "train", None)  # nothing is left to train
    running.run(config, lambda message: None)
    ends_as(unbroken, folder)


def test_seeds_that_are_asked_to_end_in_their_last_step_all_save_their_weights(tmp_path, unbroken, capsys):
    configs = configs_of(composed([*SMALL, f"output.root={tmp_path}"]), [0, 1])
    for step, left, ends in ((3, "its state is safe at step 3", 0), (8, "its training is finished and safe", 2)):
        with pytest.raises(SystemExit) as ended:
            in_one_line(lambda step=step: run_seeds(configs, print, [At(step, ask_to_end)]))
        assert ended.value.code == TERMINATED
        (told,) = capsys.readouterr().err.splitlines()
        assert left in told
        assert told.endswith("the same command continues it, as with the seeds beside it")
        assert len(list(tmp_path.glob("unified-*/model.safetensors"))) == ends
        assert not list(tmp_path.glob("unified-*/record.json"))


def test_who_is_asked_to_end_while_it_is_scored_ends_at_once(tmp_path, unbroken, capsys, monkeypatch):
    config = load([*SMALL, f"output.root={tmp_path}"])
    own, before = running.evaluate, signal.getsignal(signal.SIGTERM)

    def asked(*arguments, **options):
        ask_to_end(None, None)
        return own(*arguments, **options)

    monkeypatch.setattr(running, "evaluate", asked)
    with pytest.raises(SystemExit) as ended:
        in_one_line(lambda: running.run(config, lambda message: None))
    assert ended.value.code == TERMINATED
    assert "its training is finished and safe in model.safetensors" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.undo()
    (folder,) = tmp_path.glob("unified-*")
    assert not [path.name for path in folder.glob("*.json") if path.name in ("record.json", "failed.json")]
    running.run(config, lambda message: None)
    ends_as(unbroken, folder)


def test_a_job_that_is_asked_to_end_in_its_last_step_is_the_last_of_its_multirun(tmp_path, monkeypatch):
    own, steps = Asked.listen, []

    def listen(self):  # as the training begins
        own(self)
        ask_to_end(None, None)
        steps.append(1)

    monkeypatch.setattr(Asked, "listen", listen)
    with pytest.raises(SystemExit) as ended:
        main(["train", "-m", "seed=0,1", *SMALL, "training.steps=1", "training.validations=1", f"output.root={tmp_path}"])
    assert ended.value.code == TERMINATED
    assert len(steps) == 1
    assert len(list(tmp_path.glob("unified-*/model.safetensors"))) == 1
    assert not list(tmp_path.glob("unified-*/record.json"))


def by_hand(trainer, module):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("do", [ask_to_end, by_hand])
@pytest.mark.parametrize("saves", [True, False])
def test_who_ends_a_training_is_told_what_the_same_command_does(do, saves, tmp_path, capsys):
    """It promises no continuation of what was never saved."""
    by_sigterm = do is ask_to_end
    with pytest.raises(SystemExit) as ended:
        in_one_line(lambda: running.run(load([*SMALL, f"output.root={tmp_path}", *([] if saves else OFF)]), print, [At(3, do)]))
    assert ended.value.code == (TERMINATED if by_sigterm else 130)
    (folder,) = tmp_path.glob("unified-*")
    safe = "its state is safe at step 3" if by_sigterm else "its state is safe at step 2 (1 step is lost)"
    steps = 4 if by_sigterm else 3  # who asks comes after who listens, in this step
    lost = f"nothing had been saved yet, so {steps} steps are lost, and the same command starts it anew"
    told = f"{safe}, and the same command continues it" if saves else lost
    what = "ended, as SIGTERM asks" if by_sigterm else "stopped"
    assert capsys.readouterr().err == f"nava: {what}; {folder}: {told}\n"
    assert not (folder / "failed.json").exists()


@pytest.mark.parametrize(
    ("sent", "code", "what"), [(signal.SIGTERM, 143, "ended, as SIGTERM asks"), (signal.SIGINT, 130, "stopped")]
)
def test_a_command_that_trains_nothing_promises_nothing(sent, code, what, capsys):
    with pytest.raises(SystemExit) as ended:
        in_one_line(lambda: os.kill(os.getpid(), sent))
    assert ended.value.code == code
    assert capsys.readouterr().err == f"nava: {what}\n"


def test_a_run_is_saved_when_the_last_time_is_long_ago_and_is_the_same_run(tmp_path, unbroken):
    config = load([*SMALL, f"output.root={tmp_path}", "training.checkpoints=0", "training.checkpoint_minutes=1e-9"])
    folder = running.run(config, lambda message: None)
    assert folder.name == unbroken.name
    assert [path.name for path in saved.numbered(folder / "checkpoints")] == ["0000007.ckpt", "0000006.ckpt"]
    ends_as(unbroken, folder)


@pytest.mark.parametrize(
    ("checkpoints", "told"), [(0, "nothing had been saved yet, so 5 steps are lost"), (1, "safe at step 4 (1 step is lost)")]
)
def test_the_steps_that_are_lost_are_named(checkpoints, told, tmp_path):
    more = [f"training.checkpoints={checkpoints}", "training.checkpoint_minutes=0", "training.validations=0"]
    config = load([*SMALL, *more, f"output.root={tmp_path}"])
    with pytest.raises(RunFailed) as caught:
        running.run(config, lambda message: None, [At(5, lambda *_: bytearray(1 << 60))])
    assert told in str(caught.value)


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
