"""The sampler study on a tiny run: what its labels say is what it measures, and finished points are not computed again."""

import json

import pytest

from nava_lab.cli import main as nava
from sweeps import samplers as study

SMALL = ["budget.parameters=300_000", "training.batch_size=8", "training.validations=0", "training.steps=4", "evaluation.clips=4",
         "evaluation.loss_clips=4", "evaluation.previews=1", "output.progress=false", "logger=none", "trainer=cpu"]  # fmt: skip
OWN = ["evaluation/schedule=custom", "evaluation.schedule.levels=[1.0,0.6,0.3,0.0]", "evaluation.steps=3", "evaluation/solver=unipc",
       "evaluation.guidance.text=3", "evaluation.guidance.rescale=0.5"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Scored by its own solver and guidance on a schedule of three steps, none of which the study is to inherit."""
    root = tmp_path_factory.mktemp("study") / "runs"
    nava(["train", "variant=unified", *SMALL, *OWN, f"output.root={root}"])
    (found,) = (path for path in root.iterdir() if (path / "record.json").exists())
    return found


def test_every_curve_is_what_it_is_called_and_finished_points_are_skipped(run, monkeypatch):
    measured, real = [], study.evaluate

    def watched(network, world, protocol, *rest, **more):
        sampler = protocol.sampler
        measured.append((sampler.solver.name, [term.name for term in sampler.guidance.terms], sampler.steps))
        return real(network, world, protocol, *rest, **more)

    monkeypatch.setattr(study, "evaluate", watched)
    words = [str(run), "--solvers", "euler,heun", "--guidance", "text=2", "--evaluations", "2,7,10", "--clips", "4"]
    study.main(words)
    assert measured == [
        *(("euler", [], steps) for steps in (2, 7, 10)),
        *(("heun", [], steps) for steps in (1, 4, 5)),  # a step costs two evaluations, the last one
        *(("heun", ["text"], steps) for steps in (1, 2, 3)),  # and guidance doubles them
    ]
    points = json.loads((run / "samplers" / "samplers.json").read_text())["points"].values()
    assert [(point["label"], point["evaluations"]) for point in points] == [
        ("euler", 2), ("euler", 7), ("euler", 10), ("heun", 1), ("heun", 7), ("heun", 9),
        ("heun, text=2", 2), ("heun, text=2", 6), ("heun, text=2", 10),
    ]  # fmt: skip
    measured.clear()
    study.main(words)
    assert measured == []
    table = (run / "samplers" / "samplers.md").read_text()
    assert all(label in table for label in ("| euler | 10 |", "| heun, text=2 | 10 |"))
