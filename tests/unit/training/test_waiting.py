"""Between logged steps a training, of one process or several, asks its device for nothing, and what it then learns is told as if
it had known at once.

The meta device stands for one that must not be waited for: it computes shapes alone, and whoever reads a value there fails.
"""

import dataclasses
import json
from contextlib import nullcontext
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nava_lab.config import load
from nava_lab.registry import worlds
from nava_lab.study.build import network, parts
from nava_lab.study.fit import devices_of, train
from nava_lab.study.run import prepared
from nava_lab.study.seeds import stacked_module
from nava_lab.training.data import WorldData
from nava_lab.training.log import LOG_EVERY, logged, read_log
from nava_lab.training.machine import meet
from nava_lab.training.mishaps import step_of
from nava_lab.training.module import GenerativeModule
from nava_lab.training.saved import numbered
from tests.ranks import needs_fork, together

SMALL = [
    *("variant.depth=1", "budget.parameters=null", "budget.width=16", "budget.hidden=16", "training.batch_size=4"),
    *("output.progress=false", "logger=none", "trainer=cpu", "evaluation.previews=0"),
]
QUIET = ["training.validations=0", "training.checkpoints=0"]
GIVEN = ["flow.modality_dropout=0.5", "flow.modality_given=0.3", "flow.first_step.video=0.3", "flow.continuation=0.3"]


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for the device: reads of a value, barriers, and copies onto it that wait.

    Args:
        but_for: values of this type, which lie on the CPU whatever the device is.
    """

    def __init__(self, but_for=None):
        super().__init__()
        self.found, self.but_for = [], but_for

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name, named = function.overloadpacket.__name__, named or {}
        if name == "barrier":
            self.found.append(name)
        reads = name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
        if reads and arguments[0].dtype is not self.but_for:
            self.found.append(name)
        onto = torch.device(named.get("device") or "cpu")
        if name == "_to_copy" and onto.type == "meta" and arguments[0].device.type == "cpu" and not named.get("non_blocking"):
            self.found.append(f"copy of {tuple(arguments[0].shape)}")
        return function(*arguments, **named)


def step_on_meta(module, world, step, seeds=1):
    """What a training step at ``step`` waits for; RuntimeError where it reads a value."""
    module.to("meta")
    strategy = SimpleNamespace(backward=lambda loss, _: loss.backward(), reduce=lambda value, reduce_op: value)
    trainer = SimpleNamespace(world_size=1, global_step=step, strategy=strategy)
    module.trainer = trainer
    module.optimizers = lambda **_: SimpleNamespace(zero_grad=module.zero_grad)
    with Waits() as waits:
        batch = world.sent("train", torch.arange(4 * seeds), torch.device("meta"))
        assert {part.tokens.device.type for part in batch.streams.values()} == {"meta"}
        assert batch.index.device.type == "cpu"
        loss = module.training_step(batch, step)
        loss.backward() if seeds == 1 else module.backward(loss)
    assert any(part.grad is not None for part in module.parameters())
    return waits.found


def built(overrides, accumulate=1):
    config = load([*SMALL, *overrides])
    made = parts(config)
    return GenerativeModule(network(config, made.solution), made.objective, made.drawing, config.training, 0, accumulate), config


@pytest.mark.parametrize("world", sorted({*worlds.names()} - {"clips"}))
def test_no_world_is_waited_for(world):
    module, config = built(["variant=unified", f"world={world}"])
    assert step_on_meta(module, config.world, 4) == []


@pytest.mark.parametrize("variant", ["unified", "dual_tower", "align_then_fuse"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_waits_for_the_device(variant, accumulate, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # of which the meta device knows nothing
    module, config = built([f"variant={variant}", "world=gaussian", *GIVEN], accumulate)
    assert step_on_meta(module, config.world, 4) == []
    assert [step for step, _ in module._unread] == [4]
    with pytest.raises(RuntimeError, match="meta"):  # who reads there is found out
        module.read_losses()


@pytest.mark.parametrize("together", [1, 2])
def test_no_step_of_stacked_seeds_waits_for_the_device(together):
    config = load([*SMALL, "variant=unified", "world=gaussian"])
    module = stacked_module(config, (0, 1), parts(config), together)
    assert step_on_meta(module, config.world, 4, seeds=2) == []


class Reads(pl.Callback):
    """How many values each step read, from its start to the next one's: with all callbacks, loggers and the next clips.

    What the bar showed at its end, of a training that has one.
    """

    def __init__(self, waits):
        self.waits, self.of_step, self.shown = waits, {}, {}

    def on_train_batch_start(self, trainer, module, batch, index):
        self._count(trainer.global_step)

    def on_train_end(self, trainer, module):
        self._count(trainer.global_step)

    def _count(self, ended):
        if ended:
            self.of_step[ended] = len(self.waits.found) - self.before
        self.before = len(self.waits.found)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.progress_bar_callback is not None:
            self.shown[trainer.global_step] = trainer.progress_bar_callback.get_metrics(trainer, module)["loss"]


def test_a_training_reads_at_logged_steps_alone(tmp_path):
    """With everything that watches it: average, log, bar, loggers, checkpoints that none of its moments is for."""
    more = ["training.steps=22", *QUIET, "output.progress=true", "logger=csv"]
    config = load([*SMALL, *more, "variant=unified", "world=gaussian", *GIVEN])
    with Waits() as waits:
        reads = Reads(waits)
        train(config, prepared(config), tmp_path, lambda message: None, [reads])
    assert {step for step, count in reads.of_step.items() if count} == {1, 10, 20}
    assert len(reads.of_step) == 22
    lines = {line["step"]: line["train/loss"] for line in read_log(tmp_path / "metrics.jsonl")}
    assert lines.keys() == {1, 10, 20}
    assert reads.shown == {step: lines[max(line for line in lines if line <= step)] for step in range(1, 23)}


@needs_fork
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("saved", [True, False])
def test_two_processes_read_at_logged_steps_alone(strategy, saved, tmp_path):
    """What they wish after a step they tell each other meanwhile, and no barrier holds them."""
    more = ["training.steps=12", *QUIET, "trainer.accelerator=cpu", "trainer.devices=2", f"trainer.strategy={strategy}"]
    more += [] if saved else ["training.checkpoint_minutes=0"]

    def work(rank):
        config = load([*SMALL, "variant=unified", "world=gaussian", *more])
        meet(devices_of(config))
        with Waits(but_for=torch.int32) as waits:  # DDP's list of the weights that got a gradient
            reads = Reads(waits)
            train(config, prepared(config), tmp_path, lambda message: None, [reads])
        (tmp_path / f"{rank}.json").write_text(json.dumps(reads.of_step))

    assert together(work) == [0, 0]
    for rank in (0, 1):
        of_step = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(of_step) == 12
        assert {step for step, count in of_step.items() if count} == {"1", "10"}, of_step


def test_what_is_logged_and_when():
    assert [step for step in range(1, 31) if logged(step)] == [1, 10, 20, 30]
    assert LOG_EVERY == 10


class Spoil(pl.Callback):
    """Weights that are no numbers, after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(module.network.parameters()).fill_(float("nan"))


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ([], []),  # at the log's next line
        (["training.checkpoints=3"], [3]),  # before the next checkpoint
        (["training.validations=2"], []),  # before a validation
        (["training.steps=7"], []),  # at the end
    ],
)
def test_the_first_bad_step_is_named_whenever_it_is_read(more, kept, tmp_path):
    rarely = ["training.steps=12", "training.checkpoints=0", "training.checkpoint_minutes=0", "training.validations=0"]
    config = load([*SMALL, "variant=unified", "world=gaussian", *rarely, *more])
    with pytest.raises(FloatingPointError, match="the loss is nan at step 4") as caught:
        train(config, prepared(config), tmp_path, lambda message: None, [Spoil(4)])
    assert step_of(caught.value) == 4
    assert [int(path.stem) for path in numbered(tmp_path / "checkpoints")] == kept
    assert not (tmp_path / "model.safetensors").exists()
    assert {line["step"] for line in read_log(tmp_path / "metrics.jsonl")} == {1}


class Silent(WorldData):
    """Clips without sound in one step."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        made = super().transfer_batch_to_device(batch, device, dataloader_idx)
        audio = made.streams["audio"]
        there = torch.full(audio.tokens.shape[:2], self.trainer.global_step != LOG_EVERY - 1)
        return dataclasses.replace(made, streams={**made.streams, "audio": dataclasses.replace(audio, valid=there)})


def test_a_modality_that_nobody_had_is_not_logged_not_even_as_it_was_before(tmp_path, monkeypatch):
    more = ["training.steps=20", "training.validations=0", "training.checkpoints=0", "logger=csv"]
    config = load([*SMALL, *more, "variant=unified", "world=gaussian"])
    monkeypatch.setattr("nava_lab.study.fit.WorldData", Silent)
    train(config, prepared(config), tmp_path, lambda message: None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: "train/loss_audio" in line for line in lines} == {1: True, 10: False, 20: True}
    assert all({"train/loss", "train/loss_video"} <= line.keys() for line in lines)
    table = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    place = table[0].split(",").index("train/loss_audio")
    told = {row.split(",")[table[0].split(",").index("step")]: row.split(",")[place] for row in table[1:]}
    assert told["9"] == ""
    assert float(told["19"]) > 0
