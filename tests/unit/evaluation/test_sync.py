"""The sync metric against hand-worked cases."""

import numpy as np
import pytest
import torch

from nava_lab.evaluation.score import beyond_chance, mean_score, over_clips, ratio_score, weighted_median
from nava_lab.evaluation.sync import Errors, match, partners
from nava_lab.registry import metrics, worlds
from nava_lab.streams import Batch, Stream
from nava_lab.worlds.base import Events

NO_TEXT = Stream(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 3))


def events(*clips):
    width = max(1, *(len(clip) for clip in clips))
    seconds = torch.tensor([list(clip) + [0.0] * (width - len(clip)) for clip in clips], dtype=torch.float64)
    real = torch.tensor([[place < len(clip) for place in range(width)] for clip in clips])
    return Events(seconds, torch.zeros_like(seconds, dtype=torch.long), real.double(), real)


def scored(video, audio, index=None):
    metric = metrics.get("sync")(worlds.get("pulse")())
    index = torch.arange(len(video)) if index is None else torch.tensor(index)
    metric.update_samples(Batch({}, NO_TEXT, index), {"video": events(*video), "audio": events(*audio)})
    return metric


def test_a_case_worked_by_hand():
    # Clip 0: pairs (0.50, 0.51) lag +10 ms and (1.00, 0.90) lag -100 ms; 1.6 has nobody. Clip 1: (0.3, 0.33), +30 ms.
    metric = scored([(0.5, 1.0), (0.3,)], [(0.51, 0.9, 1.6), (0.33,)])
    scores = metric.compute()
    assert metric.per_clip()["lag_ms"] == pytest.approx([10, -100, 30])
    assert metric.per_clip()["lag_clip"].tolist() == [0, 0, 1]
    assert scores["f1@20ms"].value == pytest.approx(2 * 1 / 7)
    assert scores["f1@40ms"].value == pytest.approx(2 * 2 / 7)
    assert scores["f1@160ms"].value == pytest.approx(2 * 3 / 7)
    # v - a is -10, +100, -30 ms: only within [-125, +45] count.
    assert scores["f1_itu"].value == pytest.approx(2 * 2 / 7)
    assert scores["sync_error_ms"].value == pytest.approx(np.median([10, 100, 30, 250]))
    assert scores["bias_ms"].value == pytest.approx(10)
    assert scores["jitter_ms"].value == pytest.approx(1.4826 * 20)


def test_chance_correction_worked_by_hand():
    # Own lags 0 and 70 ms. Re-paired: .50 with .60 is 100 ms off, .53 with .50 is 30 ms off. Of 4 events, that makes F1
    # .5, .5, 1, 1 at 20, 40, 80, 160 ms, and shuffled 0, .5, .5, 1; where chance is perfect there is nothing to gain.
    scores = scored([(0.5,), (0.53,)], [(0.5,), (0.6,)]).compute()
    assert [scores[f"f1@{tau}ms"].value for tau in (20, 40, 80, 160)] == pytest.approx([0.5, 0.5, 1, 1])
    assert scores["f1_shuffled@80ms"].value == pytest.approx(0.5)
    assert [scores[f"cf1@{tau}ms"].value for tau in (20, 40, 80, 160)] == pytest.approx([0.5, 0, 1, 0])
    assert scores["sync_auc"].value == pytest.approx(1.5 / 4)
    # Worse than chance is below 0. Of three clips, all 100 ms apart, two are exact when re-paired with one another, which is one
    # of two re-pairings: F1 is 0, shuffled 2 (1/2 + 1/2) / 6.
    worse = scored([(0.5,), (0.6,), (1.5,)], [(0.6,), (0.5,), (1.6,)]).compute()
    assert worse["f1_shuffled@20ms"].value == pytest.approx(1 / 3)
    assert worse["cf1@20ms"].value == pytest.approx((0 - 1 / 3) / (1 - 1 / 3))


def test_where_chance_is_perfect_there_is_nothing_to_gain():
    # Own pairs are 100 ms apart and re-paired ones exact: F1 is 0, 0, 0, 1 and chance 1 throughout.
    scores = scored([(0.5,), (0.6,)], [(0.6,), (0.5,)]).compute()
    assert [scores[f"cf1@{tau}ms"].value for tau in (20, 40, 80, 160)] == [0, 0, 0, 0]
    assert scores["sync_auc"][:3] == (0, 0, 0)


def test_matching_is_one_to_one_and_of_least_cost():
    np.testing.assert_allclose(np.sort(match(np.array([0.0, 0.1]), np.array([0.09, 0.2]))), [0.09, 0.1])
    assert len(match(np.array([0.0]), np.array([0.3]))) == 0
    assert len(match(np.array([]), np.array([0.3]))) == 0


