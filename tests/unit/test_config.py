"""Configs: overrides, mistakes, identity."""

import re
from pathlib import Path

import pytest
import yaml

from nava_lab.config import CONFIGS, ConfigError, from_file, load
from nava_lab.registry import variants, worlds
from nava_lab.study.build import parts
from nava_lab.study.identity import run_hash, run_name
from nava_lab.study.multirun import jobs_of, missing_extra


def test_overrides_reach_their_objects():
    config = load(["variant=align_then_fuse", "variant.align_fraction=0.5", "budget.parameters=2_000_000", "seed=3"])
    assert config.variant.align_fraction == 0.5
    assert config.budget.parameters == 2_000_000
    assert config.seed == 3


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("budget.paramters=3", "budget.parameters"),
        ("variant=unifed", "unified"),
        ("world=puls", "pulse"),
        ("evaluation/solver=hein", "heun"),
        ("variant.align_fractoin=0.2", "variant.align_fraction"),
        ("trianing.steps=3", "training.steps"),
    ],
)
def test_a_misspelt_key_or_name_meets_the_nearest_known_one(override, remedy):
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        load([override])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["training.steps=abc"], "training.steps"),
        (["training.steps=-3"], "training.steps"),
        (["seed=-1"], "seed"),
        (["world.density=9"], "world.density"),
        (["variant.align_fraction=2"], "align_fraction"),
        (["flow.modality_dropout=3"], "modality_dropout"),
        (["flow.weights.sound=2"], "flow.weights"),
        (["flow.coupling=loose"], "flow.coupling"),
        (["flow.clean_loss=true"], "flow.modality_given"),
        (["flow.coupling=one_clean"], "evaluation.given"),
        (["flow.first_step.smell=0.5"], "has audio, video"),
        (["evaluation.given=audio"], "flow.modality_given"),
        (["evaluation.guidance.modality=2"], "flow.modality_dropout=0.2"),
        (["evaluation.guidance.text=2", "world=gaussian"], "no captions"),
        (["evaluation.guidance.text=two"], "evaluation.guidance.text"),
        (["evaluation.guidance.text={smell: 2}"], "names smell"),
        (["evaluation.guidance.apg.norm=1"], "no term is on"),
        (["evaluation.guidance.negative.prompt=red"], "negative.scale"),
        (["evaluation.schedules.audio=karas"], "evaluation.schedules.audio=karas: did you mean 'karras'"),
        (["evaluation.schedules.audio={name: karras, roh: 5}"], "karras has no setting roh; it has rho"),
        (["evaluation.schedules.sound=karras"], "evaluation.schedules names sound"),
        (["evaluation/schedule=custom", "evaluation.schedule.levels=[0.5, 0]"], "from exactly 1"),
        (["evaluation.shifts.audio=-1"], "evaluation.shifts.audio=-1.0 must be positive"),
        (["evaluation.steps=0"], "evaluation.steps=0"),
        (["evaluation.shift=nan"], "evaluation.shift=nan"),
        (["evaluation.shift=inf"], "evaluation.shift=inf"),
        (["flow.levels.shift=nan"], "flow.levels.shift=nan"),
        (["flow.levels.std=nan"], "flow.levels.std=nan"),
        (["flow.levels.mean=inf"], "flow.levels.mean=inf"),
        (["flow.shifts.audio=inf"], "flow.shifts.audio=inf"),
        (["flow/weighting=min_snr", "flow.weighting.gamma=nan"], "flow.weighting.gamma=nan"),
        (["evaluation/solver=churn", "evaluation.solver.churn=inf"], "evaluation.solver.churn=inf"),
        (
            ["evaluation/schedule=karras", "evaluation.schedule.most=inf"],
            "evaluation.schedule: rho=7.0 and least=0.02 < most=inf",
        ),
        (["evaluation.guidance=3"], "evaluation.guidance.text=3, say"),
        (["evaluation.guidance.txt=3"], "evaluation.guidance.txt; did you mean 'evaluation.guidance.text'"),
        (["flow.weighting=min_snr"], "with a slash: flow/weighting=min_snr"),
        (
            ["variant=ovi", "variant.bridge.knd=conditional"],
            "there is no key variant.bridge.knd; did you mean 'variant.bridge.kind'",
        ),
        (["variant=unified", "variant.bridge.kind=conditional"], "variant=unified has no bridge; it is a setting of dual_tower"),
        (["world=pulse", "world.held_out=2"], "world=pulse has no held_out; it is a setting of entangle"),
        (["flow.levels=mod"], "flow/levels=NAME (did you mean 'mode'"),
        (["evaluation.solver=heun"], "with a slash: evaluation/solver=heun"),
        (["evaluation.schedules.video={name: karras, rho: x}"], "evaluation.schedules.video: rho=x must be a number"),
        (["evaluation.schedules.video={name: karras, rho: -1}"], "evaluation.schedules.video: rho=-1.0"),
        (
            ["evaluation.schedules.video={name: custom, levels: 3}"],
            "evaluation.schedules.video: levels=3.0 must be a list of numbers",
        ),
        (
            ["evaluation.schedules.video={name: custom, levels: [1, 2, 0]}"],
            "evaluation.schedules.video.levels=[1.0, 2.0, 0.0] must fall",
        ),
        (
            ["evaluation.guidance.text=2", "evaluation.guidance.apg.parallel=abc"],
            "evaluation.guidance.apg: parallel=abc must be a number",
        ),
        (["evaluation.guidance.text=2", "evaluation.guidance.apg.parallel=inf"], "evaluation.guidance.apg: parallel=inf"),
        (
            ["evaluation.guidance.text=2", "evaluation.guidance.apg.norm=nan"],
            "evaluation.guidance.apg: parallel=1.0 must be finite, norm=nan",
        ),
        (
            ["evaluation.guidance.text=2", "evaluation.guidance.apg.nrm=1"],
            "apg has no setting nrm; it has parallel, norm, momentum",
        ),
        (["evaluation.guidance.text=2", "evaluation.guidance.apg=3"], "evaluation.guidance.apg.parallel=3.0, say"),
        (
            ["evaluation.guidance.text=2", "evaluation.guidance.cfg_zero.fitted=nope"],
            "cfg_zero: fitted=nope must be true or false",
        ),
        (
            ["evaluation.guidance.text=2", "evaluation.guidance.rescale=x"],
            "evaluation.guidance.rescale: share=x must be a number",
        ),
        (["evaluation.guidance.negative={scale: 2, prompt: 3}"], "evaluation.guidance.negative: prompt=3"),
        (["evaluation.branch_rows=0"], "branch_rows"),
        (["budget.parameters=1000"], "possible is"),
        (["evaluation.clips=1"], "clips"),
        (["attention.backend=flush"], "attention.backend=flush is not one of auto, flex, reference, sdpa"),
        (["attention.mask=casual"], "attention.mask=casual: did you mean 'causal'?"),
        (["attention.window_s=-1"], "attention.window_s"),
        (["attention.cut=sound", "flow.modality_dropout=0.2"], "attention.cut=sound is not one of all"),
        (["attention.cut=audio"], "set flow.modality_dropout"),
        (["variant.text_after=6"], "variant.text_after=6"),
    ],
)
def test_a_bad_value_is_refused_before_any_work(overrides, named):
    with pytest.raises(ConfigError, match=re.escape(named)):
        parts(load(overrides))


