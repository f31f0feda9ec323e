"""What a search for two objectives ends in: which designs stay on the front over fresh seeds."""

import dataclasses
import json

import pytest

from nava_lab.report.compare import compare
from nava_lab.report.figures import figures
from nava_lab.report.front import confirmed_front
from nava_lab.report.page import write_page
from nava_lab.report.runs import Run
from nava_lab.study.results import CONFIRMATION, TUNING, Choice, PlannedRun, StudyResult, as_json
from nava_lab.study.spec import study_of
from tests.unit.report.made import make_run

FOUND = {"a": (1e8, 0.3), "b": (2e8, 0.5), "c": (3e8, 0.5), "d": (4e8, 0.4)}  # label -> FLOPs, score


def runs_of(found, seeds=8, spread=0.01):
    """Records in memory; seed by seed the designs stray apart a little."""
    return [
        Run(None, {"seed": seed, "flops_per_sample": cost, "scores": {"sync_auc": {"value": score + spread * ((seed * 3 + place) % 5 - 2)}}}, {}, (), label)
        for place, (label, (cost, score)) in enumerate(found.items())
        for seed in range(seeds)
    ]  # fmt: skip


def test_a_design_stays_where_everything_that_costs_no_more_is_behind_it():
    designs, contrasts = confirmed_front(runs_of(FOUND), {}, "sync_auc", True)
    assert [design.label for design in designs] == ["a", "b", "c", "d"]
    assert [(part.found.first, part.found.second, part.outcome) for part in contrasts] == [
        ("b", "a", "ahead"),
        ("c", "b", "open"),
        ("d", "b", "behind"),
    ]
    assert {part.among for part in contrasts} == {3}  # one question per design, not one per pair
    assert (designs[0].stays, designs[1].stays, designs[3].stays) == (8, 8, 0)
    assert 0 < designs[2].stays < 8
    assert designs[3].beaten_by in ("b", "c")
    # Falling off is held against the best of three, so its p is times three (then Holm: the second of three).
    assert contrasts[2].p == pytest.approx(2 * 3 * 2 / 2**8)


def test_less_may_be_better_and_equal_costs_are_rivals():
    lower = {label: (cost, -score) for label, (cost, score) in FOUND.items()}
    assert [part.outcome for part in confirmed_front(runs_of(lower), {}, "sync_auc", False)[1]] == ["ahead", "open", "behind"]
    designs, contrasts = confirmed_front(runs_of({"a": (1e8, 0.3), "b": (1e8, 0.5)}), {}, "sync_auc", True)
    assert [part.outcome for part in contrasts] == ["behind", "ahead"]
    assert [design.stays for design in designs] == [0, 8]


FIELDS = {
    "fixed": {"world": "pulse", "variant": "align_then_fuse"},
    "seeds": 8,
    "metric": "sync_auc",
    "tuning": {
        "space": {"variant.align_fraction": [0, 0.5, 1], "budget.parameters": [500_000, 1_000_000, 2_000_000]},
        "sampler": "nsga2",
        "trials": 4,
        "front": 3,
    },
}


def front_study(root, seeds=8, scores=(0.3, 0.5, 0.4), failed=()):
    study = study_of(FIELDS | {"seeds": seeds}, "pareto", "", "Which designs give the most synchrony for their FLOPs?", "made up")
    point, runs, choices = study.points[0], [], {}
    for number, (score, parameters) in enumerate(zip(scores, (500_000, 1_000_000, 2_000_000), strict=True), 1):
        tuned = {"variant.align_fraction": 0.5, "budget.parameters": parameters}
        choices[f"front {number}"] = Choice(point.key, tuned, score, 4, 0, 0, {}, number)
        runs.append(PlannedRun(point.key, "", TUNING, 10_000, "finished", None, tuned, number, score))
        for seed in range(seeds):
            if (number, seed) in failed:
                runs.append(PlannedRun(f"front {number}", "", CONFIRMATION, seed, "failed", None, tuned, error="the loss is nan"))
                continue
            folder = make_run(
                root,
                seed,
                score + 0.01 * ((seed * 3 + number) % 5 - 2),
                ("variant.align_fraction=0.5", f"budget.parameters={parameters}"),
                parameters=parameters,
                flops=200.0 * parameters,
                folder=f"run-{number}-{seed}",
                budget={"kind": "parameters", "requested": parameters, "realised": parameters},
            )
            runs.append(PlannedRun(f"front {number}", "", CONFIRMATION, seed, "finished", folder, tuned))
    folder = root / "studies" / "pareto-0123456789"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(as_json(StudyResult(study, folder, True, tuple(runs), choices))))
    return folder


def test_a_front_is_concluded_and_not_refused_for_its_budgets(tmp_path):
    found = compare([front_study(tmp_path)])
    assert (found.status, found.reservations, found.differences) == ("verdict", [], [])
    assert found.summary == (
        "Of 3 designs of the front in sync_auc, front 1 is the cheapest, and front 2 stays on it, ahead of all that cost no more. "
        "front 3 has fallen off it: front 2 costs no more and is ahead."
    )
    assert found.findings[1].startswith(
        "front 2 (variant.align_fraction 0.5, budget.parameters 1M): 200 M training FLOPs per clip, sync_auc 0.499 ["
    )
    assert found.findings[1].endswith("not beaten at its cost on 8 of 8 seeds.")
    assert "; by its mean front 2 beats it." in found.findings[2]
    names = [figure.name for figure in figures(found)]
    assert "against_flops" in names
    assert "against_front" not in names
    text = write_page(found, tmp_path / "page").read_text()
    assert "Each design of the front minus its strongest rival" in text


def test_few_seeds_and_failed_ones_are_no_verdict_on_a_front(tmp_path):
    found = compare([front_study(tmp_path / "few", seeds=3)])
    assert found.status == "exploratory"
    assert found.summary == (
        "Exploratory: 3 seeds per design, and a verdict needs 8. By their means in sync_auc, nothing that costs no more beats front 1 and "
        "front 2."
    )
    found = compare([front_study(tmp_path / "failed", seeds=10, failed={(2, 3)})])
    assert found.status == "provisional"
    assert found.reservations[0].startswith("front 2: 1 of 10 confirmation seeds failed (seed 3: the loss is nan)")


def test_what_a_front_may_not_differ_in_still_refuses_it(tmp_path):
    folder = front_study(tmp_path)
    record = tmp_path / "run-2-0" / "record.json"
    made = json.loads(record.read_text())
    record.write_text(json.dumps(made | {"samples_seen": 1}))
    found = compare([folder])
    assert found.status == "not ranked"
    assert found.summary.startswith("Not ranked: training length (samples) differs")
    assert dataclasses.asdict(found.front[0])["label"] == "front 1"
