"""``nava suite``: its rows, its exit code, what it refuses."""

import dataclasses
import json

import pytest

from nava_lab.cli import main as nava
from nava_lab.evaluation.score import UNDEFINED
from nava_lab.report import suite


def test_rows_of_a_world_as_json_and_as_a_table(capsys, monkeypatch):
    monkeypatch.setattr("nava_lab.evaluation.score.RESAMPLES", 100)
    assert suite.main(["pulse", "--clips", "32", "--json"]) in (0, 1)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["world"], row["given"], row["score"]) for row in rows] == [
        ("pulse", given, "sync_auc") for given in ("", "audio", "video")
    ]
    assert all(row["truth"]["value"] == 1 for row in rows)
    suite.main(["speakers", "bind", "--clips=32", "--difficulty", "easy,hard"])
    printed = capsys.readouterr().out
    assert "bind easy" in printed
    assert "timbre_kappa" in printed


def test_a_score_that_is_not_what_it_should_be_fails_the_command(capsys, monkeypatch):
    wrong = next(iter(suite.exact_scores(suite.worlds.get("null")(), 16)))
    wrong = type(wrong)(wrong.world, "", wrong.score, wrong.truth, wrong.chance._replace(value=0.9, low=0.8, high=1.0), (0, 0))
    monkeypatch.setattr(suite, "exact_scores", lambda *_: iter([wrong]))
    with pytest.raises(SystemExit) as left:
        nava(["suite", "null"])
    assert left.value.code == 1
    assert "not as it should be: null sync_auc" in capsys.readouterr().out


def test_a_score_that_is_not_defined_fails_the_command_and_is_null_in_json(capsys, monkeypatch):
    right = next(iter(suite.exact_scores(suite.worlds.get("null")(), 16)))
    monkeypatch.setattr(suite, "exact_scores", lambda *_: iter([dataclasses.replace(right, truth=UNDEFINED)]))
    assert suite.main(["null"]) == 1
    printed = capsys.readouterr().out
    assert "not as it should be: null sync_auc (not defined)" in printed
    assert "- [-, -]" in printed
    assert suite.main(["null", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"]  # NaN is no JSON
    assert row["truth"] == {"value": None, "low": None, "high": None, "n": 0}


def test_the_floor_is_of_onsets_and_of_turns(capsys):
    assert suite.main(["--floor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["video"] * 3 + ["audio"] * 3 + ["turn"] * 3
    with pytest.raises(ValueError, match="--floor stands alone"):
        suite.main(["--floor", "pulse"])


@pytest.mark.parametrize(
    ("words", "said"),
    [(["puls"], "pulse"), (["--difficulty=hrad"], "hard"), (["--clips", "one"], "whole number"), (["clips"], "no procedural")],
)
def test_what_is_not_known_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        suite.main(words)
