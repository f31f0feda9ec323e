"""A short campaign of kills; the long one is ``python sweeps/kills.py``."""

import json

from sweeps import kills
from tests.ranks import needs_fork

pytestmark = needs_fork


def test_a_run_that_is_killed_at_any_moment_ends_as_an_unbroken_one(tmp_path, capsys):
    """And a second campaign does nothing again; and one that finds a difference says so."""
    arguments = ["--kills", "4", "--each", "2", "--seed", "1", "--out", str(tmp_path), "training.steps=12", "evaluation.clips=4"]
    assert kills.main(arguments) == 0
    assert "4 kills of" in capsys.readouterr().out
    assert kills.main(arguments) == 0
    assert "equal" not in capsys.readouterr().err
    path = tmp_path / "kills.json"
    assert sum(len(run["kills"]) for run in json.loads(path.read_text())["runs"]) == 4
    run, other = (kills.only_run(tmp_path / name) for name in ("run-0", "unbroken"))
    log = run / "metrics.jsonl"
    log.write_text(log.read_text()[:-3])
    assert kills.differences(run, other) == ["metrics.jsonl"]
