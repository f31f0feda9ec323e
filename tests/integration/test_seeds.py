"""Seeds trained together are the runs that they would be alone: folders, logs, weights, records; killed, continued, fallen."""

import json
from pathlib import Path

import jsonschema
import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from nava_lab.config import ConfigError, composed, load
from nava_lab.study import seeds as study_seeds
from nava_lab.study.failures import RunFailed
from nava_lab.study.multirun import Job, _stacked, multirun
from nava_lab.study.record import SCHEMA
from nava_lab.study.run import RunBusy, run
from nava_lab.study.run import alone as alone_with
from nava_lab.study.seeds import asked, at_once, check_stackable, configs_of, run_seeds, set_aside
from nava_lab.training import stacked
from nava_lab.training.callbacks import EndedEarly
from nava_lab.training.log import read_log

SEEDS = (3, 5)
TINY = ["budget.parameters=60_000", "variant.depth=3", "training.steps=12", "training.batch_size=4", "training.validation_clips=6",
        "training.validations=2", "training.checkpoints=3", "evaluation.clips=4", "evaluation.loss_clips=4", "evaluation.steps=2",
        "evaluation.previews=0", "output.progress=false", "logger=none", "trainer=cpu"]  # fmt: skip
FAMILIES = {
    "unified": [],
    "dual_tower": ["world=speakers", "flow.modality_given=0.5", "flow.timbre_dropout=0.3"],
    "align_then_fuse": ["world=bind", "flow.modality_dropout=0.5", "flow.coupling=independent"],
}


def silent(message):
    pass


def overrides(family, root):
    return [f"variant={family}", *TINY, *FAMILIES[family], f"output.root={root}"]


def together(family, root, at_once=1, watchers=(), seeds=SEEDS, tell=silent, **more):
    return run_seeds(configs_of(composed(overrides(family, root)), seeds), tell, watchers, at_once, **more)


def alone(family, root, seed, watchers=()):
    return run(load([*overrides(family, root), f"seed={seed}"]), silent, watchers)


def folder_of(root, seed):
    return next(root.glob(f"[a-z]*-s{seed}-*"))


def assert_same_run(mine, single):
    """One run twice, up to float tolerance; only the record says who was beside it."""
    assert mine.name == single.name
    weights, other = (load_file(folder / "model.safetensors") for folder in (mine, single))
    assert weights.keys() == other.keys()
    for name, part in weights.items():
        torch.testing.assert_close(part, other[name], rtol=1e-3, atol=3e-5, msg=name)
    log, reference = (read_log(folder / "metrics.jsonl") for folder in (mine, single))
    assert [list(line) for line in log] == [list(line) for line in reference]
    for line, expected in zip(log, reference, strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-7)
    record, expected = (json.loads((folder / "record.json").read_text()) for folder in (mine, single))
    jsonschema.validate(record, json.loads(SCHEMA.read_text()))
    for key in ("identity", "budget", "parameters", "steps", "samples_seen", "seed", "name", "evaluation"):
        assert record[key] == expected[key]
    assert record["scores"]["loss"]["value"] == pytest.approx(expected["scores"]["loss"]["value"], rel=1e-4)


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """Each family's single runs, made when they are first asked for."""
    made = {}

    def get(family):
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            made[family] = [alone(family, root, seed) for seed in SEEDS]
        return made[family]

    return get


@pytest.mark.parametrize(("family", "at_once"), [("unified", 1), ("unified", 2), ("dual_tower", 2), ("align_then_fuse", 2)])
def test_seeds_together_are_their_single_runs(family, at_once, singles, tmp_path):
    for mine, single in zip(together(family, tmp_path, at_once), singles(family), strict=True):
        assert_same_run(mine, single)
        seed, other = (3, 5) if "-s3-" in mine.name else (5, 3)
        assert json.loads((mine / "record.json").read_text())["stacked_with"] == [other], seed
        assert "stacked_with" not in json.loads((single / "record.json").read_text())


def test_gradients_clipped_by_a_joint_norm_would_be_seen(singles, tmp_path, monkeypatch):
    """Seeds must not meet anywhere: one norm for all of them is the likeliest place."""
    monkeypatch.setattr(stacked, "clip_each", lambda found, limit: torch.nn.utils.clip_grads_with_norm_(
        list(module.parameters()), limit, torch.nn.utils.get_total_norm(found)))  # fmt: skip
    module = None

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            nonlocal module
            module = pl_module

    mine = together("unified", tmp_path, watchers=[Look()])
    with pytest.raises(AssertionError):
        assert_same_run(mine[0], singles("unified")[0])


