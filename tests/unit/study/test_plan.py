"""What a plan says before anything starts: every listed value is composed, the costliest run is priced, hopeless families are told."""

import json

import pytest
import yaml

from nava_lab.cli.commands.study import _costs
from nava_lab.study import plan as plans
from nava_lab.study.grammar import StudyError
from nava_lab.study.plan import CORNERS, START_S, Plan, plan_of, settings_of
from nava_lab.study.spec import read_study

STUDY = """# Does a plan tell what it will cost?
fixed: {{world: gaussian, experiment: smoke, variant: unified, {depth}logger: none}}
metric: cross_modal_use
seeds: {seeds}
vary: {{flow.text_dropout: {levels}}}
tuning: {{space: {{{space}}}, trials: 2}}
contrasts: {{against: {{flow.text_dropout: 0.1}}}}
"""
SIZES = "budget.parameters: [40_000, 80_000, 60_000]"


def study(folder, space=SIZES, seeds=8, levels="[0.1]"):
    depth = "" if "depth" in space else "variant.depth: 2, "
    (folder / "plan.yaml").write_text(STUDY.format(space=space, seeds=seeds, levels=levels, depth=depth))
    return read_study(folder / "plan.yaml")


def test_every_listed_value_and_every_corner_is_among_what_is_composed(tmp_path):
    space = "variant.depth: {low: 2, high: 4}, training.lr: [3e-3, 1e-3, 2e-3], evaluation/solver: [heun, euler, rk4, midpoint]"
    found = [tuple(part.values()) for part in settings_of(study(tmp_path, space))]
    assert {lr for _, lr, _ in found} == {1e-3, 2e-3, 3e-3}
    corners = {(depth, lr, solver) for depth in (2, 4) for lr in (1e-3, 3e-3) for solver in ("heun", "euler", "rk4", "midpoint")}
    assert corners <= set(found)
    assert len(found) == len(set(found)) <= len(corners) + 4
    many = ", ".join(f"a{number}: [1, 2, 3]" for number in range(9))
    assert len(settings_of(study(tmp_path, many))) <= CORNERS


def test_a_misspelt_value_within_a_tuned_list_stops_the_plan(tmp_path):
    wrong = study(tmp_path, "evaluation/solver: [heun, huen, euler]")
    with pytest.raises(StudyError, match=r"plan, flow.text_dropout=0.1: .*huen|plan, text_dropout=0.1: .*huen"):
        plan_of(wrong, tmp_path, timed=False)


def test_the_costliest_run_is_priced_and_the_cheapest_told_beside_it(tmp_path):
    part = plan_of(study(tmp_path), tmp_path, timed=False).points[0]
    assert part.cost.total == pytest.approx(80_000, rel=0.02)
    assert part.least.total == pytest.approx(40_000, rel=0.02)
    assert part.flops > part.least_flops > 0
    parameters, per_clip, flops, _ = _costs(part)
    assert parameters == f"{part.least.total:,} to {part.cost.total:,}"
    assert " to " in per_clip
    assert " to " in flops
    alike = plan_of(study(tmp_path, "training.lr: [1e-3, 2e-3, 3e-3]"), tmp_path, timed=False).points[0]
    assert " to " not in " ".join(_costs(alike))


UNLIKE = {
    "itself": {},
    "of another depth": {"flops_per_sample": 1},
    "of another size": {"size": {"width": 8, "hidden": 16}},
    "at another batch": {"samples_seen": 1},
    "on another device": {"evaluation": {"device": "cuda"}},
    "in another precision": {"trainer": "precision"},
    "on two devices": {"trainer": "devices"},
    "by another attention": {"attention": "backend"},
    "continued elsewhere": {"machines": [{}, {}]},
    "stacked with other seeds": {"stacked_with": [1, 2]},
}


@pytest.mark.parametrize("how", UNLIKE)
def test_a_run_takes_the_time_of_finished_runs_that_are_like_it_alone(tmp_path, monkeypatch, how):
    monkeypatch.setattr(plans, "_speeds", lambda config, built: (1.0, 0.0))
    asked = study(tmp_path, "training.lr: [1e-3, 2e-3, 3e-3]")
    point = plan_of(asked, tmp_path, timed=False).points[0]
    settings, cost, steps = dict(point.config.resolved), point.cost, point.config.training.steps
    made = {
        **{"schema": 1, "variant": "unified", "world": "gaussian", "steps": 10, "samples_seen": 10 * 8, "wall_time_s": 70.0},
        **{"size": vars(point.solution.size), "flops_per_sample": cost.flops_per_sample, "evaluation": {"device": "cpu"}},
    }
    for key, value in UNLIKE[how].items():
        if key in ("trainer", "attention"):
            settings[key] = {**settings[key], value: "other"}
        else:
            made[key] = value
    folder = tmp_path / "runs" / "unified-gaussian-s0-0"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(made))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    expected = plan_of(asked, tmp_path / "runs", timed=True).points[0].expected
    alike = how == "itself"
    assert expected.seconds == pytest.approx(steps * (7.0 if alike else 1.0) + START_S)
    assert expected.source.startswith("speed of 1 finished runs" if alike else "3 steps tried now")


def test_a_family_that_no_seed_could_decide_is_told_before_it_is_run(tmp_path):
    levels, space = "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]", "training.lr: [1e-3, 2e-3, 3e-3]"

    def told(*arguments):
        return Plan(study(tmp_path, space, *arguments), ()).warnings

    assert told(8, levels) == [
        "7 contrasts over so few seeds leave none of them a chance: after Holm no p can fall below 0.055. "
        "Declare fewer, or run 9 seeds."
    ]
    assert told(9, levels) == told(8, "[0.1, 0.2]") == []
    assert told(3, "[0.1, 0.2]") == ["3 seeds: exploratory, a verdict takes 8"]
