"""What a conclusion over several budgets says: every budget must bear a claim out."""

from dataclasses import replace

import pytest

from nava_lab.report.across import across
from nava_lab.report.compare import compare
from nava_lab.report.judge import corrected, judge, judge_slope
from nava_lab.report.summary import summarised
from nava_lab.study.spec import Contrast
from tests.unit.report.made import FIELDS, make_study

TWO = FIELDS | {"vary": {"variant.align_fraction": [0.0, 1.0]}}
WIDE = (-0.5, -0.4, -0.3, 0.3, 0.25, -0.2, 0.2, -0.1)  # a mean that eight seeds cannot tell from none, nor from the margin


def found(root, parameters, flops, **kwargs):
    """A study of two ratios; the gain of 1 over 0 at either budget, of all seeds or by seed."""

    def value(point, seed):
        gain = parameters if point.budget == "parameters" else flops
        own = gain[seed] if isinstance(gain, tuple) else gain
        return 0.5 + (own if point.levels["variant.align_fraction"] == "1" else 0.0)

    return compare([make_study(root, TWO, value, **kwargs)])


def test_being_equal_at_one_budget_is_no_verdict_while_the_other_has_none(tmp_path):
    gone = {(f"align_fraction={level} [flops]", seed) for level in (0, 1) for seed in range(8)}
    made = found(tmp_path, 0.0, 0.0, failed=gone)
    assert [part.outcome for part in made.contrasts] == ["equal", "refused"]
    assert made.status == "provisional"
    assert any("is judged at equal parameters, and at equal FLOPs it is not" in line for line in made.reservations)
    assert made.summary.endswith("This holds at one of two budgets.")


@pytest.mark.parametrize(
    ("parameters", "flops", "outcomes", "status", "said"),
    [
        (0.0, WIDE, ("equal", "open"), "budgets disagree", "no claim holds under both."),
        (0.2, -0.2, ("ahead", "behind"), "budgets disagree", "the sign differs, and no claim holds under both."),
        (0.0, 0.0, ("equal", "equal"), "verdict", "is equal to align_fraction=0 in sync_auc within 0.02 at equal parameters and FLOPs ("),
        (WIDE, WIDE, ("open", "open"), "undecided", "cannot be told from align_fraction=0 in sync_auc at equal parameters or FLOPs ("),
        (0.2, 0.2, ("ahead", "ahead"), "verdict", "align_fraction=1 is ahead of align_fraction=0 in sync_auc at equal parameters and FLOPs ("),
        (-0.2, WIDE, ("behind", "open"), "verdict", "the sign is the same at both, so being behind holds."),
    ],
)  # fmt: skip
def test_every_budget_must_bear_a_claim_out(tmp_path, parameters, flops, outcomes, status, said):
    made = found(tmp_path, parameters, flops)
    assert tuple(part.outcome for part in made.contrasts) == outcomes
    assert (made.status, made.reservations) == (status, [])
    assert said in made.summary


def over(gains, margin=0.02, pairs=(("a", "b"),)):
    """Contrasts of a against b under budgets, a's gain and its spread over seeds by budget."""
    parts = []
    for family, (gain, spread) in gains.items():
        scores = {"b": dict.fromkeys(range(8), 0.5)}
        for place, (first, _) in enumerate(pairs):
            scores[first] = {seed: 0.5 + gain + spread * (seed - 3.5) + 0.001 * place for seed in range(8)}
        parts += corrected(judge(scores, list(pairs), True, margin, family=family))
    return parts


def summary(parts, labels=("a", "b")):
    return summarised(parts, {part.family: labels for part in parts}, "sync_auc")


def test_a_weaker_claim_holds_where_the_stronger_does_not():
    (one,) = across(over({"parameters": (0.0, 0.0005), "flops": (0.015, 0.008)}))
    assert [part.outcome for part in one.parts] == ["equal", "no worse"]
    assert (one.holds, one.standing) == ("no worse", "holds")
    text, _ = summary(one.parts)
    assert text.endswith(
        "and is no worse than b within 0.02 at equal FLOPs (+0.015 [−0.001, +0.031]): being no worse within 0.02 holds at both."
    )
    (one,) = across(over({"parameters": (-0.001, 0.002), "flops": (0.2, 0.01)}))  # equal, by the other sign, and ahead
    assert [part.outcome for part in one.parts] == ["equal", "ahead"]
    assert (one.holds, one.standing) == ("no worse", "split")
    assert summary(one.parts)[0].endswith(": the sign differs, and only being no worse within 0.02 holds at both.")
    (one,) = across(over({"parameters": (0.001, 0.002), "flops": (0.2, 0.01)}))
    assert (one.holds, one.standing) == ("ahead", "holds")
    (one,) = across(over({"parameters": (0.0, 0.002), "flops": (0.0, 0.2)}, margin=None))
    assert (one.holds, one.standing) == ("", "open")


