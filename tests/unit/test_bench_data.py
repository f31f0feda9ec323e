"""``nava bench data``: what it measures and prints. Its ratios belong to a quiet machine and are not tested."""

import json

import pytest

from nava_lab.bench import BENCHES, data
from nava_lab.bench.data import main, missed

SMALL = ["variant=unified", "budget.parameters=300_000", "training.batch_size=4", "trainer=cpu"]


def test_a_row_is_the_ratio_of_training_to_rendering(capsys):
    main(["--json", "--repeats=1", "world=gaussian", *SMALL])
    made = json.loads(capsys.readouterr().out)
    (row,) = made["rows"]
    assert row["world"] == "gaussian"
    assert row["ratio"] == pytest.approx(row["train_ms"] / row["render_ms"])
    assert made["batch_size"] == 4
    assert BENCHES["data"] == "nava_lab.bench.data"


def test_a_world_that_is_too_slow_fails_the_bench(monkeypatch, capsys):
    rows = iter([{"world": "pulse", "render_ms": 1.0, "train_ms": 19.0, "ratio": 19.0}])
    monkeypatch.setattr(data, "measure", lambda *_: next(rows))
    assert main(SMALL) == 1
    assert "below the target: pulse" in capsys.readouterr().out
    assert missed([{"world": "a", "ratio": 20.0}, {"world": "b", "ratio": 19.9}]) == ["b"]


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="no option --repeat"):
        main(["--repeat=3"])
    with pytest.raises(ValueError, match="every world"):
        main(["--all", "world=pulse"])
