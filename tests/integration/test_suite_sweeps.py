"""The manipulation checks and the ladder, in small: what they judge, and that what is done is not done again."""

import json

import pytest
import yaml

from nava_lab.conditioning.text import NULL
from nava_lab.config import from_file, load
from nava_lab.evaluation.protocol import Protocol, evaluate
from nava_lab.registry import worlds
from nava_lab.study.build import parts
from nava_lab.study.identity import run_name
from nava_lab.study.run import scoring_record
from sweeps import entangle, ladder, manipulations

SMALL = [
    *("budget.parameters=300_000", "training.batch_size=4", "training.validations=0", "evaluation.steps=2", "evaluation.clips=4"),
    *("evaluation.loss_clips=4", "evaluation.previews=0", "output.progress=false", "logger=none", "trainer=cpu"),
]
ABOVE, CHANCE = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.0, "low": -0.03, "high": 0.03}


EVENTS = {name: {"value": 0.9, "low": 0.8, "high": 1.0} for name in manipulations.RATES}


def nothing(variants, checks, settings):
    """What is still to do, where nobody asks."""
    return []


def told(leaks):
    """Records as they should be, but for the checks that ``leaks`` names."""

    def scored(check, settings):
        right = check.above != (check.name in leaks)
        return {"name": "run", "scores": {**EVENTS, check.score: ABOVE if right else CHANCE}}

    return scored


def test_checks_pass_where_all_is_as_it_should_be_and_each_one_can_fail(tmp_path, capsys):
    assert manipulations.main(["--out", str(tmp_path)], told(()), nothing) == 0
    assert (tmp_path / "manipulations.md").read_text().endswith("\nAll of it holds.\n")
    for check in manipulations.CHECKS:
        assert manipulations.main(["--out", str(tmp_path)], told({check.name}), nothing) == 1, check.name
        written = (tmp_path / "manipulations.md").read_text()
        assert f"{check.name} | " in written
        assert written.endswith(f"\nunified, {check.name}: not shown. {check.otherwise}.\n")
    assert capsys.readouterr().out.count("**no**") == len(manipulations.CHECKS)
    rows = json.loads((tmp_path / "manipulations.json").read_text())["rows"]
    assert len(rows) == len(manipulations.CHECKS)


def test_some_checks_can_be_asked_for_and_are_judged_by_the_widened_interval(tmp_path, capsys):
    asked = []

    def scored(check, settings):
        asked.append((check.name, settings))
        return {"name": "run", "scores": {**EVENTS, check.score: {"value": 0.05, "low": 0.01, "high": 0.09}}}

    words = ["--out", str(tmp_path), "training.steps=7"]
    assert manipulations.main(["--only", "clock", *words], scored, nothing) == 1  # .05 - 1.5 * .04 is not above 0
    assert manipulations.main(["--only", "null", "--only", "null, attention cut", *words], scored, nothing) == 1
    assert [name for name, _ in asked] == ["clock, attention cut", "null", "null, attention cut"]
    asked.clear()
    manipulations.main(["--only", "entangle untold", *words], scored, nothing)
    assert [name for name, _ in asked] == ["entangle untold, what", "entangle untold, when"]
    assert asked[0][1] == ["variant=unified", "training.steps=7"]
    with pytest.raises(ValueError, match="--only clok: no check begins so"):
        manipulations.main(["--only", "clok"], scored, nothing)


def test_chance_must_be_shown_and_is_not_had_by_measuring_little():
    check = next(check for check in manipulations.CHECKS if check.name == "null")
    for ends, holds in (
        ((0.0, -0.05, 0.05), True), ((0.03, 0.01, 0.05), True),  # near enough, whether 0 is in it or not
        ((0.0, -0.06, 0.06), False), ((0.0, -0.5, 0.5), False),  # 0 lies in both, and nothing is shown
        ((0.047, 0.008, 0.085), False), ((0.09, 0.052, 0.129), False),  # unified after 2000 and 1200 steps, on 192 clips
        ((0.0, None, None), False), ((None, None, None), False),
    ):  # fmt: skip
        found = dict(zip(("value", "low", "high"), ends, strict=True))
        assert check.holds({**EVENTS, "sync_auc": found}) == holds, ends
    long = [check.name for check in manipulations.CHECKS if any("training." in part for part in check.settings)]
    assert not long  # none passes by a training of its own length


