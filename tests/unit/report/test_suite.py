"""``nava suite``: its rows, its exit code, what it refuses."""

import json

import pytest

from nava_lab.cli import main as nava
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


@pytest.mark.parametrize(
    ("words", "said"),
    [(["puls"], "pulse"), (["--difficulty=hrad"], "hard"), (["--clips", "one"], "whole number"), (["clips"], "no procedural")],
)
def test_what_is_not_known_is_refused(words, said):
    with pytest.raises(ValueError, match=said):
        suite.main(words)
