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


def test_some_checks_can_be_asked_for_and_are_judged_by_the_widened_interval(tmp_path, capsys):
    asked = []

    def scored(check, settings):
        asked.append((check.name, settings))
        return {"name": "run", "scores": {check.score: {"value": 0.05, "low": 0.01, "high": 0.09}}}

    words = ["--out", str(tmp_path), "training.steps=7"]
    assert manipulations.main(["--only", "clock", *words], scored) == 1  # .05 - 1.5 * .04 is not above 0
    assert manipulations.main(["--only", "null", *words], scored) == 0
    assert [name for name, _ in asked] == ["clock, attention cut", "null"]
    asked.clear()
    manipulations.main(["--only", "entangle untold", *words], scored)
    assert [name for name, _ in asked] == ["entangle untold, what", "entangle untold, when"]
    assert asked[0][1] == ["variant=unified", "training.steps=7"]
    with pytest.raises(ValueError, match="--only clok: no check begins so"):
        manipulations.main(["--only", "clok"], scored)


@pytest.mark.parametrize("check", manipulations.CHECKS, ids=lambda check: check.name)
def test_every_check_is_a_run_that_can_be_built(check):
    config = load([*manipulations.SMALL, *check.settings, *check.scoring, "variant=unified"])
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
    (row,) = known["rows"]
    assert known["minutes"] == 0.002
    assert row["steps"] >= 1
    assert row["headline"] == "cross_modal_use"
    assert "| `gaussian` | easy |" in capsys.readouterr().out
    # A killed one knows its steps and nothing else: they are not counted again.
    (path,) = (tmp_path / "runs/ladder/rungs").glob("*.json")
    path.write_text(json.dumps({name: row[name] for name in ("world", "level", "variant", "minutes", "made_by", "steps")}))
    monkeypatch.setattr(ladder, "cpu_seconds_per_step", lambda settings: pytest.fail("a rung's steps are counted twice"))
    ladder.main(words)
    (again,) = json.loads((tmp_path / "runs/ladder/ladder.json").read_text())["rows"]
    assert again | {"wall_s": 0} == row | {"wall_s": 0}
    monkeypatch.setattr(ladder, "run", lambda *_: pytest.fail("what is done is done again"))
    ladder.main(words)
    # What other code has made is not known.
    path.write_text(json.dumps({**row, "made_by": {}}))
    ladder.main(["--table", *words])
    assert "not tried" not in capsys.readouterr().out.splitlines()[0]
    assert json.loads((tmp_path / "runs/ladder/ladder.json").read_text())["rows"] == []


def climbing(monkeypatch, lows):
    """A ladder whose rungs score by what ``lows`` says, (world, level, variant) -> the interval's lower end; how it was climbed."""
    climbed = []

    def climb(rung):
        climbed.append((rung.world, rung.level, rung.variant))
        low = lows.get(climbed[-1], 0.0)
        found = {"value": low + 0.1, "low": low, "high": low + 0.2}
        row = {**rung.known(), "steps": 30, "headline": "binding_kappa", "truth": 1.0, "found": found, "wall_s": 1}
        ladder.record.write_json(rung.path, row)
        return row

    monkeypatch.setattr(ladder.Rung, "climb", climb)
    return climbed


LOWS = {("bind", "easy", "unified"): 0.8, ("bind", "medium", "unified"): 0.6, ("clock", "easy", "unified"): 0.7}


