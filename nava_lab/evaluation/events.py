"""Metric ``events``: are there as many events as there should be, and of the right kind? Collapse shows here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from nava_lab.evaluation.base import WorldMetric
from nava_lab.evaluation.score import Score, mean_score, over_clips, ratio_score
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events

KINDS = 8


@metrics.register("events")
class EventStatistics(WorldMetric):
    """Counts and kinds of generated events against the world's own.

    Scores: ``count_error`` (mean over clips of |sound events - picture events|), ``event_rate_video`` and
    ``event_rate_audio`` (generated events over true events; 1 is right), ``class_accuracy`` (share of generated events of
    the captioned class), ``class_drift`` (total variation between generated and true class frequencies).
    """

    needs = "samples"
    shown = ("event_rate_video", "event_rate_audio", "count_error", "class_accuracy")
    higher_is_better_by_score = {"count_error": False, "class_accuracy": True, "class_drift": False}

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("video", "audio", "truth", "kind")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        def by_kind(found: Events) -> torch.Tensor:
            one_hot = torch.nn.functional.one_hot(found.kind, KINDS) * found.real.unsqueeze(-1)
            return one_hot.sum(1).double()

        self.update(
            index=batch.index,
            video=by_kind(events["video"]),
            audio=by_kind(events["audio"]),
            truth=batch.extra["real"].sum(1).double(),
            kind=batch.extra["kind"],
        )

    def compute(self) -> dict[str, Score]:
        rows = self.rows()
        video, audio, truth, kind = (rows[name] for name in ("video", "audio", "truth", "kind"))
        wanted = np.eye(KINDS)[kind]
        both = video + audio

        def drift(weights: np.ndarray) -> np.ndarray:
            made, real = weights @ both, weights @ (wanted * truth[:, None])
            made = made / np.maximum(made.sum(1, keepdims=True), 1e-12)
            real = real / np.maximum(real.sum(1, keepdims=True), 1e-12)
            return 0.5 * np.abs(made - real).sum(1)

        return {
            "count_error": mean_score(np.abs(video.sum(1) - audio.sum(1))),
            "event_rate_video": ratio_score(video.sum(1), truth),
            "event_rate_audio": ratio_score(audio.sum(1), truth),
            "class_accuracy": ratio_score((both * wanted).sum(1), both.sum(1)),
            "class_drift": over_clips(drift, len(truth)),
        }
