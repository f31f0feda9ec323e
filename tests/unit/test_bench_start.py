"""``nava bench start``: its parts add up, and what cannot be is refused. Its seconds belong to a quiet machine."""

import json

import pytest

from nava_lab.bench import BENCHES, start


def test_parts_add_up(monkeypatch, capsys):
    monkeypatch.setattr(start, "TARGET", 1e3)  # of a machine that is busy with tests
    assert start.main(["experiment=smoke", "--repeats=1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert tuple(made["parts"]) == start.PARTS
    assert all(seconds > 0 for seconds in made["parts"].values())
    assert made["total"] == pytest.approx(sum(made["parts"].values()))
    assert BENCHES["start"] == start.__name__


def test_a_slow_start_fails(monkeypatch, capsys):
    monkeypatch.setattr(start, "measure", lambda overrides, cold: dict.fromkeys(start.PARTS, 3.0))
    assert start.main(["--repeats=1"]) == 1
    assert "first step after 18.00 s" in capsys.readouterr().out


def test_what_cannot_be_is_said(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no option --repeat"):
        start.main(["--repeat=3"])
    with pytest.raises(ValueError, match="unifid"):
        start.main(["variant=unifid", "--repeats=1"])
    monkeypatch.setattr(start, "CACHES", tmp_path / "none" / "drop_caches")
    with pytest.raises(ValueError, match="--cold"):
        start.main(["--cold", "--repeats=1"])