def test_nobody_climbs_past_what_was_not_mastered(tmp_path, monkeypatch, capsys):
    climbed = climbing(monkeypatch, LOWS)
    words = ["--worlds", "bind,clock", "--variants", "unified,dual_tower", "--minutes", "2", "--out", str(tmp_path)]
    ladder.main(words)
    easy = [(world, "easy", variant) for world in ("bind", "clock") for variant in ("unified", "dual_tower")]
    above = [("bind", "medium", "unified"), ("clock", "medium", "unified"), ("bind", "hard", "unified")]
    assert climbed == easy + above
    table = (tmp_path / "ladder.md").read_text()
    assert table.startswith("Hardest level mastered in 2 CPU minutes of training")
    assert "| `bind` | binding_kappa | medium | none |" in table
    assert "| `clock` | binding_kappa | easy | none |" in table
    assert "| `bind` | hard | 0.10 [0.00, 0.20], 30 steps |  |" in table
    told = capsys.readouterr()
    assert "[7 of at most 12] bind hard unified: binding_kappa 0.10 [0.00, 0.20], not mastered (30 steps, 1 s)" in told.err
    climbed.clear()
    ladder.main(words)
    assert climbed == []
    ladder.main([*words, "--every-level"])
    assert len(climbed) == 12 - 7


def test_the_table_says_what_has_not_been_tried(tmp_path, monkeypatch, capsys):
    climbing(monkeypatch, LOWS)
    words = ["--worlds", "bind,clock", "--variants", "unified", "--out", str(tmp_path)]
    ladder.main([*words[:1], "bind", *words[2:], "--levels", "easy"])
    ladder.main([*words, "--table"])
    printed = capsys.readouterr().out
    assert printed.count("| `bind` | binding_kappa | easy or more |") == 1
    assert "`clock`" not in printed  # nothing of it is known
    ladder.main([*words, "--table", "--minutes", "3"])
    assert "`bind`" not in capsys.readouterr().out  # that is another ladder
    assert [ladder.rounded(steps) for steps in (0.4, 7, 1234.5, 987)] == [1, 7, 1200, 980]
    assert "null" not in ladder.climbed()
    assert set(ladder.climbed()) <= set(worlds.names())
    with pytest.raises(ValueError, match="hrad"):
        ladder.main([*words, "--levels", "easy,hrad"])


def test_a_rung_that_another_process_is_at_is_left_to_it(tmp_path, monkeypatch):
    climbed = climbing(monkeypatch, {})
    (rung,) = [ladder.Rung("bind", "easy", "unified", 10.0, (), tmp_path)]
    rung.path.parent.mkdir(parents=True)
    held = ladder.FileLock(rung.path.with_suffix(".lock"))
    held.acquire()

    def elsewhere(_):
        """The other process ends what it was at."""
        rung.climb()
        held.release()

    monkeypatch.setattr(ladder.time, "sleep", elsewhere)
    ladder.climb_all([rung], every_level=False)
    assert climbed == [("bind", "easy", "unified")]


def test_the_slope_on_guidance_is_of_four_scorings_of_each_run(tmp_path, capsys):
    asked = []

    def scored(folder, scale, more):
        asked.append((folder.name, scale, more))
        lags = [10 + 2 * scale, -(14 + 2 * scale), 22 + 2 * scale]  # of clips 7, 8 and 9; the last has a flash without sound
        clips = {"index": [7, 8, 9], "lag_clip": [7, 8, 9], "lag_ms": lags, "video_events": [1, 1, 2], "audio_events": [1, 1, 1]}
        scores = {"sync_error_ms": {"value": 18 + 2 * scale, "low": 0.0, "high": 50.0}}
        scores["entanglement"] = dict.fromkeys(("value", "low", "high"))
        return scores, {f"sync.{name}": values for name, values in clips.items()} | {"loss.index": [7, 8, 9]}

    (tmp_path / "run").mkdir()
    entangle.main([str(tmp_path / "run"), "evaluation.clips=4"], scored)
    assert asked == [("run", scale, ["evaluation.clips=4"]) for scale in (1, 2, 4, 7)]
    slope = json.loads((tmp_path / "run" / "entangle.json").read_text())["slope_ms"]
    assert (slope["value"], slope["high"], slope["n"]) == (pytest.approx(2), pytest.approx(2), 3)
    assert slope["low"] < 2  # resamples of the last clip alone rise by half: its other event counts as the gate at any scale
    printed = capsys.readouterr().out
    assert "| 7 | 32.0 [0.0, 50.0] | - [-, -] |" in printed
    assert "slope of the timing error: 2.00 [" in printed
    assert "ms per unit of guidance, over 3 clips" in printed
