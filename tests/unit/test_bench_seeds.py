"""The bench of seeds: what it measures, what it refuses. Its ratios belong to a quiet machine and are not tested."""

import json

import pytest

from nava_lab.bench import seeds
from nava_lab.bench.seeds import exponent, main

SMALL = ["variant=unified", "trainer=cpu", "budget.parameters=60_000", "variant.depth=3", "training.batch_size=4"]


def test_a_row_for_the_single_run_and_one_for_every_way(capsys):
    main([*SMALL, "--seeds=2,3", "--together=1,3", "--steps=1", "--rounds=1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(row["seeds"], row["at_once"]) for row in found["rows"]] == [(1, 0), (2, 1), (2, 2), (3, 1), (3, 3)]
    for row in found["rows"]:
        assert row["samples_per_s"] == pytest.approx(4 * row["seeds"] / row["step_ms"] * 1e3)
        assert row["ratio"] == pytest.approx(row["seeds"] * found["rows"][0]["step_ms"] / row["step_ms"])


def test_the_target_is_about_what_training_would_choose(monkeypatch, capsys):
    def rows(ratio, *_):
        return [{"seeds": 8, "at_once": many, "step_ms": 1.0, "samples_per_s": 1.0, "ratio": ratio[many]} for many in ratio]

    cases = (({1: 1.0, 8: 0.5}, "nothing"), ({1: 0.9, 8: 2.0}, "8 seeds 0.900 (at least 1)"), ({1: 0.996}, "8 seeds 0.996"))
    for ratio, told in cases:
        monkeypatch.setattr(seeds, "measure", lambda *_, ratio=ratio: rows(ratio))
        assert main([*SMALL, "training.batch_size=64"]) == int(told != "nothing")
        assert f"missed: {told}" in capsys.readouterr().out


def test_what_training_would_choose_is_measured_though_nobody_asks(monkeypatch, capsys):
    """Left out it would miss no target."""
    monkeypatch.setattr(seeds, "seconds", lambda config, count, together: [1.0 + count * (together > 1)])
    assert main([*SMALL, "--seeds=2,3", "--together=1", "--rounds=1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(row["seeds"], row["at_once"]) for row in found["rows"]] == [(1, 0), (2, 1), (2, 2), (3, 1), (3, 3)]
    assert found["missed"] == ["2 seeds 0.667 (at least 1)", "3 seeds 0.750 (at least 1)"]


def test_cost_per_seed_is_an_exponent():
    assert exponent([{"seeds": n, "step_ms": 3.0 * n**0.8} for n in (2, 4, 8)]) == pytest.approx(0.8)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        main([*SMALL, "--seeds=1"])
    with pytest.raises(ValueError, match=r"trainer\.devices=1"):
        main([*SMALL, "trainer.devices=2"])
