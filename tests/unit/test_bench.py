"""The benchmark: what it counts, what it prints, what it refuses. Its ratios belong to a quiet machine and are not tested."""

import json

import pytest

from nava_lab.bench import BENCHES, sampler
from nava_lab.bench.sampler import cases, main
from nava_lab.cli.commands.bench import main as bench
from nava_lab.config import load
from nava_lab.registry import solvers
from nava_lab.study.build import parts


def test_every_solver_has_a_row_with_the_evaluations_it_asked_for(capsys):
    small = ["budget.parameters=300_000", "variant=unified", "trainer=cpu"]
    main(["--json", "--batch-size=2", "--steps", "2", "--repeats=1", *small])
    rows = {row["solver"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == {*solvers.names(), "heun, text", "heun, guided"}
    assert rows["euler"]["evaluations"] == 2
    assert rows["heun"]["evaluations"] == 3
    assert rows["heun, text"]["evaluations"] == 6
    assert rows["heun, guided"]["evaluations"] == 3  # of three branches each; CFG-Zero* leaves the first step out
    assert all(1 <= row["least"] <= row["ratio"] <= row["most"] for row in rows.values())


def test_labels_are_what_is_measured_whatever_the_config_says():
    config = load(["variant=unified", "budget.parameters=300_000", "evaluation/solver=unipc", "evaluation.guidance.text=5"])
    found = cases(config, parts(config), 4)
    assert {name: (case.solver.name, bool(case.guidance.terms)) for name, case in found.items()} == {
        **{name: (name, False) for name in solvers},
        "heun, text": ("heun", True),
        "heun, guided": ("heun", True),
    }


def test_the_target_is_about_everything_a_sampling_costs(monkeypatch, capsys):
    """A solver whose arithmetic is cheap and whose noise is not misses it."""
    row = {"evaluations": 2, "least": 1.0, "most": 1.0, "own_ms_per_step": 0.1}
    rows = [
        {**row, "solver": "heun", "ratio": 1.02, "with_noise": 1.03},
        {**row, "solver": "sde", "ratio": 1.02, "with_noise": 1.04},
    ]
    monkeypatch.setattr(sampler, "measure", lambda *_: rows)
    assert sampler.missed(rows) == ["sde"]
    assert main([]) == 1
    assert "above the target: sde" in capsys.readouterr().out
    monkeypatch.setattr(sampler, "measure", lambda *_: rows[:1])
    assert main([]) == 0


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="sampler"):
        bench(["smapler"])
    with pytest.raises(ValueError, match="no option --stpes"):
        main(["--stpes", "3"])
    with pytest.raises(ValueError, match="whole number"):
        main(["--steps=none"])
    assert set(BENCHES) >= {"sampler"}