def test_perfect_pairs_score_one():
    rng = np.random.default_rng(0)
    clips = [tuple(np.sort(rng.uniform(0, 2, 3))) for _ in range(40)]
    scores = scored(clips, clips).compute()
    assert scores["sync_auc"].value == pytest.approx(1)
    assert scores["sync_error_ms"].value == pytest.approx(0)


def test_independent_onsets_score_chance():
    rng = np.random.default_rng(1)
    video, audio = ([tuple(np.sort(rng.uniform(0, 2, rng.integers(1, 5)))) for _ in range(300)] for _ in range(2))
    found = scored(video, audio).compute()["sync_auc"]
    assert found.low < 0 < found.high


def test_nothing_generated_is_no_sync_and_no_error():
    scores = scored([(), ()], [(), ()]).compute()
    assert scores["sync_auc"].value == 0
    assert scores["f1@80ms"].value == 0
    for name in ("sync_error_ms", "bias_ms", "jitter_ms", "sync_error_shuffled_ms"):
        assert np.isnan(scores[name].value), name


def test_batches_order_and_repeats_change_nothing():
    rng = np.random.default_rng(2)
    video, audio = ([tuple(np.sort(rng.uniform(0, 2, 2))) for _ in range(8)] for _ in range(2))
    whole = scored(video, audio).compute()
    split = metrics.get("sync")(worlds.get("pulse")())
    for rows in ([6, 7, 0], [5, 4, 1], [3, 2, 0]):  # clip 0 twice, as a distributed sampler may
        split.update_samples(
            Batch({}, NO_TEXT, torch.tensor(rows)),
            {"video": events(*(video[i] for i in rows)), "audio": events(*(audio[i] for i in rows))},
        )
    assert str(split.compute()) == str(whole)  # as text, for an interval may be NaN


def test_partners_are_other_clips_of_equal_counts():
    video, audio = np.array([2, 2, 2, 3, 1]), np.array([2, 2, 2, 2, 7])
    chosen = partners(video, audio)
    assert set(chosen[0]) == {1, 2}
    assert set(chosen[3]) == {0, 1, 2}  # nobody has 3 and 2: those with 2 sounds
    assert 4 not in chosen[4]
    assert len(chosen[4]) == 4


def test_weighted_median_is_numpys_with_whole_weights():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=9), rng.integers(0, 4, (20, 9)).astype(float)
    expected = [np.median(np.repeat(values, row.astype(int))) for row in weights]
    np.testing.assert_allclose(weighted_median(values, weights), expected)


def test_intervals_cover_at_their_rate():
    """Of 95 % intervals for the mean of 100 clips, about 95 % hold the truth."""
    rng = np.random.default_rng(0)
    found = [mean_score(rng.exponential(size=100)) for _ in range(120)]
    covered = np.mean([score.low <= 1 <= score.high for score in found])
    assert 0.88 <= covered <= 1


def test_intervals_are_the_same_every_time():
    values = np.random.default_rng(3).normal(size=50)
    assert mean_score(values) == mean_score(values)
    assert over_clips(lambda weights: weights @ values / weights.sum(1), 50).value == pytest.approx(values.mean())


def test_errors_come_back_from_what_is_kept_per_clip():
    rng = np.random.default_rng(5)
    video, audio = ([tuple(np.sort(rng.uniform(0, 2, rng.integers(0, 5)))) for _ in range(20)] for _ in range(2))
    metric = scored(video, audio, index=rng.permutation(20).tolist())
    again = Errors.kept({name: values.tolist() for name, values in metric.per_clip().items()})
    assert again.score() == pytest.approx(metric.compute()["sync_error_ms"])


def test_a_share_of_nothing_is_not_defined_and_n_are_the_clips_that_count():
    none, some = ratio_score(np.zeros(3), np.zeros(3)), ratio_score(np.array([1.0, 0, 0]), np.array([2.0, 0, 1]))
    assert np.isnan(none[:3]).all()
    assert none.n == 0
    assert none.to_json() == {"value": None, "low": None, "high": None, "n": 0}
    assert (some.value, some.n) == (pytest.approx(1 / 3), 2)
    assert ratio_score(np.zeros(3), np.zeros(3), empty=0.0).value == 0


def test_beyond_chance_by_hand():
    share, chance = np.array([1.0, 0.5, 0.75, 0.2, 1.0, 0.0]), np.array([0.5, 0.5, 0.5, 0.6, 1.0, 1 - 1e-12])
    assert beyond_chance(share, chance) == pytest.approx([1, 0, 0.5, -1, 0, 0])
