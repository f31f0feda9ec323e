"""The manipulation checks and the ladder, in small: what they judge, and that what is done is not done again."""

import json

import pytest

from nava_lab.conditioning.text import NULL
from nava_lab.config import load
from nava_lab.evaluation.protocol import Protocol, evaluate
from nava_lab.registry import worlds
from nava_lab.study.build import parts
from nava_lab.study.run import scoring_record
from sweeps import entangle, ladder, manipulations

SMALL = [
    *("budget.parameters=300_000", "training.batch_size=4", "training.validations=0", "evaluation.steps=2", "evaluation.clips=4"),
    *("evaluation.loss_clips=4", "evaluation.previews=0", "output.progress=false", "logger=none", "trainer=cpu"),
]
ABOVE, CHANCE = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.0, "low": -0.1, "high": 0.1}


def told(leaks):
    """Records as they should be, but for the checks that ``leaks`` names."""

    def scored(check, settings):
        right = check.above != (check.name in leaks)
        return {"name": "run", "scores": {check.score: ABOVE if right else CHANCE}}

    return scored


def test_checks_pass_where_all_is_as_it_should_be_and_each_one_can_fail(tmp_path, capsys):
    assert manipulations.main(["--out", str(tmp_path)], told(())) == 0
    for name in {check.name for check in manipulations.CHECKS}:
        assert manipulations.main(["--out", str(tmp_path)], told({name})) == 1, name
        assert f"{name} | " in (tmp_path / "manipulations.md").read_text()
    assert capsys.readouterr().out.count("**no**") == len(manipulations.CHECKS)
    rows = json.loads((tmp_path / "manipulations.json").read_text())["rows"]
    assert len(rows) == len(manipulations.CHECKS)


@pytest.mark.parametrize("check", manipulations.CHECKS, ids=lambda check: check.name)
def test_every_check_is_a_run_that_can_be_built(check):
    config = load([*check.settings, *check.scoring, "variant=unified", "budget.parameters=300_000"])
    built = parts(config)
    assert built.protocol.sampler.cut == ("experiment=cut" in check.settings)
    assert built.protocol.told == ("experiment=untold" not in check.settings)


def test_who_was_never_told_a_caption_is_scored_without():
    config = load(["experiment=untold", "world=entangle", "variant=unified", "budget.parameters=300_000"])
    built, seen = parts(config), []

    def network(streams, levels, text, cut=None):
        seen.append(text.tokens)
        return {name: stream.tokens for name, stream in streams.items()}

    protocol = Protocol(built.protocol.sampler, clips=4, loss_clips=4, told=built.protocol.told)
    evaluate(network, config.world, protocol, built.objective, built.scoring, 0)
    assert seen
    assert all((tokens[:, 0] == NULL).all() and not tokens[:, 1:].any() for tokens in seen)
    assert scoring_record(config, built)["captions"] == "never shown"
    assert "captions" not in scoring_record(config, parts(load(["variant=unified", "budget.parameters=300_000"])))


def test_a_rung_is_climbed_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--worlds", "gaussian", "--levels", "easy", "--variants", "unified", "--minutes", "0.002", *SMALL]
    ladder.main(words)
    known = json.loads((tmp_path / "runs/ladder/ladder.json").read_text())
    (row,) = known.values()
    assert row["steps"] >= 1
    assert row["headline"] == "cross_modal_use"
    monkeypatch.setattr(ladder, "cpu_seconds_per_step", lambda settings: pytest.fail("a rung's steps are counted twice"))
    ladder.main(words)
    assert json.loads((tmp_path / "runs/ladder/ladder.json").read_text()) == known
    assert "| `gaussian` | easy |" in capsys.readouterr().out


def test_the_table_names_the_hardest_level_mastered():
    def row(level, low, variant="unified"):
        found = {"value": low + 0.1, "low": low, "high": low + 0.2}
        return {"world": "bind", "level": level, "variant": variant, "headline": "binding_kappa", "truth": 1.0, "found": found}

    text = ladder.tables([row("easy", 0.8), row("medium", 0.6), row("hard", 0.45), row("easy", 0.1, "dual_tower"), {"steps": 3}])
    assert "| `bind` | binding_kappa | medium | none |" in text
    assert "| `bind` | easy | 0.90 [0.80, 1.00] | 0.20 [0.10, 0.30] |" in text
    assert [ladder.rounded(steps) for steps in (0.4, 7, 1234.5, 987)] == [1, 7, 1200, 980]
    assert "null" not in ladder.climbed()
    assert set(ladder.climbed()) <= set(worlds.names())


def test_the_slope_on_guidance_is_of_four_scorings_of_each_run(tmp_path, capsys):
    asked = []

    def scored(folder, scale, more):
        asked.append((folder.name, scale, more))
        return {name: {"value": 10 + 2 * scale, "low": 0.0, "high": 50.0} for name in ("sync_error_ms", "entanglement")}

    (tmp_path / "run").mkdir()
    entangle.main([str(tmp_path / "run"), "evaluation.clips=4"], scored)
    assert asked == [("run", scale, ["evaluation.clips=4"]) for scale in (1, 2, 4, 7)]
    assert json.loads((tmp_path / "run" / "entangle.json").read_text())["slope_ms"] == pytest.approx(2)
    assert "| 7 | 24.000 [0.000, 50.000]" in capsys.readouterr().out
