"""What a comparison says of records, without any training."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from nava_lab import load_config
from nava_lab.config import Config
from nava_lab.report.compare import compare, load_run
from nava_lab.report.frame import contrasts_frame, load_logs, load_runs, runs_frame, write_frames
from nava_lab.report.judge import corrected, judge, judge_slope
from nava_lab.report.page_tables import contrasts, results
from nava_lab.report.runs import NAMES, NOT_COMPARED, differences
from nava_lab.report.table import lead_columns, print_comparison, shown_columns
from nava_lab.study.least import least_loss
from nava_lab.study.record import BadRecord
from nava_lab.study.spec import Contrast, read_study
from nava_lab.study.statistics import tost
from tests.unit.report.made import FIELDS, make_run, make_runs, make_study


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    make_runs(root, {"dual_tower": 0.80, "unified": 0.70, "align_then_fuse": 0.70}, noise=0.01)
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"), failed={("align_fraction=0.5 [flops]", 3)})


def test_settings_of_one_variant_are_told_apart(tmp_path):
    deep, shallow = ("variant=unified", "variant.depth=8"), ("variant=unified", "variant.depth=4")
    runs = [make_run(tmp_path, 0, 0.5, deep), make_run(tmp_path, 0, 0.6, shallow), make_run(tmp_path, 0, 0.1)]
    found = compare(runs)
    assert [part.label for part in found.runs] == ["unified (depth 4)", "unified (depth 8)", "align_then_fuse"]
    assert found.verdict.startswith("Exploratory: 1 seed per variant")
    assert found.sentences[0].endswith("exploratory: +0.100 at one seed.")
    assert "over clips" in found.verdict


def test_eight_seeds_give_a_verdict_with_its_uncertainty(families):
    found = compare([families])
    assert found.status == "verdict"
    assert found.summary == "dual_tower is ahead of every other in sync_auc."
    assert [row.label for row in found.over_seeds()] == ["dual_tower", "unified", "align_then_fuse"]
    assert [part.outcome for part in found.contrasts[:2]] == ["ahead", "ahead"]
    assert found.contrasts[2].outcome in ("equal", "no worse", "no better", "open")
    first = found.contrasts[0]
    assert first.p == pytest.approx(3 * 2 / 2**8)
    assert "8 paired seeds, sign-flip p = 0.023 after Holm over 3 contrasts" in found.sentences[0]
    low, high = first.found.interval.low, first.found.interval.high
    assert 0 < low < 0.1 < high + 0.02
    assert "No contrast was declared beforehand, so all 3 pairs count." in found.findings


def test_who_is_behind_by_less_than_the_margin_is_no_worse_as_well():
    """What was declared beforehand may be "no worse": a small sure difference must not hide that it holds."""

    def judged(gap, spread=0.0002, up=True, margin=0.02):
        scores = {"a": {seed: 0.5 + gap + spread * (seed % 3) for seed in range(8)}, "b": dict.fromkeys(range(8), 0.5)}
        return corrected(judge(scores, [("a", "b")], up, margin))[0]

    behind = judged(-0.003)
    assert (behind.outcome, behind.claim("sync_auc")) == ("behind", "a is behind b in sync_auc, and no worse within 0.02")
    assert behind.sentence("sync_auc").endswith("(8 paired seeds, sign-flip p = 0.008; TOST p < 0.001).")
    assert judged(0.003).claim("sync_auc") == "a is ahead of b in sync_auc, and b is no worse within 0.02"
    assert judged(3, up=False, margin=5).claim("lag_ms") == "a is behind b in lag_ms, and no worse within 5 ms"
    for far in (judged(-0.3), judged(0.3), judged(-0.003, margin=None)):
        assert not far.slight
        assert "no worse" not in far.sentence("sync_auc")


def test_seven_seeds_give_none(tmp_path):
    make_runs(tmp_path, {"dual_tower": 0.9, "unified": 0.1}, seeds=7)
    found = compare([tmp_path])
    assert found.status == "exploratory"
    assert found.summary == "Exploratory: 7 seeds per variant, and a verdict needs 8."
    assert {part.outcome for part in found.contrasts} == {"exploratory"}


def test_many_pairs_over_few_seeds_are_said_to_be_hopeless(tmp_path):
    for place, depth in enumerate((2, 4, 6, 8, 10)):
        for seed in range(8):
            make_run(tmp_path, seed, 0.4 + 0.04 * ((3 * seed + place) % 8), ("variant=unified", f"variant.depth={depth}"))
    found = compare([tmp_path])
    assert (found.status, found.summary) == ("undecided", "None of 10 contrasts in sync_auc is decided.")
    assert any("after Holm no p can fall below 0.078. Declare fewer, or run 9 seeds" in line for line in found.findings)


def test_unequal_runs_are_not_ranked_and_the_reason_is_given(tmp_path):
    runs = [make_run(tmp_path, seed, 0.5, ("variant=unified",)) for seed in range(8)]
    runs += [make_run(tmp_path, seed, 0.9, ("variant=dual_tower", "training.steps=500")) for seed in range(8)]
    found = compare(runs)
    assert found.status == "not ranked"
    assert found.verdict.startswith("Not ranked: training differs (steps: 400, 500); training length (samples) differs")
    assert found.contrasts == []
    assert [row.label for row in found.over_seeds()] == ["unified", "dual_tower"]  # the order in which they were named


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"clips": 64, "evaluations": 25, "solver": "heun", "guidance": "off"}}, "scoring differs"),
        (
            {"evaluation": {"clips": 64, "evaluations": 49, "solver": "heun", "guidance": {"text": 2.0}, "split": "test"}},
            "guidance",
        ),
        ({"budget": {"kind": "parameters", "requested": 2_000_000, "realised": 2e6}}, "budget differs"),
        ({"samples_seen": 1}, "training length (samples) differs"),
        ({"identity": {"data": "pulse-2", "code": "c0de", "variant_code": "beef"}}, "data version differs"),
        ({"identity": {"data": "pulse-1", "code": "other", "variant_code": "beef"}}, "code differs"),
        ({"identity": {"data": "pulse-1", "code": "c0de", "variant_code": "beef", "torch": "1.9"}}, "PyTorch differs (2, 1.9)"),
    ],
)
def test_each_inequality_is_seen(tmp_path, changes, said):
    found = compare([make_run(tmp_path, 0, 0.5, ("variant=unified",)), make_run(tmp_path, 0, 0.5, **changes)])
    assert found.status == "not ranked"
    assert said in found.summary


@pytest.mark.parametrize("name", [part.name for part in dataclasses.fields(Config) if part.name != "resolved"])
def test_every_part_of_a_config_is_compared_unless_it_is_named(tmp_path, name):
    """A part that is added to configs is compared from the start; what may differ is written down with its reason."""
    one, other = make_run(tmp_path, 0, 0.5), make_run(tmp_path, 0, 0.5, ("variant=unified",))
    config = yaml.safe_load((other / "config.yaml").read_text())
    config[name] = (config.get(name) or {}) | {"something": 1} if name != "seed" else 1
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    found = compare([one, other])
    assert (found.status == "not ranked") == (name not in NOT_COMPARED)
    if name not in NOT_COMPARED:
        assert f"{NAMES.get(name, name)} differs (something: None, 1)" in found.summary


def test_how_often_a_run_is_saved_is_no_difference(tmp_path):
    saved = ("training.checkpoints=3", "training.checkpoint_minutes=1")
    assert compare([make_run(tmp_path, 0, 0.5, ("variant=unified",)), make_run(tmp_path, 0, 0.5, saved)]).status != "not ranked"


def test_a_warm_start_is_no_start_from_scratch_unless_a_study_asks_about_it(tmp_path):
    warm = make_run(tmp_path, 0, 0.5, ("variant=dual_tower",))
    config = yaml.safe_load((warm / "config.yaml").read_text())
    config["warm_start"] = {"path": "wan", "digest": "abc"}
    (warm / "config.yaml").write_text(yaml.safe_dump(config))
    runs = [load_run(warm), load_run(make_run(tmp_path, 0, 0.5, ("variant=unified",)))]
    assert differences(runs) == ["warm_start differs (digest: abc, None; path: wan, None)"]
    assert differences(runs, ["warm_start.path", "warm_start.digest"]) == []


def test_one_seed_is_no_mean_and_unequal_truths_are_not_shown(tmp_path):
    found = compare([make_run(tmp_path, 0, 0.2), make_run(tmp_path, 0, 0.3, ("variant=unified",), truth=0.9)])
    assert all(row.seeds == 1 and row.interval.low != row.interval.low for row in found.over_seeds())
    assert found.truth() == {}


def test_runs_that_are_there_twice_are_refused(tmp_path):
    make_run(tmp_path, 0, 0.2, folder="a")
    make_run(tmp_path, 0, 0.4, folder="b")
    make_run(tmp_path, 0, 0.4, ("variant=unified",))
    assert "seed 0 of align_then_fuse is there twice (a, b)" in compare([tmp_path]).summary


def test_unfinished_runs_of_a_folder_are_counted_and_named_ones_refused(tmp_path):
    make_run(tmp_path, 0, 0.2)
    broken = make_run(tmp_path, 1, 0.2)
    (broken / "record.json").unlink()
    aside = make_run(tmp_path, 2, 0.2, folder="old.code-123")
    found = compare([tmp_path])
    assert [run.seed for run in found.runs] == [0]
    assert found.left_out == [f"{broken.name}: not finished", f"{aside.name}: made by other code and put aside"]
    with pytest.raises(BadRecord, match="the run is not finished"):
        compare([broken])
    (broken / "nothing").mkdir()
    with pytest.raises(BadRecord, match="neither a run's folder nor a folder of runs"):
        compare([tmp_path / broken.name / "nothing"])


def test_metrics_say_what_leads_a_table(families, tmp_path):
    found = compare([families])
    assert lead_columns(found) == ["f1@80ms", "sync_error_ms", "event_rate_video", "loss"]
    assert shown_columns(found)[-1] == "a_newcomers_score"
    assert [found.direction(name) for name in ("sync_auc", "loss", "event_rate_video")] == [True, False, None]
    old = make_run(tmp_path, 0, 0.5, shown=[], directions={})  # a record from before metrics said so
    assert lead_columns(compare([old])) == ["a_newcomers_score", "event_rate_video", "f1@80ms", "loss", "sync_error_ms"]


# Studies


def test_a_study_is_judged_by_its_declared_contrasts_under_each_budget(study):
    found = compare([study])
    assert found.question == "How much of the depth should align?"
    assert found.declared
    assert [family.name for family in found.families] == ["parameters", "flops"]
    assert len(found.contrasts) == 8
    outcomes = {(part.family, part.found.first): part.outcome for part in found.contrasts}
    assert outcomes["parameters", "align_fraction=0.5"] == "ahead"
    assert outcomes["flops", "align_fraction=0.5"] == "exploratory"  # its seed 3 failed, so seven are left
    assert found.summary.startswith(
        "align_fraction=0.25, 0.75 and 1 are ahead of align_fraction=0 in sync_auc at equal parameters and FLOPs (+"
    )
    assert "align_fraction=0.5 is ahead of align_fraction=0 in sync_auc at equal parameters (" in found.summary
    assert found.planned == 80
    assert found.left_out == ["align_fraction=0.5 [flops], seed 3: failed (the loss is nan)"]
    assert "79 of 80 confirmation runs are finished (1 failed)." in found.doubts


def test_contrasts_whose_runs_failed_count_in_holms_family_all_the_same(tmp_path):
    """Four were declared and three came to nothing: the one that is left is corrected for four, and says so."""
    gone = {(f"align_fraction={level} [parameters]", seed) for level in ("0.25", "0.75", "1") for seed in range(8)}
    found = compare([make_study(tmp_path, failed=gone)])
    own = {part.found.first: part for part in found.families[0].contrasts}
    left = own["align_fraction=0.5"]
    assert (left.found.p, left.p, left.among) == pytest.approx((2 / 2**8, 4 * 2 / 2**8, 4))
    assert "after Holm over 4 contrasts" in left.sentence("sync_auc")
    alone = tost(left.found.differences, 0.02)
    assert left.within.lower == pytest.approx(4 * alone.lower, abs=0)
    assert [own[f"align_fraction={level}"].outcome for level in ("0.25", "0.75", "1")] == ["refused"] * 3


def test_a_verdict_is_provisional_until_every_seed_of_every_budget_has_ended(tmp_path):
    few = FIELDS | {"vary": {"variant.align_fraction": [0.0, 1.0]}}
    keys = [f"align_fraction={level} [flops]" for level in (0, 1)]
    whole = compare([make_study(tmp_path / "whole", few)])
    assert (whole.status, whole.reservations) == ("verdict", [])
    assert whole.findings == []
    assert whole.summary.startswith("align_fraction=1 is ahead of align_fraction=0 in sync_auc at equal parameters and FLOPs (+")
    stopped = compare([make_study(tmp_path / "stopped", few | {"seeds": 9}, missing={(keys[0], 8)})])
    assert stopped.status == "provisional"
    assert stopped.reservations[0].startswith("1 of 36 confirmation runs have not ended: what is said here may change")
    assert not stopped.summary.endswith("budgets.")  # both budgets have their say
    absent = compare([make_study(tmp_path / "absent", few, missing=set(keys))])
    assert absent.status == "provisional"
    assert absent.reservations[0].startswith("16 of 32 confirmation runs have not ended")
    assert absent.reservations[1] == (
        "align_fraction=1 against align_fraction=0 is judged at equal parameters, and at equal FLOPs it is not "
        "(no pair of runs is finished): no claim holds under both yet."
    )
    assert absent.summary.endswith("This holds at one of two budgets.")
    assert {part.outcome for part in absent.contrasts if part.family == "flops"} == {"refused"}


def test_a_failed_seed_that_keeps_a_claim_from_its_second_budget_is_a_reservation(study):
    found = compare([study])
    assert found.status == "provisional"
    assert found.reservations == [
        "align_fraction=0.5 [flops]: 1 of 8 confirmation seeds failed (seed 3: the loss is nan), and what is said of it rests on the "
        "others alone, which may be those that went well.",
        "align_fraction=0.5 against align_fraction=0 is judged at equal parameters, and at equal FLOPs it is not "
        "(7 seeds, and a verdict needs 8): no claim holds under both yet.",
    ]


@pytest.mark.parametrize("seeds", [(3, 5), range(10)])
def test_whoever_failed_is_not_beaten_and_its_failures_are_reservations(tmp_path, seeds):
    """Three ratios with all pairs: seeds that went well do not make a verdict, and an arm without any is not left out of "every"."""
    fields = FIELDS | {
        "vary": {"variant.align_fraction": [0.0, 0.5, 1.0]},
        "seeds": 10,
        "contrasts": {"against": {"variant.align_fraction": 1.0}},
        "budgets": {"parameters": {"budget.parameters": 1_000_000}},
        "tuning": None,
    }
    gain = lambda point, seed: 0.4 + 0.3 * (point.levels["variant.align_fraction"] == "1")  # noqa: E731
    whole = compare([make_study(tmp_path / "whole", fields, gain)])
    assert whole.status == "verdict"
    key = "align_fraction=0.5 [parameters]"
    found = compare([make_study(tmp_path / "failed", fields, gain, failed={(key, seed) for seed in seeds})])
    assert found.status == "provisional"
    named = ", ".join(map(str, seeds))
    assert found.reservations[0].startswith(
        f"{key}: {len(seeds)} of 10 confirmation seeds failed (seeds {named}: the loss is nan), "
    )
    assert ("nobody is ahead of all" in found.reservations[0]) == (len(seeds) == 10)
    pairs = {name: part for name, part in fields.items() if name != "contrasts"}
    found = compare([make_study(tmp_path / "pairs", pairs, gain, failed={(key, seed) for seed in seeds})])
    assert found.status == "provisional"
    assert len(found.contrasts) == 3
    assert ("ahead of every other" in found.summary) == (len(seeds) == 2)


def test_a_finished_run_without_the_score_has_failed_too(tmp_path):
    few = FIELDS | {"vary": {"variant.align_fraction": [0.0, 1.0]}, "seeds": 9, "tuning": None}
    folder = make_study(tmp_path, few)
    record = next(tmp_path.glob("run-*")) / "record.json"
    made = json.loads(record.read_text())
    made["scores"]["sync_auc"]["value"] = None
    record.write_text(json.dumps(made))
    (line,) = compare([folder]).reservations
    assert "1 of 9 confirmation seeds failed (seed" in line
    assert "its clips have no sync_auc" in line


def without(folder, score):
    """The run with a score that is not defined."""
    made = json.loads((folder / "record.json").read_text())
    made["scores"][score] = dict.fromkeys(("value", "low", "high")) | {"n": 0}
    (folder / "record.json").write_text(json.dumps(made))


def test_seeds_whose_headline_is_not_defined_make_a_verdict_provisional_and_are_named(tmp_path, capsys):
    runs = make_runs(tmp_path / "runs", {"dual_tower": 0.9, "unified": 0.4}, seeds=10)
    assert compare([tmp_path / "runs"]).status == "verdict"
    for seed in (3, 5):
        without(runs[2 * seed + 1], "sync_auc")
    found = compare([tmp_path / "runs"])
    said = "unified: sync_auc is not defined for seeds 3, 5 of 10 (nothing to count in their clips), and what is said of it rests"
    assert found.status == "provisional"
    assert [line.startswith(said) for line in found.reservations] == [True]
    assert found.contrasts[0].found.n == 8
    print_comparison(found)
    assert "(8 of 10)" in capsys.readouterr().out
    (lead,) = [row["cells"][1] for row in results(found)[1] if row["label"] == "unified"]
    assert lead["small"].endswith("8 of 10 seeds")
    write_frames(found, tmp_path)
    # One without any is shown and not judged, and is no reason to say nothing.
    for run in runs[1::2]:
        without(run, "sync_auc")
    found = compare([tmp_path / "runs"])
    assert found.contrasts == []
    assert any("of 10 (nothing to count in their clips), and nothing can be said of it." in line for line in found.doubts)
    print_comparison(found)


def test_other_scores_that_are_not_defined_say_of_how_many_seeds_a_mean_is(tmp_path, capsys):
    runs = make_runs(tmp_path / "runs", {"dual_tower": 0.9, "unified": 0.4}, seeds=3)
    without(runs[1], "sync_error_ms")
    for run in runs[::2]:
        without(run, "f1@80ms")
    found = compare([tmp_path / "runs"])
    assert found.doubts == compare([tmp_path / "runs"]).doubts == []
    columns, rows = results(found)
    place = {part["title"].split()[0]: number for number, part in enumerate(columns)}
    cells = {row["label"]: row["cells"] for row in rows}
    assert cells["unified"][place["sync_error_ms"]]["small"].endswith("2 of 3 seeds")
    assert cells["dual_tower"][place["f1@80ms"]]["text"] == "-"
    assert "seeds" not in cells["dual_tower"][place["sync_error_ms"]]["small"]
    monkeypatched = Console(width=300)
    print_comparison(found, monkeypatched)
    assert "(2 of 3)" in capsys.readouterr().out
    write_frames(found, tmp_path)


def test_a_budget_that_an_override_took_away_is_remembered(tmp_path, capsys):
    file = tmp_path / "depth_ratio.yaml"
    file.write_text("# How much of the depth should align?\n" + yaml.safe_dump(FIELDS))
    read = read_study(file, overrides=["budgets=parameters"])
    assert (read.origin.file, read.origin.without) == (str(file), ("flops",))
    found = compare([make_study(tmp_path, read.source, origin=read.origin)])
    assert found.status == "provisional"
    assert found.summary.endswith("This holds at one of two budgets.")
    assert "declares equal FLOPs as well, and it was left out" in found.reservations[0]
    print_comparison(found)
    assert "Provisional: align_fraction=" in " ".join(capsys.readouterr().out.split())
    one = {key: value for key, value in FIELDS.items() if key != "budgets"}  # a study that declares none
    alone = compare([make_study(tmp_path / "one", one)])
    assert alone.status == "verdict"
    assert "Judged at equal parameters alone: whether the sign agrees at equal FLOPs was not asked." in alone.findings


def test_tuned_and_varied_settings_do_not_keep_a_study_from_ranking_but_data_does(tmp_path):
    found = compare([make_study(tmp_path / "a")])  # learning rates differ by point
    assert found.differences == []
    fields = FIELDS | {
        "fixed": {"world": "pulse", "variant": "unified"},
        "vary": {"training.steps": [100, 200]},
        "contrasts": {"against": {"training.steps": 100}},
        "budgets": {"parameters": {"budget.parameters": 1_000_000}},
        "tuning": None,
    }
    unequal = compare([make_study(tmp_path / "b", fields, lambda point, seed: 0.5)])
    assert unequal.status == "not ranked"
    assert "training differs (steps: 100, 200)" in unequal.summary
    assert {part.outcome for part in unequal.contrasts} == {"refused"}


def test_unequal_tuning_is_refused(tmp_path):
    found = compare([make_study(tmp_path, trials={"align_fraction=1 [parameters]": 2})])
    assert found.status == "not ranked"
    assert "tuning differs in trials" in found.summary


def test_an_optimum_at_an_end_of_the_space_makes_a_verdict_provisional_where_its_point_is_contrasted(tmp_path):
    few = FIELDS | {
        "vary": {"variant.align_fraction": [0.0, 0.5, 1.0]},
        "contrasts": {"pairs": [["align_fraction=1", "align_fraction=0"]]},
    }
    bounds = {"align_fraction=1 [flops]": {"training.lr": "high"}, "align_fraction=0.5 [flops]": {"training.lr": "low"}}
    found = compare([make_study(tmp_path, few, at_bound=bounds)])
    assert found.status == "provisional"
    (line,) = found.reservations
    assert line.startswith("align_fraction=1 [flops]: its best training.lr, ")
    assert line.endswith(
        "lies at the high end of what was tuned (0.001 to 0.01), so it may do better beyond. Widen tuning.space.training.lr above 0.01."
    )
    assert found.doubts == ["align_fraction=0.5 [flops]: the best training.lr lies at the low end of its space, so widen it."]


def test_an_optimum_at_an_end_beyond_which_there_is_nothing_is_an_ordinary_doubt(tmp_path):
    closed = {"space": {"training.lr": {"low": 1e-3, "high": 1e-2, "log": True, "closed": "low"}}, "trials": 2}
    few = FIELDS | {"vary": {"variant.align_fraction": [0.0, 1.0]}, "tuning": closed}
    folder = make_study(tmp_path, few)
    saved = json.loads((folder / "study.json").read_text())
    for key, choice in saved["choices"].items():
        choice["tuned"] = {"training.lr": 1e-3 if key == "align_fraction=1 [flops]" else 3e-3}
    (folder / "study.json").write_text(json.dumps(saved))
    found = compare([folder])
    assert (found.status, found.reservations) == ("verdict", [])
    assert found.doubts == [
        "align_fraction=1 [flops]: its best training.lr, 0.001, lies at the low end, beyond which there is nothing to try."
    ]


def test_signs_that_differ_between_budgets_hold_no_claim(tmp_path):
    def value(point, seed):
        high = float(point.levels["variant.align_fraction"]) > 0
        return 0.6 + (0.1 if high else 0.0) * (1 if point.budget == "parameters" else -1)

    found = compare([make_study(tmp_path, value=value)])
    assert found.status == "budgets disagree"
    assert "the sign differs, and no claim holds under both." in found.summary


def fall(root, sizes, seeds, law):
    """Writes losses that follow a law, and sizes, into the records of a study of sizes."""
    made = sorted(root.glob("run-*"), key=lambda path: int(path.name[4:]))
    for run, (size, seed) in zip(made, [(size, seed) for size in sizes for seed in range(seeds)], strict=True):
        record = json.loads((run / "record.json").read_text())
        loss = law(size) * (1 + 0.001 * ((seed * 37 + size // 1000 * 11) % 7 - 3))
        record["parameters"]["total"] = size
        record["scores"]["loss"] = {"value": loss, "low": loss, "high": loss, "n": 8}
        (run / "record.json").write_text(json.dumps(record))


def test_sizes_give_a_law_with_the_largest_held_out(tmp_path):
    sizes = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]
    fields = {
        "fixed": {"world": "pulse", "variant": "unified"},
        "vary": {"budget.parameters": sizes},
        "seeds": 8,
        "metric": "sync_auc",
        "scaling": {"axis": "budget.parameters"},
    }
    folder = make_study(tmp_path, fields, lambda point, seed: 0.5, question="How does loss fall with size?")
    fall(tmp_path, sizes, 8, lambda size: 0.05 + 2 * size**-0.3)
    found = compare([folder])
    (law,) = found.laws.values()
    assert law.held_out == 1e7
    assert law.law.b == pytest.approx(0.3, abs=0.03)
    assert abs(law.error.mean) < 0.01
    assert any("At the held-out 1e+07 it foretells" in line for line in found.findings)


def test_where_the_least_loss_is_known_it_is_the_laws_e_and_the_fitted_one_is_told(tmp_path):
    sizes = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]
    fields = {
        "fixed": {"world": "gaussian", "world.duration_s": 0.8, "variant": "unified", "evaluation.loss_clips": 64},
        "vary": {"budget.parameters": sizes},
        "seeds": 2,
        "metric": "sync_auc",
        "scaling": {"axis": "budget.parameters"},
    }
    folder = make_study(tmp_path, fields, lambda point, seed: 0.5, question="How does loss fall with size?")
    least = np.mean([least_loss(load_config(run)) for run in sorted(tmp_path.glob("run-*"))[:1]])
    fall(tmp_path, sizes, 2, lambda size: least + 2 * size**-0.3)
    found = compare([folder])
    (law,) = found.laws.values()
    assert law.known == law.law.E == pytest.approx(least, rel=0.1)
    assert law.fitted == pytest.approx(law.known, rel=0.1)
    assert law.fitted != law.known
    (line,) = (part for part in found.findings if "foretells" in part)
    assert f"E {law.known:.4g} known (fitted it would be {law.fitted:.4g})" in line


# Data frames


def test_frames_hold_everything_and_survive_their_files(families, tmp_path):
    found = compare([families])
    files = write_frames(found, tmp_path)
    assert {path.name for path in files} == {"runs.csv", "runs.parquet", "contrasts.csv", "contrasts.parquet"}
    frame = runs_frame(found.runs)
    assert len(frame) == 24
    assert {"sync_auc", "sync_auc.low", "label", "seed", "variant.depth", "training.lr", "flops_per_sample"} <= set(frame)
    for read in (pd.read_csv(tmp_path / "runs.csv"), pd.read_parquet(tmp_path / "runs.parquet")):
        assert read["sync_auc"].tolist() == pytest.approx(frame["sync_auc"].tolist())
        assert read["label"].tolist() == frame["label"].tolist()
    contrasts = contrasts_frame(found)
    assert contrasts["outcome"].tolist() == [part.outcome for part in found.contrasts]
    assert contrasts["under_every_budget"].tolist()[:2] == ["ahead", "ahead"]
    assert pd.read_parquet(tmp_path / "contrasts.parquet")["p_holm"].tolist() == contrasts["p_holm"].tolist()


def test_the_api_reads_folders_and_studies(families, study):
    import nava_lab

    frame = nava_lab.load_runs(families)
    assert frame.groupby("variant")["sync_auc"].count().tolist() == [8, 8, 8]
    assert load_runs(study).shape[0] == 79
    assert load_runs(study).attrs["left_out"]
    logs = load_logs(families)
    assert {"step", "clips_seen", "validation/loss", "label", "seed"} <= set(logs)
    assert len(logs) == 240
    with pytest.raises(AttributeError, match="no attribute 'load_rums'"):
        _ = nava_lab.load_rums


def test_mixed_columns_become_text(tmp_path):
    one, other = make_run(tmp_path, 0, 0.5), make_run(tmp_path, 1, 0.5)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["trainer"]["devices"] = "auto"
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    write_frames(compare([one, other]), tmp_path)
    assert pd.read_parquet(tmp_path / "runs.parquet")["trainer.devices"].tolist() == ["1", "auto"]


def test_the_terminal_names_what_it_hides(families, study, capsys):
    for folder in (families, study):
        print_comparison(compare([folder]))
    printed = capsys.readouterr().out
    assert "true clips, decoded" in printed
    assert "in a wider terminal, and on the page" in printed
    assert "dual_tower is ahead of every other" in printed
    assert "align_fraction=0.5 [flops], seed 3: failed" in " ".join(printed.split())


def test_a_lead_that_grows_along_a_setting_is_told_in_words_table_and_file(tmp_path):
    fields = {
        "fixed": {"world": "pulse"},
        "vary": {"world.density": [0.5, 2.0], "variant": ["dual_tower", "unified"]},
        "metric": "sync_auc",
        "contrasts": {"against": {"variant": "dual_tower"}, "slopes": {"world.density": {"variant": "dual_tower"}}},
    }

    def value(point, seed):
        density = float(point.levels["world.density"])
        return 0.5 + (0.1 * density if point.levels["variant"] == "unified" else 0.0)

    found = compare([make_study(tmp_path, fields, value, question="Does the lead grow with density?")])
    plain, slope = found.contrasts[:2], found.contrasts[2]
    assert [part.along for part in found.contrasts] == ["", "", "density"]
    assert slope.outcome == "ahead"
    assert slope.found.interval.mean == pytest.approx(0.1, abs=0.02)
    assert slope.p == pytest.approx(3 * 2 / 2**8)  # in one family with the others
    assert (
        "variant=unified gains on variant=dual_tower in sync_auc as density rises (+0.099 [+0.087, +0.111] per 1 of density)."
        in found.summary
    )
    assert "is ahead of variant=dual_tower in sync_auc at all 2 levels (density=0.5 and 2)" in found.summary
    assert (
        "as density rises: +0.099 [+0.087, +0.111] per 1 of density (8 paired seeds, sign-flip p = 0.023 after Holm over 3 contrasts)"
        in found.sentences[2]
    )
    assert {part.outcome for part in plain} == {"ahead"}
    rows = contrasts(found)[1]
    assert rows[2]["name"] == "variant=unified − variant=dual_tower, per 1 of density"
    assert rows[2]["forest"]
    assert list(contrasts_frame(found)["along"]) == ["", "", "density"]
    lower = judge_slope(
        {label: {seed: -score for seed, score in enumerate(scores)} for label, scores in SCORES.items()},
        Contrast("a", "b", "", "world.density", ((1.0, "a1", "b1"), (2.0, "a2", "b2"))),
        higher_is_better=True,
    )
    assert lower.outcome == "behind"
    assert lower.claim("sync_auc") == "a falls back against b in sync_auc as density rises"


SCORES = {
    label: [at + 0.01 * seed**2 * len(label) for seed in range(8)] for label, at in (("a1", 0), ("a2", 1), ("b1", 0), ("b2", 0))
}