@pytest.mark.parametrize("rate", manipulations.RATES)
@pytest.mark.parametrize("value", [0.4, 0.0, None])
def test_who_makes_no_events_is_not_shown_to_be_at_chance(rate, value, tmp_path, capsys):
    few = {**EVENTS, rate: {"value": value, "low": value, "high": value}, "sync_auc": CHANCE}
    words = ["--only", "null", "--out", str(tmp_path)]
    assert manipulations.main(words, lambda *_: {"name": "run", "scores": few}, nothing) == 1
    said = capsys.readouterr().out
    assert f"0.000 [-0.030, 0.030], with {value or 0:.2f} of the events **no** |" in said
    assert "unified, null: not shown. Too few events to show anything: train longer." in said


def test_an_interval_across_the_margin_is_open(tmp_path, capsys):
    wide = {**EVENTS, "sync_auc": {"value": 0.047, "low": 0.008, "high": 0.085}}
    words = ["--only", "null", "--out", str(tmp_path)]
    assert manipulations.main(words, lambda *_: {"name": "run", "scores": wide}, nothing) == 1
    assert "unified, null: open. More evaluation.clips would tell. If it is not at chance: the family" in capsys.readouterr().out


def test_what_is_done_and_how_long_the_rest_takes(tmp_path, monkeypatch, capsys):
    """The given modality's two scorings hang on one training; what is finished costs nothing."""
    monkeypatch.chdir(tmp_path)
    wait = type("Wait", (), {"seconds": 90.0})
    monkeypatch.setattr(manipulations, "expect", lambda *_: wait)
    monkeypatch.setattr(manipulations, "parts", lambda config: None)
    words = ["--plan", "--only", "pulse, audio", "--only", "pulse, video", *SMALL]
    assert manipulations.main(words, lambda *_: pytest.fail("something is trained")) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[0] == "  1.5 min  missing   unified world=pulse flow.modality_given=0.5"
    assert said[-1].startswith("0 of 3 trainings and scorings are done; the rest takes about 4 minutes")
    monkeypatch.setattr(manipulations, "state_of", lambda folder: "finished")
    check = next(check for check in manipulations.CHECKS if check.scoring)
    config = load([*manipulations.SMALL, *check.settings, "variant=unified", *SMALL])
    folder = tmp_path / "runs" / run_name(config.resolved, config.world.data_version())
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved)))
    into = manipulations.scoring_folder(folder, from_file(folder / "config.yaml", check.scoring))
    into.mkdir(parents=True)
    (into / "record.json").write_text("{}")
    manipulations.main(words)
    assert "2 of 3 trainings and scorings are done; the rest takes about 2 minutes" in capsys.readouterr().err


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
    assert list(row["found"]) == list(row["truth"]) == ["cross_modal_use"]
    assert "| `gaussian` | easy | cross_modal_use |" in capsys.readouterr().out
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
    """A ladder whose rungs score by what ``lows`` says, (world, level, variant) -> the interval's lower end, or one for each score
    of a world with several; how it was climbed."""
    climbed = []

    def climb(rung):
        climbed.append((rung.world, rung.level, rung.variant))
        each = lows.get(climbed[-1], 0.0)
        each = each if isinstance(each, dict) else {"binding_kappa": each}
        found = {name: {"value": low + 0.1, "low": low, "high": low + 0.2} for name, low in each.items()}
        row = {**rung.known(), "steps": 30, "truth": dict.fromkeys(each, 1.0), "found": found, "wall_s": 1}
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
    assert "| `bind` | hard | binding_kappa | 0.10 [0.00, 0.20], 30 steps |  |" in table
    told = capsys.readouterr()
    assert "[7 of at most 12] bind hard unified: binding_kappa 0.10 [0.00, 0.20], not mastered (30 steps, 1 s)" in told.err
    climbed.clear()
    ladder.main(words)
    assert climbed == []
    ladder.main([*words, "--order", "all"])
    assert len(climbed) == 12 - 7


