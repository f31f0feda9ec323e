"""Statistics against scipy, against published worked examples, and by simulation.

Simulations draw fixed seeds. REPEATS experiments give a coverage of 95 % with a standard error of .15 points, so that one
point either way is a real bound.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nava_lab.study.statistics import (
    Law,
    Tuned,
    fit_law,
    holm,
    least_p,
    main_effects,
    paired,
    paired_slopes,
    scale_dependent,
    scaling,
    sign_flip,
    t_interval,
    tost,
    tuning_doubts,
    unequal_tuning,
)

REPEATS = 20_000
POINT = 0.01

# Darwin's maize: crossed less self-fertilised height, in eighths of an inch. Fisher, The Design of Experiments (1935), 17, 21.
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)
# Student's sleep data (Biometrika 6, 1908): hours gained with drug 1 less drug 2.
SLEEP = (-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4)


def covered(interval, truth):
    return float(((interval.low <= truth) & (truth <= interval.high)).mean())


# Published worked examples


def test_fishers_maize():
    """t = 2.148, and 1726 of the 32768 sign patterns are at least as far from 0 (Fisher 1935, 21)."""
    assert sign_flip(MAIZE) == pytest.approx(1726 / 2**15)
    crossed, selfed = dict(enumerate(MAIZE)), dict.fromkeys(range(15), 0)
    found = paired("crossed", "selfed", crossed, selfed)
    assert found.interval.mean == pytest.approx(314 / 15)
    assert found.interval.mean / stats.sem(MAIZE) == pytest.approx(2.148, abs=5e-4)
    assert found.interval.low > 0
    assert found.p > 0.05  # the two tests part here: the t-interval leaves 0 out by a hair


def test_students_sleep():
    """95 % interval [-2.4598858, -0.7001142] (R, ?t.test); within half an hour: t = -2.777 and -5.348 (R, TOSTER, t_TOST)."""
    mean, low, high = t_interval(SLEEP)
    assert (mean, low, high) == pytest.approx((-1.58, -2.4598858, -0.7001142), abs=5e-8)
    found = tost(SLEEP, 0.5)
    assert stats.t.isf(found.lower, 9) == pytest.approx(-2.777, abs=1e-3)
    assert stats.t.ppf(found.upper, 9) == pytest.approx(-5.348, abs=1e-3)
    assert found.p == found.lower


def test_holm_by_hand():
    """p = .01, .04, .03, .005 becomes .03, .06, .06, .02 (R, p.adjust; Holm 1979)."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_chinchillas_law_is_found_again():
    """L = 1.69 + 406.4 N^-.34 (Hoffmann et al. 2022, eq. 10, without its data term), fitted below 3 G, foretold at 70 G."""
    sizes = np.array([1e7, 3e7, 1e8, 3e8, 1e9, 3e9])
    true = Law(1.69, 406.4, 0.34)
    free, floored = fit_law(sizes, true(sizes)), fit_law(sizes, true(sizes), floor=1.69)
    for found in (free, floored):
        assert tuple(found) == pytest.approx(tuple(true), rel=1e-4)
        assert found(70e9) == pytest.approx(1.7735, abs=1e-4)


# Against scipy


def test_against_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.1, 1, (2, 9))
    found = paired("a", "b", dict(enumerate(a)), dict(enumerate(b)))
    peer = stats.ttest_rel(a, b)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(peer.confidence_interval()))
    flips = np.array(np.meshgrid(*[(-1, 1)] * 9)).reshape(9, -1).T
    means = np.abs(flips @ (a - b))
    assert found.p == pytest.approx((means >= abs((a - b).sum()) - 1e-12).mean())
    assert tost(a - b, 1.0).p == pytest.approx(
        max(stats.ttest_rel(a + 1, b, alternative="greater").pvalue, stats.ttest_rel(a - 1, b, alternative="less").pvalue)
    )


def test_the_fit_is_scipys_best():
    """No worse in squared relative error than scipy's own curve fit, on noisy losses."""
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(2)
    sizes = np.geomspace(1e5, 1e7, 6)
    losses = Law(0.2, 30.0, 0.4)(sizes) * (1 + 0.01 * rng.normal(size=6))
    ours = fit_law(sizes, losses)
    theirs, _ = curve_fit(
        lambda c, E, a, b: E + a * c**-b, sizes, losses, p0=(0.2, 30, 0.4), sigma=losses, bounds=(0, np.inf), maxfev=20_000
    )

    def error(law):
        return float((((law(sizes) - losses) / losses) ** 2).sum())

    assert error(ours) <= error(Law(*theirs)) * (1 + 1e-6)


