"""Published scores against hand-worked cases, and why they decide nothing."""

import numpy as np
import pytest
import torch

from nava_lab.evaluation.legacy import av_align
from nava_lab.evaluation.protocol import feed
from nava_lab.registry import metrics, worlds


def test_av_align_worked_by_hand():
    # At 12.5 Hz a frame is 80 ms. The sounds at .52 and .55 are near the flash at .5, that at 1.5 is near none: 2 / (3 + 2 - 2).
    assert av_align(np.array([0.5, 1.0]), np.array([0.52, 0.55, 1.5]), 12.5) == pytest.approx(2 / 3)
    # A frame more exactly is too far, a frame less is near; at 25 Hz only the first is.
    video, audio = np.array([0.0, 1.0]), np.array([0.08, 1.079])
    assert av_align(video, audio, 12.5) == pytest.approx(1 / 3)
    assert av_align(video, audio, 25.0) == 0
    assert av_align(video, video, 12.5) == 1
    # Late and early count alike.
    assert av_align(video, video + 0.05, 12.5) == av_align(video, video - 0.05, 12.5) == 1
    assert (
        av_align(np.zeros(0), np.zeros(0), 12.5) == av_align(video, np.zeros(0), 12.5) == av_align(np.zeros(0), video, 12.5) == 0
    )


def test_av_align_can_exceed_one():
    """Three sounds by one flash count thrice and their flash not once: a reason why it is no measure of synchrony."""
    assert av_align(np.array([0.5]), np.array([0.45, 0.5, 0.55]), 12.5) == 3


def scored(clips=96, **knobs):
    world = worlds.get("pulse")(**knobs)
    metric = metrics.get("legacy")(world)
    batch = world.batch("test", torch.arange(clips))
    feed([metric], world, batch, {name: stream.tokens for name, stream in batch.streams.items()})
    return metric, {name: score.value for name, score in metric.compute().items()}


def test_chance_rises_with_the_density_of_events():
    found = [scored(density=density, video_hz=25.0)[1] for density in (0.75, 1.5, 3.0)]
    assert [scores["legacy_av_align"] for scores in found] == [1, 1, 1]
    by_chance = [scores["legacy_av_align_shuffled"] for scores in found]
    assert by_chance == sorted(by_chance)
    assert by_chance[-1] > 3 * by_chance[0]


def test_the_mean_over_clips_is_of_what_each_clip_keeps_and_no_score_is_better_high_or_low():
    metric, scores = scored(8)
    clips = metric.per_clip()
    assert clips["index"].tolist() == list(range(8))
    for name in ("av_align", "av_align_shuffled"):
        assert scores[f"legacy_{name}"] == pytest.approx(clips[name].mean())
        assert metric.direction(f"legacy_{name}") is None
    assert scored(1)[1]["legacy_av_align_shuffled"] == scored(1)[1]["legacy_av_align"]
