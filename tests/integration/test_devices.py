"""Two processes do what one does: gradients, metrics, checkpoints; started as torchrun and SLURM start them."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem

from nava_lab.cli import main
from nava_lab.config import ConfigError, load
from nava_lab.flow.draws import Drawing
from nava_lab.flow.objective import Objective
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size
from nava_lab.registry import PACKAGE, variants, worlds
from nava_lab.study.failures import RunFailed
from nava_lab.study.run import resumed, run
from nava_lab.training import saved
from nava_lab.training.callbacks import SameStart
from nava_lab.training.data import WorldData
from nava_lab.training.ending import Asked
from nava_lab.training.machine import Devices, end_together, meet, prepare_layers
from nava_lab.training.module import GenerativeModule
from nava_lab.training.settings import TERMINATED, Training
from nava_lab.training.sharding import full
from tests.conftest import fitting
from tests.ranks import environment, needs_fork, together

pytestmark = needs_fork
WORLD = worlds.get("gaussian")()
TRAINING = Training(steps=2, batch_size=8, validations=2, validation_clips=8)
# (variant, strategy, pieces of a batch, layers computed again)
CASES = [
    ("magihuman", "ddp", 1, False),
    ("magihuman", "fsdp", 1, True),
    ("align_then_fuse", "ddp", 2, False),
    ("dual_tower", "fsdp", 2, False),
    ("unified", "ddp", 1, True),
]


class Lacking(WorldData):
    """Clips of which the second half has no sound: marked so in one process, and without the stream in the second of two."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        made = super().on_after_batch_transfer(batch, dataloader_idx)
        audio = made.streams["audio"]
        if self.trainer.world_size == 1:
            has = torch.arange(len(made)) < len(made) // 2
            audio = dataclasses.replace(audio, valid=has[:, None].expand(-1, len(audio)))
        elif self.trainer.global_rank == 1:
            return dataclasses.replace(made, streams={"video": made.streams["video"]})
        return dataclasses.replace(made, streams={**made.streams, "audio": audio})


class Kept(pl.Callback):
    def __init__(self):
        self.gradients, self.logged = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = [(name, part.grad) for name, part in module.network.named_parameters()]
        self.gradients.append({name: None if part is None else full(part).clone() for name, part in named})

    def on_validation_end(self, trainer, module):
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name})


def learnt(name, strategy="auto", accumulate=1, again=False, devices=1):
    """Gradients and metrics of two steps."""
    torch.manual_seed(0)
    variant = variants.get(name)(depth=2)
    network = Denoiser(variant, WORLD.interface(), fitting(variant, Size(24, 40)))
    with torch.no_grad():
        for part in network.parameters():
            part.add_(0.1 * torch.randn_like(part))
    network.spare = torch.nn.Parameter(torch.ones(3))  # weights that nothing reads get no gradient
    prepare_layers(network, compiled=False, checkpointed=again)
    on, kept = Devices("cpu", devices, strategy=strategy), Kept()
    drawing = Drawing(modality_given=0.4)
    module = GenerativeModule(network, Objective(), drawing, TRAINING, 0, accumulate, on.sharded)
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", devices=devices, strategy=on.lightning(), plugins=on.plugins(), callbacks=[kept],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, val_check_interval=1,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, Lacking(WORLD, TRAINING, 0))
    return kept


def differing(one, two):
    """The weights whose gradients are not those of the other."""
    return [
        key
        for key, part in one.items()
        if (part is None) != (two[key] is None) or (part is not None and not torch.allclose(two[key], part, rtol=1e-4, atol=1e-6))
    ]


