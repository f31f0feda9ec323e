"""Runs that were sampled otherwise are not ranked, and the table says what differs."""

from pathlib import Path

import pytest

from nava_lab.report.runs import Run, differences

EVALUATION = {"solver": "heun", "evaluations": 49, "guidance": "off"}


def run(evaluation):
    record = {
        "variant": "unified",
        "budget": {"requested": 1, "realised": 1, "kind": "parameters"},
        "identity": {"data": "d", "code": "c", "variant_code": "v"},
        "samples_seen": 1,
        "evaluation": evaluation,
    }
    config = {name: {} for name in ("world", "training", "flow", "attention", "trainer")}
    return Run(Path("run"), record, config, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"guidance": {"text": 3.0}}, "guidance: off, {'text': 3.0}"),
        ({"schedule": {"name": "karras"}}, "schedule"),
        ({"solver_settings": {"churn": 4.0}}, "solver_settings"),
        ({"given": "audio"}, "given"),
    ],
)
def test_another_way_of_sampling_is_seen(change, said):
    (line,) = differences([run(EVALUATION), run({**EVALUATION, **change})])
    assert line.startswith("scoring differs")
    assert said in line
    assert differences([run(EVALUATION), run(dict(EVALUATION))]) == []
