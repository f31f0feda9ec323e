"""Metric ``events``: are there as many events as there should be, and of the right kind? Collapse shows here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from nava_lab.evaluation.base import WorldMetric, truth
from nava_lab.evaluation.score import Score, over_clips, ratio_score
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events

KINDS = 8


def by_kind(events: Events) -> Tensor:
    """How many events of each kind, ``b KINDS``."""
    one_hot = torch.nn.functional.one_hot(events.kind, KINDS) * events.real.unsqueeze(-1)
    return one_hot.sum(1).double()


@metrics.register("events")
class EventStatistics(WorldMetric):
    """Counts and kinds of generated events against the world's own.

    Scores: ``count_error`` (mean of |sound events - picture events| over the clips that have any event and whose true clip has
    as many sounds as flashes: where a text asks for silent flashes, say, its clips should not), ``event_rate_video`` and
    ``event_rate_audio`` (generated events over true events; 1 is right), ``class_accuracy`` (share of generated events of a
    kind that the caption names for their modality; where it names none, that its true clip has), ``class_drift`` (total
    variation between generated and true class frequencies; 1 where nothing was generated).
    """

    needs = "samples"
    shown = ("event_rate_video", "event_rate_audio", "count_error", "class_accuracy")
    higher_is_better_by_score = {"count_error": False, "class_accuracy": True, "class_drift": False}

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("video", "audio", "true_video", "true_audio", "told_video", "told_audio")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        row = {name: by_kind(events[name]) for name in ("video", "audio")}
        for name in ("video", "audio"):
            row[f"true_{name}"] = by_kind(truth(batch, name))
            told = batch.extra.get(f"{name}_told")
            own = row[f"true_{name}"] > 0
            row[f"told_{name}"] = own if told is None else torch.nn.functional.pad(told, (0, KINDS - told.shape[1]))
        self.update(index=batch.index, **row)

    def compute(self) -> dict[str, Score]:
        rows = self.rows()
        video, audio = rows["video"], rows["audio"]
        made_kinds, true_kinds = video + audio, rows["true_video"] + rows["true_audio"]
        right = (video * rows["told_video"]).sum(1) + (audio * rows["told_audio"]).sum(1)

        def drift(weights: np.ndarray) -> np.ndarray:
            made, real = weights @ made_kinds, weights @ true_kinds
            some = made.sum(1) > 0
            made = made / np.maximum(made.sum(1, keepdims=True), 1e-12)
            real = real / np.maximum(real.sum(1, keepdims=True), 1e-12)
            return np.where(some, 0.5 * np.abs(made - real).sum(1), 1.0)

        alike = (rows["true_video"].sum(1) == rows["true_audio"].sum(1)) & (made_kinds.sum(1) > 0)

        return {
            "event_rate_video": ratio_score(video.sum(1), rows["true_video"].sum(1)),
            "event_rate_audio": ratio_score(audio.sum(1), rows["true_audio"].sum(1)),
            "count_error": ratio_score(np.abs(video.sum(1) - audio.sum(1)) * alike, alike.astype(float)),
            "class_accuracy": ratio_score(right, made_kinds.sum(1)),
            "class_drift": over_clips(drift, len(video)),
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        rows = self.rows()
        return {"index": rows["index"], "made_video": rows["video"].sum(1), "made_audio": rows["audio"].sum(1)}