def test_gradients_and_metrics_of_two_processes_are_those_of_one_on_the_same_batch(tmp_path):
    """Also where one process's clips lack a modality, some weights get no gradient, and a batch is computed in pieces."""

    def work(rank):
        for number, (name, strategy, accumulate, again) in enumerate(CASES):
            kept = learnt(name, strategy, accumulate, again, devices=2)
            if rank == 0:
                torch.save((kept.gradients, kept.logged), tmp_path / f"{number}.pt")

    assert together(work, repeatable=True) == [0, 0]
    for number, (name, *_) in enumerate(CASES):
        one, (gradients, logged) = learnt(name), torch.load(tmp_path / f"{number}.pt")
        assert len(gradients) == len(logged) == 2
        assert [key for key, part in one.gradients[0].items() if part is None] == ["spare"]
        assert not differing(one.gradients[0], gradients[0]), name  # of the first step: later ones start from rounded weights
        for mine, other in zip(one.logged, logged, strict=True):
            assert other == pytest.approx(mine, rel=1e-3), name


def test_a_share_of_the_counts_would_be_seen(monkeypatch):
    """The planted mistake of most trainers: pieces that are averaged, whatever each of them counts."""
    right = learnt("unified").gradients[0]
    assert not differing(right, learnt("unified", accumulate=2).gradients[0])
    own = Objective.total
    monkeypatch.setattr(Objective, "total", lambda self, losses, counts=None: own(self, losses) / 2)
    assert differing(right, learnt("unified", accumulate=2).gradients[0])


SMALL = [
    *("experiment=smoke", "variant=unified", "variant.depth=2", "budget.parameters=60_000", "world=gaussian"),
    *("training.steps=12", "training.validations=3", "training.checkpoints=2", "evaluation.previews=0", "evaluation.clips=4"),
    *("evaluation.loss_clips=8", "output.progress=false", "logger=none"),
]
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_numbers(one, two):
    """Two runs are one but for the order of sums."""
    mine, other = log_of(one), log_of(two)
    assert [line["step"] for line in mine] == [line["step"] for line in other]
    assert all(second == pytest.approx(first, rel=1e-3) for first, second in zip(mine, other, strict=True))
    weights, others = (load_file(path / "model.safetensors") for path in (one, two))
    assert weights.keys() == others.keys()
    assert all(torch.allclose(weights[key], others[key], atol=2e-3) for key in weights)
    records = [json.loads((path / "record.json").read_text()) for path in (one, two)]
    assert records[0]["scores"].keys() == records[1]["scores"].keys()
    assert records[0]["samples_seen"] == records[1]["samples_seen"]