# By simulation


@pytest.mark.parametrize("seeds", [3, 8, 16])
def test_the_t_interval_covers(seeds):
    x = np.random.default_rng(seeds).normal(0.3, 2.0, (REPEATS, seeds))
    assert covered(t_interval(x), 0.3) == pytest.approx(0.95, abs=POINT)


def test_a_percentile_bootstrap_over_three_seeds_would_be_caught():
    """Why seeds are not bootstrapped: 75 % where 95 % is claimed."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3))
    means = np.take_along_axis(x[:, None], rng.integers(0, 3, (4000, 400, 3)), -1).mean(-1)
    low, high = np.percentile(means, (2.5, 97.5), axis=1)
    assert ((low <= 0) & (high >= 0)).mean() < 0.8


@pytest.mark.parametrize("shape", ["normal", "heavy"])
def test_the_sign_flip_test_errs_as_often_as_it_says(shape):
    """Its level, at a p that eight seeds can give exactly, for any symmetric law of differences."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(REPEATS, 8)) if shape == "normal" else rng.standard_cauchy((REPEATS, 8))
    p = np.concatenate([sign_flip(part) for part in np.split(x, 10)])
    for level in (least_p(8), 6 / 128, 10 / 128):
        assert (p <= level + 1e-12).mean() == pytest.approx(level, abs=POINT / 2)
    assert p.min() == pytest.approx(least_p(8))


def test_holm_keeps_the_family_at_its_level():
    """Three contrasts between three variants, all equal: some p below .05 in at most 5 % of studies, and not far below."""
    scores = np.random.default_rng(4).normal(size=(4000, 3, 10))
    pairs = np.stack([scores[:, i] - scores[:, j] for i, j in ((0, 1), (0, 2), (1, 2))])
    p = sign_flip(pairs)
    wrong = np.mean([min(holm(row)) <= 0.05 for row in p.T])
    assert 0.02 < wrong < 0.05 + POINT
    assert np.mean(p.min(0) <= 0.05) > 0.08  # the same without Holm


def test_no_worse_errs_in_five_of_a_hundred_at_its_margin():
    x = np.random.default_rng(5).normal(-0.02, 0.02, (REPEATS, 8))  # truly worse, by exactly the margin
    assert (tost(x, 0.02).lower <= 0.05).mean() == pytest.approx(0.05, abs=POINT)
    assert (tost(x + 0.02, 0.06).p <= 0.05).mean() > 0.99


def test_a_law_foretells_its_largest_size_as_often_as_it_says():
    sizes = np.geomspace(1e5, 1e7, 6)
    noise = 1 + 0.005 * np.random.default_rng(6).normal(size=(4000, 8, 6))
    losses = Law(0.2, 30.0, 0.4)(sizes) * noise
    found = fit_law(sizes[:-1], losses[..., :-1])
    assert covered(t_interval(found.b), 0.4) == pytest.approx(0.95, abs=POINT)
    foretold = found.E + found.a * sizes[-1] ** -found.b
    assert covered(t_interval((foretold - losses[..., -1]) / losses[..., -1]), 0.0) == pytest.approx(0.95, abs=POINT)


def test_noise_alone_seldom_stands_out_among_what_mattered():
    """Twelve trials of pure noise over four levels and three: some setting stands out in 5 % of studies, not in half of them."""
    rows = [{"fraction": level, "lr": lr} for level in "abcd" for lr in (1e-3, 3e-3, 1e-2)]
    noise = np.random.default_rng(9).normal(size=(300, 12))
    found = [main_effects(rows, values) for values in noise]
    assert np.mean([any(part.stands_out for part in effects.values()) for effects in found]) < 0.05 + 2.5 * POINT
    assert np.mean([effects["fraction"].share for effects in found]) == pytest.approx(3 / 11, abs=0.03)  # of noise, by itself
    slope = [{"a": 0.0, "b": 0.0, "c": 2.0, "d": 4.0}[row["fraction"]] for row in rows]
    effects = main_effects(rows, np.array(slope) + noise[0])
    assert [effects[name].stands_out for name in ("fraction", "lr")] == [True, False]
    assert [part.share for part in main_effects(rows, slope).values()] == pytest.approx([1, 0])
    assert main_effects(rows[:7], slope[:7]) == {}


# What is refused, and what is said


def test_pairs_are_by_seed_and_lonely_seeds_are_left_out():
    found = paired("a", "b", {0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.5, 0: 0.0, 3: 7.0})
    assert found.seeds == (0, 1)
    assert found.differences == (1.0, 0.5)
    assert not found.enough
    assert paired("a", "b", {0: 1.0}, {1: 1.0}).p == 1.0