class EndAt(pl.Callback):
    """Ends a training as a kill does: nothing is written any more."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise EndedEarly


def test_what_was_killed_is_continued_together_or_alone(singles, tmp_path):
    with pytest.raises(EndedEarly):
        together("unified", tmp_path, watchers=[EndAt(8)])
    first, second = (folder_of(tmp_path, seed) for seed in SEEDS)
    assert [len(list((folder / "checkpoints").glob("*.ckpt"))) for folder in (first, second)] == [2, 2]
    (second / "checkpoints" / "0000007.ckpt").write_bytes(b"torn")  # as if killed before the second seed's was written
    told = []
    with pytest.raises(EndedEarly):
        together("unified", tmp_path, 2, [EndAt(10)], tell=told.append)
    assert any("0000007.ckpt cannot be read" in line for line in told)
    assert sum("continuing from 0000003.ckpt" in line for line in told) == 2
    alone("unified", tmp_path, SEEDS[0])
    finished = (first / "record.json").stat().st_mtime_ns
    together("unified", tmp_path, tell=told.append)
    assert "1 of 2 seeds already finished" in told
    assert (first / "record.json").stat().st_mtime_ns == finished
    for mine, single in zip((first, second), singles("unified"), strict=True):
        assert_same_run(mine, single)
        assert json.loads((mine / "record.json").read_text())["stacked_with"] == sorted(
            {*SEEDS} - {int("-s5-" in mine.name) * 2 + 3}
        )


def test_what_seeds_give_up_on_going_back_is_said_and_never_continued_from(singles, tmp_path):
    """Killed while all seeds' checkpoints were written, and again before they were back there; then one goes on alone."""
    with pytest.raises(EndedEarly):
        together("unified", tmp_path, watchers=[EndAt(8)])
    second = folder_of(tmp_path, SEEDS[1])
    (second / "checkpoints" / "0000007.ckpt").unlink()
    told = []
    with pytest.raises(EndedEarly):
        together("unified", tmp_path, watchers=[EndAt(5)], tell=told.append)
    assert any("0000007.ckpt is given up: the training goes on from step 3" in line for line in told)
    assert_same_run(alone("unified", tmp_path, SEEDS[0]), singles("unified")[0])
    assert [path.name for path in (second / "checkpoints").glob("*.ckpt")] == ["0000003.ckpt"]


def test_a_seed_that_another_process_is_at_stops_no_other(singles, tmp_path):
    ended, taken = {}, tmp_path / singles("unified")[1].name
    with alone_with(taken), pytest.raises(RunFailed, match=r"1 of 2 seeds failed: .*-s5-.* is being trained by another process"):
        together("unified", tmp_path, ended=ended.__setitem__)
    assert_same_run(ended[3], singles("unified")[0])
    assert isinstance(ended[5], RunBusy)
    with alone_with(taken), pytest.raises(RunBusy):
        together("unified", tmp_path, seeds=[5])


def test_seeds_that_were_begun_alone_are_joined_at_their_step(tmp_path):
    for seed in SEEDS:
        with pytest.raises(EndedEarly):
            alone("unified", tmp_path, seed, [EndAt(4)])
    runs = [study_seeds.Seed(config, folder_of(tmp_path, config.seed))
            for config in configs_of(composed(overrides("unified", tmp_path)), SEEDS)]  # fmt: skip
    fresh = study_seeds.Seed(configs_of(composed(overrides("unified", tmp_path)), [7])[0], tmp_path / "none")
    (start, group), (nothing, rest) = study_seeds.groups([fresh, *runs], silent)
    assert ({seed: path.name for seed, path in start.items()}, group) == (dict.fromkeys(SEEDS, "0000003.ckpt"), runs)
    assert (nothing, rest) == ({}, [fresh])
    longer = load(["training.steps=40"]).training  # of which a kill in the midst of the first checkpoint takes little
    early = [study_seeds.replace(run, config=study_seeds.replace(run.config, training=longer)) for run in [*runs, fresh]]
    assert study_seeds.groups(early, silent) == [({}, early)]


class Break(pl.Callback):
    """Spoils one seed's weights."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 5:
            with torch.no_grad():
                next(pl_module.network.parameters())[1] = float("nan")


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_seed_that_falls_takes_no_other_with_it(at_once, singles, tmp_path):
    with pytest.raises(RunFailed, match=r"1 of 2 seeds failed: .*-s5-.*the loss is nan at step 5; its state is safe at step 3"):
        together("unified", tmp_path, at_once, [Break()])
    whole, broken = (folder_of(tmp_path, seed) for seed in SEEDS)
    assert_same_run(whole, singles("unified")[0])
    assert "the loss is nan" in json.loads((broken / "failed.json").read_text())["error"]
    assert not (broken / "model.safetensors").exists()
    assert [path.name for path in (broken / "checkpoints").glob("*.ckpt")] == ["0000003.ckpt"]
    assert max(line["step"] for line in read_log(broken / "metrics.jsonl")) <= 5


class BreakTheLastStep(pl.Callback):
    """Spoils one seed's last gradient."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == trainer.max_steps - 1:
            next(part for part in pl_module.network.parameters() if part.grad is not None).grad[1] = float("nan")


