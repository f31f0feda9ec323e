"""Every study in sweeps/ composes, run by run, in every edition; what it asks can be answered by what it runs."""

import dataclasses

import pytest

from nava_lab.budget.measure import measure
from nava_lab.budget.solve import Solution
from nava_lab.config import load
from nava_lab.models.variant import Size
from nava_lab.registry import PACKAGE
from nava_lab.study import build
from nava_lab.study.build import parts
from nava_lab.study.conduct import Wish, is_here, planned, read
from nava_lab.study.grammar import StudyError
from nava_lab.study.plan import plan_of
from nava_lab.study.spec import read_study
from tests.conftest import fitting

FILES = sorted((PACKAGE.parent / "sweeps").glob("*.yaml"))
ASKED = {"align_fuse_ratio", "three_families", "five_systems", "clock", "timestep_coupling", "text_placement", "event_density",
         "what_alignment_keeps", "sizes"}  # fmt: skip


def cheap(variant, interface, budget):
    """A size at once in place of the solved one: that budgets can be met is the solver's own test, and --plan's."""
    size = fitting(variant, Size(64, 128))
    key = repr((type(variant), variant, interface))
    if key not in COSTS:
        COSTS[key] = measure(variant, interface, size)
    return Solution(size, COSTS[key], budget, float(budget.requested or 0), ())


COSTS = {}


def test_the_questions_are_there():
    assert {file.stem for file in FILES} >= ASKED


@pytest.mark.parametrize("edition", ["cpu", "gpu"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_run_of_every_edition_composes(file, edition, monkeypatch):
    monkeypatch.setattr(build, "solve", cheap)
    monkeypatch.setattr(build, "_solutions", {})
    if file.stem == "five_systems" and not is_here({"variant": "nava"}):
        pytest.skip("the five systems are not in this checkout")
    study, root = read(Wish(file, (), edition))
    # What varies is composed whole under one budget of one edition; others change what is fixed for all points alike.
    ends = (study.points[0], study.points[-1])
    whole = tuple(point for point in study.points if point.budget == study.points[0].budget)
    chosen = (
        (*whole, study.points[-1]) if edition == "gpu" and study.points[-1] not in whole else whole if edition == "gpu" else ends
    )
    plan = plan_of(dataclasses.replace(study, points=chosen), root, timed=False)
    assert len(plan.runs()) == sum(part.tunings + part.confirmations for part in plan.points)
    assert study.tuning is not None  # nothing is compared at a learning rate that suits one of them
    assert study.contrasts or study.tuning.two_objectives
    labels = {(point.label, point.budget) for point in study.points}
    pairs = [pair for part in study.contrasts for pair in (part.steps or [(0, part.first, part.second)])]
    assert {label for _, *both in pairs for label in both} <= {label for label, _ in labels}
    if not (study.scaling or study.tuning.two_objectives):
        assert set(study.budgets) == {"parameters", "flops"}  # a claim takes both
    assert study.origin.without == ()  # and no edition asks for less
    if edition == "gpu":
        assert not plan.warnings  # seeds for a verdict, and enough of them for as many contrasts
    if study.scaling:
        sizes = sorted({point.settings[study.scaling.axis] for point in study.points})
        assert len(sizes) >= 5
        assert sizes[-1] / sizes[0] >= 10**1.5
        assert study.scaling.held_out >= 1


def test_the_showpieces_budgets_are_met_by_every_ratio():
    """Solved for real: both ends and NAVA's third, equal in parameters and then in FLOPs, in the edition for CPUs."""
    study = read_study(PACKAGE.parent / "sweeps" / "align_fuse_ratio.yaml", "cpu")
    assert len(study.seeds) >= 8
    for budget, wanted, real in (("parameters", 300_000, "total"), ("flops", 6.5e7, "flops_per_sample")):
        points = [point for point in study.points if point.budget == budget]
        for point in points if budget == "parameters" else points[:2]:
            cost = parts(load(study.overrides(point, 0, {"training.lr": 0.006}))).solution.cost
            assert abs(getattr(cost, real) / wanted - 1) <= 0.005


def test_a_misspelt_key_names_the_file_and_the_nearest(tmp_path):
    text = (PACKAGE.parent / "sweeps" / "three_families.yaml").read_text()
    (tmp_path / "a.yaml").write_text(text.replace("training.steps: 4000", "training.stesp: 4000"))
    with pytest.raises(StudyError, match=r"a, variant=dual_tower .*training.stesp.*did you mean 'training.steps'"):
        planned(Wish(tmp_path / "a.yaml", (), "gpu"), timed=False)