def test_from_the_hardest_level_down_nobody_goes_on_below_what_was_mastered(tmp_path, monkeypatch):
    """The same table, of other rungs; half-way it says so much as is known."""
    lows = {**LOWS, ("bind", "hard", "dual_tower"): 0.9, ("clock", "medium", "unified"): 0.6}
    climbed = climbing(monkeypatch, lows)
    words = ["--worlds", "bind,clock", "--variants", "unified,dual_tower", "--order", "down", "--out", str(tmp_path)]
    ladder.main([*words, "--levels", "hard"])
    ladder.main([*words, "--table"])
    table = (tmp_path / "ladder.md").read_text()
    assert "| `bind` | binding_kappa | below hard | hard |" in table
    climbed.clear()
    ladder.main(words)
    assert climbed == [
        ("bind", "medium", "unified"), ("clock", "medium", "unified"), ("clock", "medium", "dual_tower"), ("clock", "easy", "dual_tower")
    ]  # fmt: skip
    table = (tmp_path / "ladder.md").read_text()
    assert "| `bind` | binding_kappa | medium | hard |" in table
    assert "| `clock` | binding_kappa | medium | none |" in table


@pytest.mark.parametrize(
    ("tried", "told"),
    [
        ("...", "not tried"), ("+..", "easy or more"), ("+-.", "easy"), ("-..", "none"), ("+++", "hard"), ("..+", "hard"),
        (".+.", "medium or more"), (".+-", "medium"), ("..-", "below hard"), (".--", "below medium"), ("---", "none"),
        ("+.-", "easy or more, below hard"), ("-.+", "none"), ("+-+", "easy"),
    ],
)  # fmt: skip
def test_what_is_known_of_a_climb_is_told(tried, told):
    low = {"+": 0.6, "-": 0.4}
    rows = [None if mark == "." else {"found": {"x": {"low": low[mark]}}, "truth": {"x": 1.0}} for mark in tried]
    assert ladder.hardest(rows, ladder.DIFFICULTIES) == told


def test_a_level_of_two_scores_is_mastered_in_both(tmp_path, monkeypatch, capsys):
    """Timing alone does not master `entangle`, whose levels add classes."""
    levels = [("entangle", level, "unified") for level in ("easy", "medium")]
    both = [{"sync_auc": 0.9, "semantics_kappa": kappa} for kappa in (0.7, 0.3)]
    climbed = climbing(monkeypatch, dict(zip(levels, both, strict=True)))
    ladder.main(["--worlds", "entangle", "--variants", "unified", "--minutes", "2", "--out", str(tmp_path)])
    assert climbed == levels
    table = (tmp_path / "ladder.md").read_text()
    assert "| `entangle` | sync_auc and semantics_kappa | easy |" in table
    assert "| `entangle` | medium | semantics_kappa | 0.40 [0.30, 0.50], 30 steps |" in table
    said = "sync_auc 1.00 [0.90, 1.10], semantics_kappa 0.40 [0.30, 0.50], not mastered"
    assert said in capsys.readouterr().err


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
    with pytest.raises(ValueError, match="--worlds null: known: bind"):  # where what is found would be a leak, not a mastery
        ladder.main(["--worlds", "null", "--out", str(tmp_path)])
    spoken = [ladder.Rung("speakers", "easy", family, 1.0, (), tmp_path).settings for family in ladder.FAMILIES]
    assert all("conditioning.timbre_in_span=true" in settings for settings in spoken)
    with pytest.raises(ValueError, match="no run is named"):
        entangle.main(["evaluation.clips=8"])


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
    ladder.climb_all([rung], order="up")
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
