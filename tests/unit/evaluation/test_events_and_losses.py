"""The metrics of events and of denoising against hand-worked cases."""

import numpy as np
import pytest
import torch

from nava_lab.evaluation.score import over_clips, weighted_median
from nava_lab.registry import metrics, worlds
from nava_lab.streams import Batch, Stream
from nava_lab.worlds.base import Events

NO_TEXT = Stream(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 3))


def events(*kinds):
    """Clips given as rows of kinds; -1 marks no event."""
    kind = torch.tensor(kinds)
    real = kind >= 0
    seconds = torch.arange(kind.shape[1]).expand_as(kind).double()
    return Events(seconds, kind.clamp(min=0), real.double(), real)


def test_event_statistics_worked_by_hand():
    metric = metrics.get("events")(worlds.get("pulse")())
    true = events([2, 2], [3, -1])
    parts = {"seconds": true.seconds, "kind": true.kind, "amplitude": true.amplitude, "real": true.real}
    extra = {f"{name}_{key}": part for name in ("video", "audio") for key, part in parts.items()}
    made = {"video": events([2, 2, 1], [3, -1, -1]), "audio": events([2, -1, -1], [3, 3, -1])}
    metric.update_samples(Batch({}, NO_TEXT, torch.arange(2), extra), made)
    scores = {name: score.value for name, score in metric.compute().items()}
    assert scores["count_error"] == pytest.approx((2 + 1) / 2)
    assert scores["event_rate_video"] == pytest.approx(4 / 3)
    assert scores["event_rate_audio"] == pytest.approx(3 / 3)
    assert scores["class_accuracy"] == pytest.approx(6 / 7)
    # Made: kinds 1, 2, 3 as 1, 3, 3 of 7. True: kind 2 twice, kind 3 once.
    assert scores["class_drift"] == pytest.approx(0.5 * (1 / 7 + abs(3 / 7 - 2 / 3) + abs(3 / 7 - 1 / 3)))


PARTS = ("seconds", "kind", "amplitude", "real")


def test_nothing_generated_has_no_counts_that_agree_and_all_drift():
    metric, true, none = metrics.get("events")(worlds.get("pulse")()), events([2, 2], [3, -1]), events([-1], [-1])
    extra = {f"{name}_{part}": getattr(true, part) for name in ("video", "audio") for part in PARTS}
    metric.update_samples(Batch({}, NO_TEXT, torch.arange(2), extra), {"video": none, "audio": none})
    scores = metric.compute()
    assert {name for name, score in scores.items() if np.isnan(score.value)} == {"count_error", "class_accuracy"}
    assert scores["class_drift"][:3] == (1, 1, 1)
    assert scores["event_rate_video"].value == scores["event_rate_audio"].value == 0


def test_numbers_that_should_not_agree_are_not_compared():
    # Clip 0 truly has two flashes and one sound; clip 1 one and one, and three flashes and a sound were made.
    metric, video, audio = metrics.get("events")(worlds.get("offscreen")()), events([2, 2], [3, -1]), events([2], [3])
    extra = {f"{name}_{part}": getattr(own, part) for name, own in (("video", video), ("audio", audio)) for part in PARTS}
    made = {"video": events([2, -1, -1], [3, 3, 3]), "audio": events([2, 2], [3, -1])}
    metric.update_samples(Batch({}, NO_TEXT, torch.arange(2), extra), made)
    found = metric.compute()["count_error"]
    assert (found.value, found.n) == (2, 1)


def test_kinds_that_the_text_names_are_right_though_the_clip_has_them_not():
    metric = metrics.get("events")(worlds.get("bind")())
    true = events([0, 0])
    parts = {"seconds": true.seconds, "kind": true.kind, "amplitude": true.amplitude, "real": true.real}
    extra = {f"{name}_{key}": part for name in ("video", "audio") for key, part in parts.items()}
    told = {"video_told": torch.tensor([[True, True]]), "audio_told": torch.tensor([[True, False]])}
    made = {"video": events([1, 0]), "audio": events([1, 0])}
    metric.update_samples(Batch({}, NO_TEXT, torch.arange(1), extra | told), made)
    assert metric.compute()["class_accuracy"].value == pytest.approx(3 / 4)


