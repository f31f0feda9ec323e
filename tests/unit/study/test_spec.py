"""A study's file: what it may say, what it becomes, and one clear sentence for each mistake."""

import dataclasses
import json

import pytest
import yaml

from nava_lab.config import load
from nava_lab.study.grammar import StudyError, override, shown
from nava_lab.study.results import CONFIRMATION, Choice, PlannedRun, StudyResult, as_json, load_study
from nava_lab.study.space import Dimension
from nava_lab.study.spec import Contrast, read_study

GOOD = """# How much of the depth should align?
fixed: {world: gaussian, variant: align_then_fuse}
vary: {variant.align_fraction: [0, 0.5, 1]}
seeds: 8
metric: cross_modal_use
budgets:
  parameters: {budget.parameters: 300_000}
  flops: {budget.parameters: null, budget.flops: 1e8}
tuning:
  space: {training.lr: {low: 1e-3, high: 1e-2, log: true, steps: 3}}
  sampler: grid
contrasts: {against: {variant.align_fraction: 0}}
margins: {cross_modal_use: 0.02}
editions:
  cpu: {seeds: 3, fixed: {training.steps: 4}, tuning: {seeds: 2}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ratio.yaml"
    path.write_text(GOOD)
    return path


def test_a_study_is_its_points_under_every_budget_with_paired_seeds(file):
    study = read_study(file)
    assert study.question == "How much of the depth should align?"
    assert [point.key for point in study.points] == [
        f"align_fraction={fraction} [{budget}]" for budget in ("parameters", "flops") for fraction in ("0", "0.5", "1")
    ]
    assert study.seeds == tuple(range(8))
    assert study.tuning.trials == 3
    assert study.tuning.space[0].grid() == (0.001, 0.00316228, 0.01)
    assert not set(study.tuning.seeds) & set(study.seeds)
    assert study.contrasts == tuple(
        Contrast(f"align_fraction={fraction}", "align_fraction=0", budget)
        for budget in ("parameters", "flops")
        for fraction in ("0.5", "1")
    )


def test_an_edition_and_overrides_change_what_they_name_alone(file):
    study = read_study(file, "cpu", ["budgets=flops", "world.rho=0.5", "tuning.sampler=tpe", "tuning.trials=5"])
    assert (len(study.seeds), len(study.tuning.seeds), study.tuning.trials, study.budgets) == (3, 2, 5, ("flops",))
    assert study.fixed == {"world": "gaussian", "variant": "align_then_fuse", "training.steps": 4, "world.rho": 0.5}
    config = load(study.overrides(study.points[1], 2, {"training.lr": 0.002}))
    assert (config.seed, config.training.lr, config.variant.align_fraction, config.budget.kind) == (2, 0.002, 0.5, "flops")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("# How much of the depth should align?", "question: a", "the first line must be a comment with one question"),
        ("seeds: 8", "sedes: 8", "ratio.yaml: there is no field sedes; did you mean 'seeds'"),
        ("sampler: grid", "smapler: grid", "ratio.yaml: tuning: there is no field smapler; did you mean 'sampler'"),
        ("sampler: grid", "sampler: gird", "ratio.yaml: tuning.sampler=gird: did you mean 'grid'"),
        ("sampler: grid", "sampler: grid\n  trials: 2", "the grid has 3 cells"),
        ("steps: 3}", "stpes: 3}", "tuning.space.training.lr: there is no field stpes"),
        ("low: 1e-3", "low: 1", "low=1 must be below high=0.01"),
        ("metric: cross_modal_use\n", "", "metric must name the score"),
        ("seeds: 8", "seeds: [1, 1]", "different seeds"),
        ("seeds: 8", "seeds: [10000]", "confirm on fresh ones"),
        ("against: {variant.align_fraction: 0}", "against: {variant.align_fractoin: 0}", "did you mean 'variant.align_fraction'"),
        ("against: {variant.align_fraction: 0}", "against: {variant.align_fraction: 0.4}", "contrasts.against.variant.align_fraction=0.4"),
        ("against: {variant.align_fraction: 0}", "pairs: [[align_fraction=0, align_fraction=2]]", "there is no 'align_fraction=2'"),
        ("[0, 0.5, 1]", "[0, 0]", "lists a value twice"),
        ("[0, 0.5, 1]", "0", "must be a list of values"),
        ("cross_modal_use: 0.02", "cross_modal_use: -1", "must be above 0"),
        ("against: {variant.align_fraction: 0}", "slopes: {variant.align_fraction: {variant: unified}}", "variant does not vary"),
        ("against: {variant.align_fraction: 0}", "slopes: {variant.align_fraction: {variant.align_fraction: 0}}", "must vary together"),
        ("sampler: grid", "sampler: grid\n  pruner: median", "tuning: pruner median ends trials by the validation loss, and they are judged by cross_modal_use"),
        ("sampler: grid", "sampler: nsga2\n  pruner: median", "cannot be pruned"),
        ("editions:\n", "without: flops\neditions:\n", "without must list the names of budgets"),
        ("editions:\n", "without: [flops]\neditions:\n", "without names flops, which budgets has"),
        ("editions:\n", "scaling: {axis: variant.depth}\neditions:\n", "scaling.axis=variant.depth does not vary"),
    ],
)  # fmt: skip
def test_every_mistake_names_the_file_the_key_and_the_nearest(file, old, new, told):
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(StudyError) as error:
        read_study(file)
    assert told in str(error.value)
    assert "ratio.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("edition", "overrides", "told"),
    [
        ("gpu", [], "has no edition gpu"),
        ("", ["budgets=flosp"], "did you mean 'flops'"),
        ("", ["tuning.trails=3"], "did you mean 'trials'"),
        ("", ["variant.align_fraction=1"], "varies variant.align_fraction, so it cannot be fixed"),
        ("", ["contrasts=1"], "edit contrasts in"),
        ("", ["tuning.trials=4"], "the grid has 3 cells; leave trials out, or give tuning.sampler=tpe"),
        ("", ["training.lr=1e-4"], "training.lr=1e-4 would be ignored where .*ratio.yaml says tuning.space.training.lr"),
        (
            "",
            ["budget.parameters=1_000_000"],
            "says budgets.parameters.budget.parameters: give budgets.parameters.budget.parameters=V",
        ),
        ("", ["budgets.parameters.training.lr=1"], "says tuning.space.training.lr"),
        ("", ["budgets.flops.variant.align_fraction=1"], "varies variant.align_fraction, so it cannot be fixed"),
        ("", ["budgets.flosp.budget.flops=1e8"], "did you mean 'flops'"),
        ("", ["+training.lr=1e-4"], "would be ignored"),
        ("", ["seed=99"], "seed=99 would be ignored: seeds=N"),
        ("", ["evaluation.split=validation"], "would be ignored: tuning is scored on the validation split"),
        ("", ["output.progress=true"], "would be ignored: output.root=FOLDER"),
    ],
)
def test_what_is_given_on_the_command_line_is_checked_too(file, edition, overrides, told):
    with pytest.raises(StudyError, match=told):
        read_study(file, edition, overrides)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("variant.placement=late", "says vary.where.late.variant.placement: edit the level there"),
        ("flow.shifts.audio=2", "says vary.where.late.flow.shifts"),
        ("flow/levels=uniform", "says vary.flow.levels"),
        ("flow.shifts={video: 2, audio: 2}", "says vary.where.late.flow.shifts"),
        ("variant={placement: late}", "says vary.where.late.variant.placement"),
    ],
)
def test_a_key_that_some_levels_set_is_not_free(file, override, told):
    levels = "[{where: {late: {variant.placement: late, flow.shifts: {audio: 3}}, plain: {}}}, {flow.levels: [uniform, lognorm]}]"
    file.write_text(GOOD.replace("{variant.align_fraction: [0, 0.5, 1]}", levels).replace("{variant.align_fraction: 0}", "{}"))
    with pytest.raises(StudyError, match=told):
        read_study(file, overrides=[override])
    assert read_study(file, overrides=["variant=unified", "flow.weights={audio: 2}"]).fixed["variant"] == "unified"


def test_an_experiment_stands_for_all_keys_that_it_sets(file):
    """It holds over what the file fixes, gives way to what is given beside it, and is refused where something lies over it."""
    with pytest.raises(
        StudyError, match=r"experiment=smoke \(its budget.parameters=300000\) would be ignored where .* says budg"
    ):
        read_study(file, overrides=["experiment=smoke"])
    file.write_text(GOOD.replace("{world: gaussian,", "{training.steps: 450, world: gaussian,").replace("0.5, 1]", "0.5]"))
    text = file.read_text()
    start, end = text.index("budgets:"), text.index("tuning:")
    file.write_text(text[:start] + text[end:])
    for overrides, steps in ((["experiment=smoke"], 20), (["experiment=smoke", "training.steps=7"], 7), (["training.steps=7", "experiment=smoke"], 7)):  # fmt: skip
        study = read_study(file, overrides=overrides)
        config = load(study.overrides(study.points[0], 0))
        assert (config.training.steps, config.training.batch_size) == (steps, 8)
    with pytest.raises(StudyError, match="experiment=smok: did you mean 'smoke'"):
        read_study(file, overrides=["experiment=smok"])
    file.write_text(file.read_text().replace("training.lr:", "training.batch_size:"))
    with pytest.raises(StudyError, match=r"\(its training.batch_size=8\) would be ignored where .* says tuning.space"):
        read_study(file, overrides=["experiment=smoke"])
    file.write_text(GOOD)
    with pytest.raises(StudyError, match="an option of experiment gives way to every key"):
        read_study(file, overrides=["budgets.flops.experiment=smoke"])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("fixed: {", "fixed: {training.lr: 0.01, ", "fixed.training.lr would be ignored where tuning.space.training.lr holds"),
        ("fixed: {", "fixed: {budget.flops: 1e8, ", "fixed.budget.flops would be ignored where budgets.flops.budget.flops"),
        ("fixed: {", "fixed: {variant.align_fraction: 1, ", "fixed.variant.align_fraction would be ignored where vary.variant.al"),
        ("fixed: {", "fixed: {training: {lr: 0.01}, ", "fixed.training would be ignored where tuning.space.training.lr holds"),
        ("{budget.parameters: 300_000}", "{variant.align_fraction: 1}", "budgets.parameters.variant.align_fraction would be ign"),
        ("{budget.parameters: 300_000}", "{training.lr: 0.1}", "budgets.parameters.training.lr would be ignored where tuning"),
        ("0.5, 1]}", "0.5, 1], a: {b: {variant.align_fraction: 0}}}", "vary.variant.align_fraction would be ignored where vary.a.b"),
        ("0.5, 1]}", "0.5, 1], a: {b: {training.lr: 0}}}", "vary.a.b.training.lr would be ignored where tuning.space.training.lr"),
        ("0.5, 1]}", "0.5, 1], experiment: [cut, smoke]}", "vary.experiment would set training.steps=20, and fixed.training.steps holds"),
    ],
)  # fmt: skip
def test_a_file_hides_nothing_that_it_says_itself(file, old, new, told):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    file.write_text(text.replace("fixed: {", "fixed: {training.steps: 450, ", 1) if "experiment" in new else text)
    with pytest.raises(StudyError) as error:
        read_study(file)
    assert told in str(error.value)


def test_what_never_meets_in_a_run_may_set_the_same_key(file):
    levels = "[{variant.align_fraction: [0, 0.5]}, {a: {b: {variant.align_fraction: 1}, c: {}}}]"
    text = GOOD.replace("{variant.align_fraction: [0, 0.5, 1]}", levels).replace("{variant.align_fraction: 0}", "{}")
    file.write_text(text.replace("fixed: {", "fixed: {experiment: smoke, "))  # an experiment is there to be refined
    assert len(read_study(file).points) == 8


def test_what_is_given_is_in_every_run_or_under_its_budget_alone(file):
    study = read_study(file, overrides=["budgets.parameters.budget.parameters=1_000_000", "tuning=null", "training.lr=1e-4"])
    told = {point.budget: load(study.overrides(point, 3)) for point in study.points}
    assert {name: config.budget.parameters for name, config in told.items()} == {"parameters": 1_000_000, "flops": None}
    assert {config.training.lr for config in told.values()} == {1e-4}
    one = read_study(file, overrides=["budgets=flops", "world.rho=0.5"])
    assert {point.settings["budget.flops"] for point in one.points} == {1e8}


@pytest.mark.parametrize(
    ("edition", "overrides", "left"),
    [("", [], ()), ("", ["budgets=flops"], ("parameters",)), ("half", [], ("flops",)), ("half", ["seeds=9"], ("flops",)), ("third", ["budgets=least"], ("parameters", "flops"))],
)  # fmt: skip
def test_a_budget_that_the_question_asks_for_is_remembered_whatever_took_it_away(file, tmp_path, edition, overrides, left):
    """An edition, an override, or both; and by what is saved of such a study, to be run once more."""
    half = "  half: {budgets: {parameters: {budget.parameters: 100_000}}}\n"
    third = "  third: {budgets: {least: {budget.parameters: 50_000}}}\n"
    file.write_text(GOOD + half + third)
    study = read_study(file, edition, overrides)
    assert study.origin.without == left
    saved = tmp_path / "saved.yaml"
    saved.write_text(f"# {study.question}\n" + yaml.safe_dump(dict(study.source)))
    assert read_study(saved).origin.without == left
    assert read_study(saved).source == study.source
    folder = tmp_path / "runs" / "studies" / "ratio"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(as_json(StudyResult(study, folder, True, (), {}))))
    assert load_study(folder).study == study


@pytest.mark.parametrize("setting", ["seed: 3", "evaluation.split: validation", "output.root: x"])
@pytest.mark.parametrize("place", ["fixed: {", "parameters: {"])
def test_a_study_sets_no_seed_split_or_folder_of_its_runs(file, place, setting):
    file.write_text(GOOD.replace(place, f"{place}{setting}, ", 1))
    with pytest.raises(StudyError, match=f"ratio.yaml: {setting.split(':')[0]} is not for a study to set"):
        read_study(file)


def test_optional_levels_that_are_not_here_are_left_out_and_said(file):
    text = GOOD.replace(", variant: align_then_fuse}", "}")
    file.write_text(text.replace("[0, 0.5, 1]}", "[0, 1], variant: [unified, yet_to_come]}\noptional: [variant]"))
    study = read_study(file, here=lambda settings: settings["variant"] == "unified")
    assert study.left_out == ("variant=yet_to_come",)
    assert {point.levels["variant"] for point in study.points} == {"unified"}
    assert len(read_study(file).points) == 8  # where nothing is said of what there is


def test_named_levels_set_several_keys_and_grids_add_up(file):
    levels = (
        "[{variant.align_fraction: [0, 1]}, {bridge: {open: {flow.coupling: independent, flow.text_dropout: 0.2}, shut: {}}}]"
    )
    file.write_text(GOOD.replace("{variant.align_fraction: [0, 0.5, 1]}", levels))
    study = read_study(file, overrides=["budgets=flops"])
    assert [point.label for point in study.points] == ["align_fraction=0", "align_fraction=1", "bridge=open", "bridge=shut"]
    assert study.points[2].settings["flow.coupling"] == "independent"


def test_a_slope_is_a_lead_along_an_axis_under_each_budget(file):
    text = GOOD.replace("{variant.align_fraction: [0, 0.5, 1]}", "{world.rho: [0.5, 0.9], variant: [unified, dual_tower]}")
    text = text.replace(", variant: align_then_fuse}", "}")
    file.write_text(text.replace("{against: {variant.align_fraction: 0}}", "{slopes: {world.rho: {variant: dual_tower}}}"))
    study = read_study(file)
    steps = tuple((rho, f"rho={rho}, variant=unified", f"rho={rho}, variant=dual_tower") for rho in (0.5, 0.9))
    expected = [Contrast("variant=unified", "variant=dual_tower", budget, "world.rho", steps) for budget in study.budgets]
    assert study.contrasts == tuple(expected)
    file.write_text(file.read_text().replace("slopes: {world.rho: {variant: dual_tower}}", "slopes: {variant: {world.rho: 0.5}}"))
    with pytest.raises(StudyError, match="a slope is along numbers, and variant lists others"):
        read_study(file)


@pytest.mark.parametrize(
    "value", [1, 0.003, True, None, "pulse", "a b", "it's", "null", ["attention", "text"], [1, 0.5], {"a": 1}, -3e-5]
)
def test_hydra_reads_an_override_back_as_the_same_value(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(override("some.key", value))
    found = parsed.value()
    assert (found if not hasattr(found, "text") else found.text) == value


def test_values_are_shown_as_a_reader_writes_them():
    assert [shown(part) for part in (1 / 3, True, None, 300_000, 1_000_000, 64, ["a", "b"], [])] == [
        "0.333333", "true", "null", "300k", "1M", "64", "a+b", "none",
    ]  # fmt: skip


def test_an_optimum_at_an_end_is_told():
    lr = Dimension("training.lr", low=1e-3, high=1e-1, log=True)
    assert [lr.bound(value) for value in (1e-3, 1.05e-3, 1e-2, 9.9e-2)] == ["low", "low", "", "high"]
    assert [Dimension("a", (1, 2, 4)).bound(value) for value in (1, 2, 4)] == ["low", "", "high"]
    assert Dimension("a", ("x", "y")).bound("x") == ""
    share = Dimension("a", (0, 0.5, 1), closed="low")
    assert [share.bound(value) for value in (0, 0.5, 1)] == ["", "", "high"]
    assert [share.at_closed(value) for value in (0, 0.5, 1)] == ["low", "", ""]
    both = Dimension("a", low=0.0, high=1.0, closed="both")
    assert [(both.bound(value), both.at_closed(value)) for value in (0, 0.5, 1)] == [("", "low"), ("", ""), ("", "high")]


def test_ends_beyond_which_there_is_nothing_are_declared(file):
    space = "{low: 1e-3, high: 1e-2, log: true, steps: 3}"
    assert space in GOOD

    def dimension(text, extra=""):
        file.write_text(GOOD.replace(space, text) + extra)
        return read_study(file).tuning.space[0]

    assert dimension(space.replace("}", ", closed: high}")).closed == "high"
    assert dimension("{values: [0, 0.5, 1], closed: both}") == Dimension("training.lr", (0, 0.5, 1), closed="both")
    assert dimension("{values: [1, 2], closed: both}").grid() == (1, 2)
    assert dimension("[a, b]").values == ("a", "b")
    for text, told in (
        ("[1, 2]", "training.lr lists two numbers, and whichever is best lies at an end: list three or more"),
        ("{values: [1, 2], closed: low}", "lists two numbers"),
        ("{values: [a, b], closed: low}", "only numbers have ends"),
        ("{values: [1, 2, 3], closed: hihg}", "closed=hihg: did you mean 'high'"),
        ("{values: [1, 2, 3], log: true}", "there is no field log"),
        ("{values: 3}", "fewer than two"),
    ):
        with pytest.raises(StudyError) as error:
            dimension(text)
        assert told in str(error.value)


def test_a_result_is_read_back_as_it_was_written(file, tmp_path):
    study = read_study(file, "cpu")
    folder = tmp_path / "runs" / "studies" / "ratio"
    folder.mkdir(parents=True)
    point = study.points[0]
    runs = (
        PlannedRun(
            point.key, point.budget, CONFIRMATION, 0, "finished", tmp_path / "runs" / "a", {"training.lr": 0.1}, None, 0.5
        ),
        PlannedRun(point.key, point.budget, CONFIRMATION, 1, "failed", error="no"),
    )
    choice = Choice(point.key, {"training.lr": 0.1}, 0.5, 3, 0, 1, {"training.lr": "high"})
    result = StudyResult(study, folder, True, runs, {point.key: choice})
    (folder / "study.json").write_text(json.dumps(as_json(result)))
    back = load_study(folder)
    assert back == dataclasses.replace(result)
    assert back.complete
    assert [run.seed for run in back.confirmations(point)] == [0, 1]
    with pytest.raises(StudyError, match=r"study.json is missing"):
        load_study(tmp_path)