def test_contrasts_that_came_out_alike_are_one_sentence_with_their_common_side():
    """Four densities, three variants: the declared base is behind at every one of them."""
    levels, parts = (0.5, 1, 1.5, 2), []
    labels = [f"density={level}, variant={name}" for level in levels for name in ("dual_tower", "unified", "align_then_fuse")]
    scores = {
        label: {seed: 0.4 + 0.01 * seed + (0.1 + 0.001 * place * seed if "dual" not in label else 0) for seed in range(10)}
        for place, label in enumerate(labels)
    }
    pairs = [(label, f"{label.split(', ')[0]}, variant=dual_tower") for label in labels if "dual" not in label]
    for family in ("parameters", "flops"):
        steps = tuple(
            (float(level), f"density={level}, variant=unified", f"density={level}, variant=dual_tower") for level in levels
        )
        slope = judge_slope(scores, Contrast("variant=unified", "variant=dual_tower", family, "world.density", steps), True)
        parts += corrected([*judge(scores, pairs, True, 0.02, family=family), slope])
    text, rest = summarised(parts, dict.fromkeys(("parameters", "flops"), labels), "sync_auc")
    assert rest == []
    assert text.startswith(
        "variant=unified and align_then_fuse are ahead of variant=dual_tower in sync_auc at all 4 levels (density=0.5, 1, 1.5 and 2) "
        "at equal parameters and FLOPs ("
    )
    assert "variant=unified gains on variant=dual_tower in sync_auc as density rises at equal parameters and FLOPs (" in text
    # One level that comes out otherwise is told apart.
    worse = {
        label: {seed: part - (0.3 if label == labels[1] else 0) for seed, part in own.items()} for label, own in scores.items()
    }
    text, _ = summarised(corrected(judge(worse, pairs, True, 0.02)), {"": labels}, "sync_auc")
    assert "variant=unified is behind variant=dual_tower in sync_auc at density=0.5 (" in text
    assert "variant=unified is ahead of variant=dual_tower in sync_auc at density=1, 1.5 and 2 (" in text
    assert (
        "variant=align_then_fuse is ahead of variant=dual_tower in sync_auc at all 4 levels (density=0.5, 1, 1.5 and 2)" in text
    )


def test_what_is_counted_is_counted_alike():
    """More sentences than a summary holds are counted, slopes on both sides of "of", and told one by one below."""
    pairs = [(name, "b") for name in "cdefgh"]
    parts = [
        replace_first(part, place)
        for place, part in enumerate(over({"": (0.2, 0.0)}, pairs=pairs) + over({"": (0.0, 0.3)}, pairs=pairs))
    ]
    text, rest = summarised(parts, {"": [part.found.first for part in parts]}, "sync_auc")
    assert text == "6 of 12 contrasts in sync_auc are decided, 6 are open."
    assert len(rest) == 12


def replace_first(part, place):
    """A contrast under a name that nothing else shares, against a side of its own, so that none can be told together."""
    return replace(part, found=replace(part.found, first=f"x{place}", second=f"y{place}"))


def test_the_tost_family_holds_what_has_a_margin_alone():
    """A slope has none: counted as p = 1 it would make every other bound harder to meet."""
    scores = {"b": dict.fromkeys(range(8), 0.5)} | {
        name: {seed: 0.5 + 0.004 * (seed - 3.5) for seed in range(8)} for name in "ac"
    }
    plain = judge(scores, [("a", "b"), ("c", "b")], True, 0.02)
    steps = ((1.0, "a", "b"), (2.0, "c", "b"))
    slopes = [judge_slope(scores, Contrast(f"s{place}", "t", "", "x", steps), True) for place in range(4)]
    alone, beside = corrected(plain), corrected([*plain, *slopes])
    assert [part.within for part in beside[:2]] == [part.within for part in alone]
    assert (beside[0].among, beside[0].bounded) == (6, 2)
    assert beside[0].p == pytest.approx(min(1.0, 3 * alone[0].p)) or alone[0].p == 1.0
    untested = judge(scores, [("a", "b"), ("gone", "b")], True, 0.02)  # declared, and its runs failed
    assert corrected(untested)[0].within.lower == pytest.approx(2 * plain[0].within.lower)