def losses_of(metric, index, video, audio):
    level = torch.full((len(index),), 0.5)
    metric.update_losses(
        Batch({}, NO_TEXT, torch.tensor(index)),
        {"video": torch.tensor(video), "audio": torch.tensor(audio)},
        {"video": level, "audio": level},
    )


def test_loss_is_the_mean_over_clips_and_modalities_and_counts_a_clip_once():
    metric = metrics.get("loss")(worlds.get("gaussian")())
    losses_of(metric, [1, 0], [1.0, 2.0], [3.0, 4.0])
    losses_of(metric, [0], [2.0], [4.0])  # as a distributed sampler repeats it
    scores = metric.compute()
    assert {name: score.value for name, score in scores.items()} == pytest.approx(
        {"loss": 2.5, "loss_video": 1.5, "loss_audio": 3.5}
    )
    assert scores["loss"].n == 2
    assert metric.per_clip()["loss_video"].tolist() == [2.0, 1.0]


def test_a_clip_whose_modality_is_given_is_no_part_of_that_modality_s_loss():
    metric = metrics.get("loss")(worlds.get("gaussian")())
    errors = {"video": torch.tensor([4.0, 0.0, 2.0]), "audio": torch.tensor([0.0, 6.0, 8.0])}
    levels = {"video": torch.tensor([0.5, 0.0, 0.5]), "audio": torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 0.5]])}
    metric.update_losses(Batch({}, NO_TEXT, torch.arange(3)), errors, levels)
    scores = {name: score.value for name, score in metric.compute().items()}
    assert scores == pytest.approx({"loss": (4 + 6 + 5) / 3, "loss_video": 3, "loss_audio": 7})
    none = metrics.get("loss")(worlds.get("gaussian")())
    zeros = dict.fromkeys(errors, torch.zeros(3))
    none.update_losses(Batch({}, NO_TEXT, torch.arange(3)), zeros, zeros)
    assert all(np.isnan(score.value) and score.n == 0 for score in none.compute().values())


def test_use_is_nought_for_the_best_unimodal_model_and_one_for_the_best_of_all():
    world = worlds.get("gaussian")(rho=0.9)
    level = torch.tensor([0.3, 0.8])
    alone, best = (world.bayes_loss({"video": level, "audio": level}, joint=joint) for joint in (False, True))

    def use(share):
        metric = metrics.get("use")(world)
        model = {name: alone[name] + share * (best[name] - alone[name]) for name in alone}
        metric.update_losses(Batch({}, NO_TEXT, torch.arange(2)), model, {"video": level, "audio": level})
        kept = metric.per_clip()
        assert kept["index"].tolist() == [0, 1]
        assert (kept["alone"] - kept["model"]) / (kept["alone"] - kept["best"]) == pytest.approx(share, abs=1e-9)
        return metric.compute()["cross_modal_use"].value

    for share in (0.0, 0.4, 1.0):
        assert use(share) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("rho", [0.0, 1e-6])
def test_where_the_other_modality_tells_nothing_there_is_no_use_to_make_of_it(rho):
    world, level = worlds.get("gaussian")(rho=rho), torch.tensor([0.3, 0.8])
    metric, levels = metrics.get("use")(world), {"video": level, "audio": level}
    alone = world.bayes_loss(levels, joint=False)
    metric.update_losses(Batch({}, NO_TEXT, torch.arange(2)), {name: part * 1.1 for name, part in alone.items()}, levels)
    assert metric.compute()["cross_modal_use"][:3] == (0, 0, 0)


def test_an_interval_leaves_out_resamples_that_say_nothing():
    values = np.array([10.0, 30.0])
    owners = np.array([0, 1])
    score = over_clips(lambda weights: weighted_median(values, weights[:, owners]), 6)  # four clips without a match
    assert score.value == 20
    assert (score.low, score.high) == (10, 30)


@pytest.mark.parametrize("name", metrics.names())
def test_what_a_metric_wants_shown_has_a_meaning(name):
    """What leads a table is a score that the metric's docstring explains."""
    cls = metrics.get(name)
    assert all(score.split("@")[0] in cls.__doc__ for score in cls.shown)
    assert metrics.get("sync").direction("f1@80ms") is True
    assert metrics.get("sync").direction("bias_ms") is None
    assert metrics.get("loss").direction("loss_video") is False