def test_more_seeds_than_can_be_enumerated():
    rng = np.random.default_rng(7)
    x = rng.normal(0.4, 1, 24)
    assert sign_flip(x) == pytest.approx(stats.ttest_1samp(x, 0).pvalue, abs=0.02)
    assert sign_flip(x) == sign_flip(x)


def test_differences_that_are_all_the_same_are_certain():
    found = tost([0.0] * 8, 0.02)
    assert (found.lower, found.upper) == (0.0, 0.0)
    assert sign_flip([0.0] * 8) == 1.0
    assert sign_flip([0.1] * 8) == least_p(8)


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(ValueError, match="state how much worse"):
        tost([0.1, 0.2], 0.0)


def test_scaling_holds_the_largest_size_out():
    law, sizes = Law(0.2, 30.0, 0.4), np.geomspace(1e5, 1e7, 6)
    rng = np.random.default_rng(8)
    losses = {size: {seed: float(law(size)) * (1 + 0.002 * rng.normal()) for seed in range(8)} for size in sizes}
    found = scaling(losses)
    assert found.weak == ()
    assert found.error.low < 0 < found.error.high
    broken = losses | {sizes[-1]: {seed: value * 1.2 for seed, value in losses[sizes[-1]].items()}}
    assert scaling(broken).error.high < -0.1  # the held-out size took no part in the fit
    assert scaling(broken).law == found.law
    steeper = {size: {seed: value * (size / 1e5) ** -0.3 for seed, value in part.items()} for size, part in losses.items()}
    assert not scale_dependent(found, scaling(steeper))
    assert scale_dependent(found, found)
    assert scaling(losses, held_out=2).predicted != found.predicted
    few = {size: {0: losses[size][0]} for size in sizes[:4]}
    assert [line.split(",")[0] for line in scaling(few).weak] == ["4 sizes", "sizes span 1.20 decades", "1 seed"]
    with pytest.raises(ValueError, match="needs 4 sizes, not 3"):
        scaling({size: losses[size] for size in sizes[:3]})


def test_equal_tuning_is_checked():
    space = {"training.lr": (1e-4, 1e-2)}
    fair = Tuned(8, 0, space, seeds=(100, 101))
    assert unequal_tuning({"a": fair, "b": fair}, range(8)) == []
    assert unequal_tuning({"a": fair, "b": replace(fair, trials=5)}) == ["tuning differs in trials (a: 8, b: 5)"]
    assert unequal_tuning({"a": fair}, (7, 100)) == ["a was tuned on test seed 100"]
    (line,) = unequal_tuning({"a": fair, "b": replace(fair, space={"training.lr": (1e-4, 1.0)})})
    assert line.startswith("tuning differs in space")
    assert tuning_doubts({"a": fair}) == []
    assert tuning_doubts({"a": replace(fair, failed=2, at_bound={"training.lr": "high"})}) == [
        "a: the best training.lr lies at the high end of its space, so widen it",
        "a: 2 of 8 tuning trials failed",
    ]


def test_a_slope_of_paired_differences_is_the_regression_of_each_seed():
    rng, x = np.random.default_rng(0), [0.5, 1.0, 2.0]
    a, b = ({seed: rng.normal(size=3) for seed in range(9)} for _ in range(2))
    steps = [
        (value, {s: a[s][at] for s in range(9) if (s, at) != (8, 1)}, {s: b[s][at] for s in range(9)})
        for at, value in enumerate(x)
    ]
    found = paired_slopes("a", "b", steps)
    assert found.seeds == tuple(range(8))  # seed 8 lacks a step
    expected = [stats.linregress(x, a[seed] - b[seed]).slope for seed in range(8)]
    assert found.differences == pytest.approx(expected)
    assert found.p == pytest.approx(float(sign_flip(expected)))
    with pytest.raises(ValueError, match="a slope needs two values at least, not 1"):
        paired_slopes("a", "b", steps[1:2])


def test_slopes_of_noise_are_decided_no_oftener_than_is_said():
    noise = np.random.default_rng(1).normal(size=(2, 400, 4, 8))  # a lead that is there, and does not change
    lead = noise[0] - noise[1] + 0.5
    x = np.array([0.5, 1, 1.5, 2])
    p = [
        paired_slopes(
            "a", "b", [(at, dict(enumerate(row)), dict.fromkeys(range(8), 0.0)) for at, row in zip(x, part, strict=True)]
        ).p
        for part in lead
    ]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.047, abs=0.03)