@pytest.mark.parametrize("variant", variants.names())
@pytest.mark.parametrize("world", worlds.names())
def test_every_pair_composes_and_survives_its_own_file(variant, world, tmp_path):
    config = load([f"variant={variant}", f"world={world}"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved)))
    again = from_file(tmp_path / "config.yaml")
    assert again.resolved == config.resolved
    assert run_name(again.resolved, "d") == run_name(config.resolved, "d")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_config_file_composes(file):
    if file.parent.name == "launcher" and (extra := missing_extra(file.stem)):
        pytest.skip(f"launcher={file.stem} needs pip install 'nava-lab[{extra}]'")
    assert load([f"{file.parent.name}={file.stem}"]).resolved


def test_identity_is_the_whole_config_and_the_data():
    base = load([])
    for override in (
        "seed=1",
        "training.lr=0.001",
        "world.density=1.0",
        "evaluation.steps=24",
        "attention.window_s=1.0",
        "attention.mask=causal",
    ):
        assert run_hash(load([override]).resolved, "d") != run_hash(base.resolved, "d")
    assert run_hash(base.resolved, "d") != run_hash(base.resolved, "e")
    how = ["output.root=elsewhere", "logger=csv", "training.checkpoints=3", "training.checkpoint_minutes=1"]
    assert run_hash(load(how).resolved, "d") == run_hash(base.resolved, "d")


def test_guidance_that_is_off_is_no_part_of_a_run():
    assert load([]).resolved["evaluation"]["guidance"] == {}
    assert run_hash(load(["evaluation.guidance.text=1"]).resolved, "d") == run_hash(load([]).resolved, "d")
    assert run_hash(load(["evaluation.guidance.text=2"]).resolved, "d") != run_hash(load([]).resolved, "d")


def test_settings_by_modality_and_guidance_survive_the_run_s_own_file(tmp_path):
    config = load(
        [
            "flow.weights.audio=0.2",
            "flow.first_step.video=0.5",
            "evaluation.shifts.audio=2",
            "evaluation.schedules.audio={name: karras, rho: 5}",
            "evaluation.schedules.video=uniform",
            "evaluation/schedule=custom",
            "evaluation.guidance.text={video: 3}",
            "evaluation.guidance.apg.norm=1",
            "flow/weighting=min_snr",
        ]
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved)))
    assert from_file(tmp_path / "config.yaml").resolved == config.resolved
    assert from_file(tmp_path / "config.yaml", ["evaluation/schedule=karras"]).evaluation.schedule.name == "karras"
    old = yaml.safe_load(yaml.safe_dump(dict(load([]).resolved)))
    for group, key in (("evaluation", "guidance"), ("evaluation", "schedule"), ("flow", "weighting"), ("flow", "first_step")):
        del old[group][key]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert from_file(tmp_path / "config.yaml").resolved == load([]).resolved


def test_clips_has_its_shortcut(tmp_path):
    assert load(["world=clips", f"clips.path={tmp_path}"]).world.path == str(tmp_path)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="not a run's folder"):
        from_file(Path(tmp_path) / "config.yaml")


def test_the_world_called_null_is_a_world_and_not_nothing(tmp_path):
    config = load(["world=null", "variant=unified"])
    assert config.world.name == "null"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved)))
    assert from_file(tmp_path / "config.yaml").world == config.world
    small = ["variant=unified", "budget.parameters=300_000"]
    names = [job.overrides for job in jobs_of(["world=null,pulse", *small])]
    assert [load(overrides).world.name for overrides in names] == ["null", "pulse"]


@pytest.mark.parametrize(
    ("override", "said"),
    [("difficulty=hrad", "did you mean 'hard'"), ("dificulty=hard", "difficulty"), ("difficulty=hard world=clips", "no levels")],
)
def test_a_difficulty_that_cannot_be_meant(override, said):
    with pytest.raises(ConfigError, match=said):
        load(override.split())
