"""Metric ``sync``: how well the onsets of the two modalities agree, and how much of that is more than chance.

Definitions as in the project's evaluation protocol. V and A are the decoded onsets of a clip's picture and sound; M pairs
them one to one at least cost, cost ``min(|a - v|, 250 ms)``; a pair at the gate is no pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from nava_lab.evaluation.base import WorldMetric, padded, unpadded
from nava_lab.evaluation.score import Score, beyond_chance, over_clips, ratio_score, weighted_median
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events

TOLERANCES = (0.020, 0.040, 0.080, 0.160)
GATE = 0.250
ITU = (-0.125, 0.045)  # detectability of v - a in ITU-R BT.1359-1; positive: sound early
PARTNERS = 32  # re-pairings per clip that the chance level averages over
FEW = 8  # of them whose errors are kept one by one


def pairs(video: np.ndarray, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which flash is matched with which sound."""
    if not len(video) or not len(audio):
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    cost = np.minimum(np.abs(audio[None, :] - video[:, None]), GATE)
    rows, columns = linear_sum_assignment(cost)
    near = cost[rows, columns] < GATE
    return rows[near], columns[near]


def match(video: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Signed lags ``a - v`` in seconds of the matched pairs."""
    rows, columns = pairs(video, audio)
    return audio[columns] - video[rows]


def hits(lags: np.ndarray) -> np.ndarray:
    """Matched pairs within each tolerance."""
    return (np.abs(lags)[:, None] <= np.array(TOLERANCES) + 1e-12).sum(0).astype(float)


def partners(video_counts: np.ndarray, audio_counts: np.ndarray) -> list[np.ndarray]:
    """For each clip, the other clips whose sound it is re-paired with: equal counts in both modalities if there are any.

    Otherwise clips whose sound alone has the same count, and otherwise any other clip. At most PARTNERS, evenly spread.
    """
    everyone = np.arange(len(audio_counts))
    chosen = []
    for clip in everyone:
        same_audio = audio_counts == audio_counts[clip]
        for pool in (same_audio & (video_counts == video_counts[clip]), same_audio, np.ones_like(same_audio)):
            others = everyone[pool & (everyone != clip)]
            if len(others):
                break
        start = int(np.searchsorted(others, clip))  # begin after the clip itself, so that no partner is everybody's
        order = np.roll(others, -start)
        chosen.append(order[np.linspace(0, len(order) - 1, min(PARTNERS, len(order))).round().astype(int)])
    return chosen


@dataclass(frozen=True)
class Errors:
    """Timing errors in milliseconds, event by event, with the clip each belongs to; an unmatched event counts as the gate."""

    values: np.ndarray
    owner: np.ndarray
    clips: int

    @staticmethod
    def of(lags: Sequence[np.ndarray], alone: np.ndarray) -> Errors:
        """From each clip's matched lags in seconds and its number of unmatched events."""
        n = len(lags)
        matched = np.abs(np.concatenate([np.zeros(0), *lags])) * 1000
        owner = np.concatenate((np.repeat(np.arange(n), [len(lag) for lag in lags]), np.repeat(np.arange(n), alone)))
        return Errors(np.concatenate((matched, np.full(alone.sum(), GATE * 1000))), owner.astype(int), n)

    @staticmethod
    def kept(clips: Mapping[str, Sequence[float]]) -> Errors:
        """From the per-clip values of the metric ``sync``, by their names there."""
        index, owners, lags = (np.asarray(clips[name]) for name in ("index", "lag_clip", "lag_ms"))
        counts = np.stack([clips["video_events"], clips["audio_events"]], -1).astype(float)
        own = [lags[owners == clip] / 1000 for clip in index]
        return Errors.of(own, unmatched(counts, own))

    def median(self, weights: np.ndarray) -> np.ndarray:
        """Medians under weights of clips ``r n``."""
        return weighted_median(self.values, weights[:, self.owner])

    def score(self) -> Score:
        return over_clips(self.median, self.clips)


def unmatched(counts: np.ndarray, lags: Sequence[np.ndarray]) -> np.ndarray:
    """Events of each clip, from its counts ``n 2``, that no pair holds."""
    return np.array([count.sum() - 2 * len(lag) for count, lag in zip(counts, lags, strict=True)]).astype(int)


@metrics.register("sync")
class Sync(WorldMetric):
    """Audio-video synchrony of generated clips.

    Scores: ``sync_auc`` (mean over the tolerances of the chance-corrected F1: 1 perfect, 0 chance; a tolerance at which
    chance is perfect adds 0), ``f1@20ms`` and so on, ``cf1@20ms`` and so on, ``f1_shuffled@80ms``, ``f1_itu``,
    ``sync_error_ms`` (median, unmatched events count as the gate), ``sync_error_shuffled_ms`` (the same of re-paired clips),
    ``bias_ms`` (median a - v of matched pairs), ``jitter_ms`` (1.4826 times their median absolute deviation). Of clips
    without any event all F1 are 0, the worst there is, and what is in milliseconds is not defined.
    """

    needs = "samples"
    exact = {"sync_auc": (1.0, 0.0)}
    shown = ("sync_auc", "f1@80ms", "f1_shuffled@80ms", "sync_error_ms", "bias_ms", "jitter_ms")
    higher_is_better_by_score = {
        "sync_auc": True,
        "f1": True,
        "cf1": True,
        "f1_itu": True,
        "sync_error_ms": False,
        "jitter_ms": False,
    }

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("video", "audio")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        self.update(index=batch.index, video=padded(events["video"]), audio=padded(events["audio"]))

    def _counted(self) -> dict[str, Any]:
        rows = self.rows()
        video, audio = unpadded(rows["video"]), unpadded(rows["audio"])
        lags = [match(v, a) for v, a in zip(video, audio, strict=True)]
        counts = np.array([[len(v), len(a)] for v, a in zip(video, audio, strict=True)], dtype=float).reshape(-1, 2)
        chance = np.zeros((len(video), len(TOLERANCES)))
        events = np.zeros(len(video))
        shuffled: list[tuple[np.ndarray, int]] = []
        if len(video) > 1:
            for clip, others in enumerate(partners(counts[:, 0], counts[:, 1])):
                found = [match(video[clip], audio[other]) for other in others]
                chance[clip] = np.mean([hits(lag) for lag in found], 0)
                events[clip] = counts[clip, 0] + np.mean(counts[others, 1])
                few = range(min(FEW, len(others)))
                alone = sum(counts[clip, 0] + counts[others[i], 1] - 2 * len(found[i]) for i in few)
                shuffled.append((np.concatenate([np.zeros(0), *(found[i] for i in few)]), int(alone)))
        return {
            "index": rows["index"],
            "lags": lags,
            "counts": counts,
            "hits": np.array([hits(lag) for lag in lags]).reshape(-1, len(TOLERANCES)),
            "chance": chance,
            "chance_events": events,
            "shuffled": ([lag for lag, _ in shuffled], np.array([alone for _, alone in shuffled], dtype=int)),
        }

    def compute(self) -> dict[str, Score]:
        counted = self._counted()
        lags, counts = counted["lags"], np.asarray(counted["counts"])
        found, chance = np.asarray(counted["hits"]), np.asarray(counted["chance"])
        totals, chance_totals, n = counts.sum(1), np.asarray(counted["chance_events"]), len(counts)
        if n < 2:
            raise ValueError(f"sync needs at least two clips to know its chance level, not {n}")

        def share(weights: np.ndarray, hit: np.ndarray, events: np.ndarray) -> np.ndarray:
            return 2 * (weights @ hit) / np.maximum(weights @ events, 1e-12)[:, None]

        def corrected(weights: np.ndarray) -> np.ndarray:
            return beyond_chance(share(weights, found, totals), share(weights, chance, chance_totals))

        scores = {"sync_auc": over_clips(lambda weights: corrected(weights).mean(1), n)}
        for column, tolerance in enumerate(TOLERANCES):
            label = f"{tolerance * 1000:.0f}ms"
            scores[f"f1@{label}"] = ratio_score(2 * found[:, column], totals, empty=0.0)
            scores[f"f1_shuffled@{label}"] = ratio_score(2 * chance[:, column], chance_totals, empty=0.0)
            scores[f"cf1@{label}"] = over_clips(lambda weights, column=column: corrected(weights)[:, column], n)
        itu = np.array([((-lag >= ITU[0] - 1e-12) & (-lag <= ITU[1] + 1e-12)).sum() for lag in lags], dtype=float)
        shuffled = Errors.of(*counted["shuffled"])  # type: ignore[misc]
        scores |= {"f1_itu": ratio_score(2 * itu, totals, empty=0.0), "sync_error_shuffled_ms": shuffled.score()}
        return scores | _lag_scores(lags, counts)  # type: ignore[arg-type]

    def per_clip(self) -> dict[str, np.ndarray]:
        counted = self._counted()
        columns = {f"hits@{tau * 1000:.0f}ms": np.asarray(counted["hits"])[:, i] for i, tau in enumerate(TOLERANCES)}
        chance = {f"chance@{tau * 1000:.0f}ms": np.asarray(counted["chance"])[:, i] for i, tau in enumerate(TOLERANCES)}
        counts = np.asarray(counted["counts"])
        lags = [np.asarray(part) for part in counted["lags"]]
        return {
            "index": np.asarray(counted["index"]),
            "lag_ms": np.concatenate([*lags, np.zeros(0)]) * 1000,
            "lag_clip": np.repeat(np.asarray(counted["index"]), [len(part) for part in lags]),
            "video_events": counts[:, 0],
            "audio_events": counts[:, 1],
            **columns,
            **chance,
        }


def _lag_scores(lags: list[np.ndarray], counts: np.ndarray) -> dict[str, Score]:
    """Error, bias and jitter in milliseconds, as weighted medians over events."""
    n = len(lags)
    matched = np.concatenate([*lags, np.zeros(0)]) * 1000
    owner = np.repeat(np.arange(n), [len(lag) for lag in lags])

    def jitter(weights: np.ndarray) -> np.ndarray:
        centres = weighted_median(matched, weights[:, owner])
        return np.array(
            [
                1.4826 * weighted_median(np.abs(matched - centre), row[None, owner])[0]
                for centre, row in zip(centres, weights, strict=True)
            ]
        )

    return {
        "sync_error_ms": Errors.of(lags, unmatched(counts, lags)).score(),
        "bias_ms": over_clips(lambda weights: weighted_median(matched, weights[:, owner]), n),
        "jitter_ms": over_clips(jitter, n),
    }