def test_a_seed_that_falls_in_the_last_step_is_not_finished(tmp_path):
    with pytest.raises(RunFailed, match=r"1 of 2 seeds failed: .*-s5-.*infinite or not a number at step 12"):
        together("unified", tmp_path, 1, [BreakTheLastStep()])
    whole, fallen = (folder_of(tmp_path, seed) for seed in SEEDS)
    assert (whole / "record.json").exists()
    assert not (fallen / "model.safetensors").exists()
    assert not (fallen / "record.json").exists()


class TooMuch(pl.Callback):
    """Wants more memory than there is."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            bytearray(1 << 60)


@pytest.mark.parametrize(
    ("at_once", "seeds", "remedy"),
    [
        (
            4,
            (1, 2, 3, 4),
            "4 were: the same command with seeds_together=2 continues them, and if that is not enough seeds_together=1",
        ),
        (2, (3, 5), "2 were: the same command with seeds_together=1 continues them"),
        (1, (3, 5), "Continue each seed alone with less at a time and the same gradients: nava train --continue"),
    ],
)
def test_seeds_that_need_too_much_memory_are_told_what_helps_seeds(at_once, seeds, remedy, tmp_path):
    ended = {}
    with pytest.raises(RunFailed, match="out of memory") as caught:
        together("unified", tmp_path, at_once, [TooMuch()], seeds, ended=ended.__setitem__)
    assert remedy in str(caught.value)
    assert [str(ended[seed]).split(": ")[0] for seed in seeds] == [str(folder_of(tmp_path, seed)) for seed in seeds]
    told = [json.loads((folder_of(tmp_path, seed) / "failed.json").read_text())["error"] for seed in seeds]
    assert all(remedy in text and "its state is safe at step 3" in text for text in told)
    if at_once > 1:
        assert "--continue" not in str(caught.value)


def test_a_multirun_stacks_the_seeds_of_every_combination(singles, tmp_path):
    told = []
    command = [*overrides("unified", tmp_path), "seeds=3,5"]
    for mine, single in zip(multirun(command, told.append), singles("unified"), strict=True):
        assert_same_run(mine, single)
    assert "2 runs, all checked" in told
    multirun(command, told.append)
    assert "2 runs, all checked; 2 finished before" in told
    jobs = [Job((f"a={a}", f"seed={seed}"), tmp_path, False) for a in (1, 2) for seed in SEEDS]
    assert _stacked(jobs[1:], 2) == [("a=1", "seeds=[5]", "seeds_together=2"), ("a=2", "seeds=[3,5]", "seeds_together=2")]


def test_which_seeds_are_meant():
    assert asked(["seeds=3", "a=b"]) == (["a=b"], (0, 1, 2), 0)
    assert asked(["seeds=4,1", "seeds_together=2"]) == ([], (4, 1), 2)
    assert asked(["seeds=[7]"])[1] == (7,)
    for wrong in (["seeds=0"], ["seeds=1,1"], ["seeds=x"], ["seeds=-1,2"], ["seeds=2", "seeds_together=0"]):
        with pytest.raises(ConfigError, match="seeds"):
            asked(wrong)
    with pytest.raises(ConfigError, match="say the same"):
        asked(["seeds=2", "seed=1"])
    with pytest.raises(ConfigError, match="there are none"):
        asked(["seeds_together=2"])
    with pytest.raises(ConfigError, match="for nava train"):
        load(["seeds=8"])


def test_what_couples_seeds_is_refused_and_what_changes_no_number_set_aside():
    config = load(["trainer=cpu", "attention.packed=true", "trainer.accumulate=2"])
    check_stackable(config)
    assert set_aside(config, 1) == ["trainer.accumulate"]
    assert set_aside(config, 2) == ["trainer.accumulate", "attention.packed"]
    assert (at_once(config, 8), at_once(config, 8, 3), at_once(config, 2, 3)) == (1, 3, 2)
    small = load(["trainer=cpu", "training.batch_size=16"])
    assert (at_once(small, 6), at_once(small, 16)) == (6, 8)
    for change, key in (
        (["trainer.devices=2"], "trainer.devices=1"),
        (["logger=wandb", "logger.project=p"], "logger=tensorboard"),
    ):
        with pytest.raises(ConfigError, match=key):
            check_stackable(load(["trainer=cpu", *change]))
    config = load(["trainer=cpu"])
    with pytest.raises(ConfigError, match="bf16-mixed"):
        check_stackable(study_seeds.replace(config, trainer=study_seeds.replace(config.trainer, precision="16-mixed")))
    with pytest.raises(ConfigError, match="depends on the seed"):
        configs_of(composed(["training.steps=${seed}0"]), (1, 2))


def test_every_seed_has_its_logger(tmp_path):
    changed = [part for part in overrides("unified", tmp_path) if part != "logger=none"]
    folders = run_seeds(configs_of(composed([*changed, "logger=csv", "training.steps=10"]), SEEDS), silent)
    for folder in folders:
        text = (Path(folder) / "csv" / "metrics.csv").read_text()
        head = text.splitlines()[0].split(",")
        assert {"train/loss", "validation/loss", "lr"} <= set(head)
        assert not any(name.startswith("s3/") or name.startswith("s5/") for name in head)