def begun(folder, into):
    """The run as it was after its last checkpoint."""
    shutil.copytree(folder, into)
    for name in ("model.safetensors", "record.json", "per_clip.json"):
        (into / name).unlink()
    return into


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    return run(load([*SMALL, "trainer=cpu", f"output.root={root}"]), lambda message: None)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, one):
    """A run of two processes that SLURM starts, on a machine each, its weights spread over them."""
    root = tmp_path_factory.mktemp("sharded")
    settings = [*SMALL, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.nodes=2", f"output.root={root}"]
    assert together(lambda rank: main(["train", *settings]), "nodes") == [0, 0]
    return next(root.glob("*/record.json")).parent


def test_a_sharded_run_is_a_run_like_any_other_and_goes_on_anywhere(one, sharded, tmp_path, capsys):
    same_numbers(one, sharded)
    checkpoints = sorted((sharded / "checkpoints").glob("*.ckpt"))
    assert all(path.is_dir() and len(list(path.glob("*.distcp"))) == 2 for path in checkpoints)
    alone = begun(sharded, tmp_path / sharded.name)
    told = []
    resumed(alone, ["trainer=cpu", "training.checkpoints=3", "training.checkpoint_minutes=0"], told.append)
    assert any("continuing from" in line for line in told)
    same_numbers(one, alone)
    machines = json.loads((alone / "record.json").read_text())["machines"]
    assert [(part["strategy"], part["nodes"]) for part in machines] == [("fsdp", 2), ("auto", 1)]
    assert machines[1]["from_step"] == int(checkpoints[-1].stem)
    # One file of a sharded checkpoint: the average, and what was being trained; of a finished run its model.
    main(["export", str(checkpoints[-1]), str(tmp_path / "average.safetensors")])
    main(["export", str(checkpoints[-1]), str(tmp_path / "current.safetensors"), "--weights", "current"])
    main(["export", str(sharded), str(tmp_path / "done.safetensors"), "--dtype", "bfloat16"])
    main(["export", str(sharded), str(tmp_path / "wan.safetensors"), "--to", "wan", "--differ", "text_place,clock"])
    assert "blocks.0.self_attn.q.weight" in load_file(tmp_path / "wan.safetensors")
    with pytest.raises(SystemExit):
        main(["export", str(sharded), str(tmp_path / "wan.safetensors"), "--to", "wann"])
    assert "did you mean 'wan'" in capsys.readouterr().err
    average, current, done = (load_file(tmp_path / f"{name}.safetensors") for name in ("average", "current", "done"))
    final = load_file(sharded / "model.safetensors")
    assert {key: part.shape for key, part in average.items()} == {key: part.shape for key, part in final.items()}
    assert not all(torch.equal(average[key], current[key]) for key in average)
    assert all(torch.equal(done[key], final[key].bfloat16()) for key in final)


def test_a_run_of_one_process_goes_on_with_two_and_back(one, tmp_path):
    """A file becomes shards, under torchrun; then one process continues what two have left."""
    two = begun(one, tmp_path / one.name)
    assert together(lambda rank: main(["train", "--continue", str(two), "trainer=fsdp", *TWO])) == [0, 0]
    same_numbers(one, two)
    assert [part["strategy"] for part in json.loads((two / "record.json").read_text())["machines"]] == ["auto", "fsdp"]


def test_bf16_trains(one, tmp_path):
    half = run(load([*SMALL, "trainer=cpu", "trainer.precision=bf16-mixed", f"output.root={tmp_path}"]), lambda message: None)
    assert all(other == pytest.approx(mine, rel=0.05) for mine, other in zip(log_of(one), log_of(half), strict=True))
    assert log_of(one) != log_of(half)
    alone = begun(half, tmp_path / "begun" / half.name)
    resumed(alone, ["trainer=cpu"], lambda message: None)  # whose own precision is another
    assert "machines" not in json.loads((alone / "record.json").read_text())
    same_numbers(half, alone)
    for precision, why in (("bf16-true", "would lose AdamW's small steps"), ("16-mixed", "needs a GPU")):
        with pytest.raises(ConfigError, match=why):
            load([*SMALL, "trainer=cpu", f"trainer.precision={precision}"])


def test_a_distributed_run_is_refused_where_it_cannot_be_meant(one, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"training.batch_size=8 does not divide among 3 devices"):
        load([*SMALL, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=3"])
    with pytest.raises(ConfigError, match=r"among 2 devices and trainer.accumulate=3 pieces"):
        load([*SMALL, "trainer=ddp", *TWO, "trainer.accumulate=3"])
    with pytest.raises(ConfigError, match=r"trainer=fdsp: did you mean 'fsdp'"):
        resumed(one, ["trainer=fdsp"])
    with pytest.raises(ConfigError, match=r"training.lr=1 would make another run"):
        resumed(one, ["training.lr=1"])
    with pytest.raises(
        ConfigError, match=r"trainer.precision=bf16-mixed would make another run than one that was begun in 32-true"
    ):
        resumed(one, ["trainer.precision=bf16-mixed"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit):
        main(["train", "-m", "seed=0,1", *SMALL, *TWO, "trainer=ddp"])
    assert "start it without torchrun" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"2 processes were started for trainer.devices=1"):
        run(load([*SMALL, "trainer=cpu", f"output.root={tmp_path}"]))
    with pytest.raises(SystemExit):
        main(["train", "seeds=2", *SMALL, "trainer=cpu", f"output.root={tmp_path}"])
    assert "2 processes were started for trainer.devices=1" in capsys.readouterr().err


def test_a_process_that_fails_is_heard_and_the_others_do_not_hang(tmp_path):
    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.global_rank == 1 and trainer.global_step == 6:
                bytearray(1 << 60)

    config = load([*SMALL, "trainer=ddp", *TWO, f"output.root={tmp_path}"])

    def work(rank):
        with pytest.raises(RunFailed) as caught:
            run(config, lambda message: None, [Fails()])
        (tmp_path / f"told-{rank}").write_text(str(caught.value))

    assert together(work) == [0, 0]
    told = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    assert "another process of this run ended" in told[0]
    assert "out of memory" in told[1]
    (failed,) = tmp_path.glob("*/failed.json")
    assert json.loads(failed.read_text())["error"] == told[1]


def full_for(rank, monkeypatch):
    """From the second checkpoint on, a process's shards go to a device that takes nothing."""
    own = FileSystem.create_stream

    def opened(self, path, mode):
        full = rank == 1 and mode == "wb" and "0000009" in str(path) and str(path).endswith(saved.SHARD)
        return own(self, Path("/dev/full") if full else path, mode)

    monkeypatch.setattr(FileSystem, "create_stream", opened)


def test_a_disk_that_is_full_for_one_process_ends_all_in_one_message_and_gets_its_room_back(one, tmp_path, monkeypatch):
    settings = ["train", *SMALL, "trainer=fsdp", *TWO, f"output.root={tmp_path}"]

    def work(rank):
        full_for(rank, monkeypatch)
        with (tmp_path / f"told-{rank}").open("w") as told, contextlib.redirect_stderr(told):
            main(settings)

    assert together(work) == [1, 1]
    (failed,) = tmp_path.glob("*/failed.json")
    message = json.loads(failed.read_text())["error"]
    assert "the disk is full" in message
    assert "its state is safe at step 5 (4 steps are lost): free some space" in message
    for rank in (0, 1):
        told = (tmp_path / f"told-{rank}").read_text()
        assert "Traceback" not in told
        assert told.splitlines()[-1] == f"nava: {message}"
    assert [path.name for path in (failed.parent / "checkpoints").iterdir()] == ["0000005.ckpt"]
    resumed(failed.parent, ["trainer=cpu"], lambda message: None)
    same_numbers(one, failed.parent)


def test_weights_that_the_first_process_cannot_write_end_all_in_one_message(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nava_lab.study.fit.save_weights", fails)  # only the first comes there
    config = load([*SMALL, "trainer=ddp", *TWO, f"output.root={tmp_path}"])

    def work(rank):
        with pytest.raises(RunFailed) as caught:
            run(config, lambda message: None)
        (tmp_path / f"told-{rank}").write_text(str(caught.value))

    assert together(work) == [0, 0]
    told = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert "the disk is full" in told[0]
    assert "its state is safe at step 9 (3 steps are lost)" in told[0]


@pytest.mark.parametrize(
    ("met", "raised", "told"),
    [
        ({1: OSError(errno.EDQUOT, "quota")}, OSError, "full disk"),
        ({0: ValueError("odd"), 1: RuntimeError("PytorchStreamWriter failed writing file")}, OSError, "full disk"),
        ({1: PermissionError(errno.EACCES, "no")}, RuntimeError, "process 1 met PermissionError"),
        ({0: KeyboardInterrupt("by hand")}, KeyboardInterrupt, "by hand"),
    ],
)
def test_what_processes_met_becomes_an_error_like_any_other(met, raised, told):
    with pytest.raises(raised, match=told), saved.spoken(Path("0000001.ckpt")):
        raise CheckpointException("write", {rank: (error, None) for rank, error in met.items()})


@pytest.mark.parametrize(("moment", "kept"), [(6, ["0000007.ckpt", "0000005.ckpt"]), (0, ["0000001.ckpt"])])
def test_a_process_that_is_asked_to_end_has_all_save_and_end(one, moment, kept, tmp_path):
    """SIGTERM reaches one of two, as when a job's time runs out, also before the first step; the other knows by the next question."""

    class Asks(pl.Callback):
        def on_train_start(self, trainer, module):
            self.on_train_batch_end(trainer, module)

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_rank == 1 and trainer.global_step == moment:
                os.kill(os.getpid(), signal.SIGTERM)

    config = load([*SMALL, "trainer=ddp", *TWO, f"output.root={tmp_path}"])
    assert together(lambda rank: run(config, lambda message: None, [Asks()])) == [TERMINATED, TERMINATED]
    (folder,) = tmp_path.glob("unified-*")
    assert [path.name for path in saved.numbered(folder / "checkpoints")] == kept
    assert not (folder / "failed.json").exists()
    resumed(folder, ["trainer=cpu"], lambda message: None)
    same_numbers(one, folder)


def test_processes_that_are_asked_to_end_in_the_last_step_save_its_weights_and_end_before_it_is_scored(one, tmp_path):
    class Asks(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.global_rank == 1 and trainer.global_step == trainer.max_steps:
                os.kill(os.getpid(), signal.SIGTERM)

    config = load([*SMALL, "trainer=fsdp", *TWO, f"output.root={tmp_path}"])
    assert together(lambda rank: run(config, lambda message: None, [Asks()])) == [TERMINATED, TERMINATED]
    (folder,) = tmp_path.glob("unified-*")
    assert (folder / "model.safetensors").exists()
    assert not [path.name for path in folder.glob("*.json") if path.name in ("record.json", "failed.json")]
    resumed(folder, ["trainer=cpu"], lambda message: None)
    same_numbers(one, folder)


def test_who_asks_a_run_to_end_after_its_processes_have_agreed_is_heard(tmp_path, monkeypatch):
    class Late(Asked):
        @contextlib.contextmanager
        def listening(self):
            with super().listening():
                yield
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("nava_lab.study.fit.Asked", Late)
    with pytest.raises(SystemExit) as ended:
        run(load([*SMALL, "trainer=cpu", f"output.root={tmp_path}"]), lambda message: None)
    assert ended.value.code == TERMINATED
    assert list(tmp_path.glob("*/model.safetensors"))
    assert not list(tmp_path.glob("*/record.json"))


@pytest.mark.parametrize("kind", ["torchrun", "nodes"])
def test_the_first_process_decides_where_all_start_and_one_that_cannot_refuses_for_all(one, kind, tmp_path):
    """Each with a folder of its own, as on machines that share none: one lacks the file; or has a newer one."""
    each = {"torchrun": [*TWO, "trainer=ddp"], "nodes": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1"]}[kind]
    each += ["trainer.nodes=2"] if kind == "nodes" else []

    def work(rank, where, change):
        folder = where / str(rank) / one.name
        change(rank, folder)
        with (where / f"told-{rank}").open("w") as told, contextlib.redirect_stderr(told):
            main(["train", "--continue", str(folder), *each])

    def lacks(rank, folder):
        if rank == 1:
            saved.numbered(begun(one, folder) / "checkpoints")[0].unlink()
        else:
            begun(one, folder)

    def is_behind(rank, folder):
        lacks(1 - rank, folder)

    def is_not_scored(rank, folder):
        (folder / "record.json").unlink(missing_ok=True)

    def is_done(rank, folder):
        assert (folder / "record.json").exists() == (rank == 0)

    for name in ("lacks", "behind"):
        (tmp_path / name).mkdir()
    assert together(lambda rank: work(rank, tmp_path / "lacks", lacks), kind) == [2, 2]
    for rank in (0, 1):
        told = (tmp_path / "lacks" / f"told-{rank}").read_text().splitlines()
        path = Path("checkpoints") / "0000009.ckpt"
        assert "process 1 on " in told[-1]
        assert f"{path}, and the first process, which decides, continues from there" in told[-1]
        assert not [line for line in told if "Traceback" in line]
    assert together(lambda rank: work(rank, tmp_path / "behind", is_behind), kind) == [0, 0]
    same_numbers(one, tmp_path / "behind" / "0" / one.name)
    for change in (is_not_scored, is_done):  # only the first has weights, and a record
        assert together(lambda rank, change=change: work(rank, tmp_path / "behind", change), kind) == [0, 0]
    same_numbers(one, tmp_path / "behind" / "0" / one.name)


def test_processes_that_have_chosen_before_they_met_refuse_where_they_differ(tmp_path):
    """Those that Lightning starts meet within its ``fit``."""

    def work(rank):
        meet(Devices("cpu", 2))
        group = SimpleNamespace(world_size=2)
        SameStart(tmp_path, Path("0000005.ckpt")).setup(group, None, "fit")
        with pytest.raises(ValueError, match=r"process 1 on .* would continue from .*0000005.ckpt, and the first.* starts anew"):
            SameStart(tmp_path, Path("0000005.ckpt") if rank else None).setup(group, None, "fit")

    assert together(work) == [0, 0]


def test_an_unreadable_sharded_checkpoint_is_named_and_passed_over(sharded, tmp_path):
    run_folder, told = begun(sharded, tmp_path / sharded.name), []
    older, newest = sorted((run_folder / "checkpoints").glob("*.ckpt"))
    shard = next(newest.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    resumed(run_folder, ["trainer=cpu"], told.append)
    assert any(f"{newest} cannot be read" in line for line in told)
    assert any(f"continuing from {older.name}" in line for line in told)


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ({}, TERMINATED),
        ({"LOCAL_RANK": "0"}, TERMINATED),
        ({"LOCAL_RANK": "1"}, 0),
        ({"LOCAL_RANK": "0", "SLURM_NTASKS": "1"}, TERMINATED),
        ({"LOCAL_RANK": "1", "SLURM_NTASKS": "1"}, 0),
        (environment("torchrun", 1, 2, 1), TERMINATED),
    ],
)
def test_what_lightning_started_beside_the_first_process_does_not_look_crashed_to_its_observer(where, status, monkeypatch):
    for key, value in where.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as ended:
        end_together()
    assert ended.value.code == status


@pytest.mark.slow
def test_a_command_that_starts_its_own_processes_ends_with_all_of_them(tmp_path):
    """SIGTERM to the first alone."""
    import subprocess
    import sys
    import time

    settings = [*SMALL, *TWO, "trainer=ddp", "training.steps=20000", "training.checkpoints=0", f"output.root={tmp_path}"]
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nava_lab", "train", *settings]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        while not list(tmp_path.glob("*/metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, told = process.communicate(timeout=120)
    assert process.returncode == TERMINATED
    (folder,) = tmp_path.glob("unified-*")
    (path,) = saved.numbered(folder / "checkpoints")
    assert told.splitlines()[-1].endswith(f"its state is safe at step {int(path.stem)}, and the same command continues it")
    assert told.count("as SIGTERM asks") == 1
    assert not (folder / "failed.json").exists()


@pytest.mark.slow
def test_torchrun_and_compiled_layers(one, tmp_path):
    """The real torchrun, by its own command; and layers compiled for the CPU, computed again or not."""
    import subprocess
    import sys

    machines = {
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nava_lab"],
        "compiled": ["-m", "nava_lab"],
    }
    settings = {
        "torchrun": ["trainer=fsdp", *TWO, "trainer.accumulate=2"],
        "compiled": ["trainer.compile=true", "trainer.checkpoint_activations=true"],
    }
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    for name, start in machines.items():
        command = [sys.executable, *start, "train", *SMALL, *settings[name], f"output.root={tmp_path / name}"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=500)
        assert done.returncode == 0, done.stderr
        same_numbers(one, next((tmp_path / name).glob("*/record.json")).parent)
