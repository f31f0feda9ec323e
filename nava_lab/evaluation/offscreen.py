"""Metric ``offscreen``: is the seen both seen and heard, the unseen heard only, and the rest silent?

Flashes of the captioned object and sounds are matched in time as in ``sync``. A flash without a partner is silent, a sound
without one is off screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nava_lab.evaluation.base import WorldMetric, padded, truth, unpadded
from nava_lab.evaluation.score import Score, beyond_chance, mean_score, over_clips, ratio_score
from nava_lab.evaluation.sync import TOLERANCES, hits, match, pairs, partners
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events
from nava_lab.worlds.staged import only


@metrics.register("offscreen")
class Offscreen(WorldMetric):
    """Invented and suppressed events.

    Scores: ``onscreen_auc`` (share of visible events with a sound within each tolerance of ``sync``, corrected for chance and
    averaged: 1 perfect, 0 chance), ``silent_share`` (share of visible events without sound), ``recall_onscreen`` and
    ``recall_offscreen`` (of the seen, and of the unseen, events that the text asks for, the share that is there: visible with
    sound, and sound alone), ``recall_onscreen_shuffled`` and ``recall_offscreen_shuffled`` (the same with another clip's sound:
    what the recalls must be read against, for any sound that meets no flash is one unseen, and that of ``recall_offscreen`` is
    full wherever there are sounds enough), ``invented_share`` (share of sounds that are unseen beyond what the text asks for),
    ``distractor_share`` (share of the other object's flashes that have a sound which no visible event explains),
    ``count_error_video`` and ``count_error_audio`` (mean over clips of how many flashes, the silent ones included, or sounds
    are there too many or too few for what the text asks). A share of nothing is not defined.
    """

    needs = "samples"
    shown = (
        *("onscreen_auc", "recall_onscreen", "recall_onscreen_shuffled", "recall_offscreen", "recall_offscreen_shuffled"),
        *("silent_share", "invented_share"),
    )
    higher_is_better_by_score = {
        **{"onscreen_auc": True, "silent_share": False, "recall_onscreen": True, "recall_offscreen": True},
        **{"invented_share": False, "distractor_share": False, "count_error_video": False, "count_error_audio": False},
    }
    exact = {"onscreen_auc": (1.0, 0.0)}

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("seen", "others", "heard", "on", "off", "quiet")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        mine = events["video"].kind == batch.extra["kind"].unsqueeze(-1)
        true_seen = truth(batch, "video")
        on = (true_seen.real & (true_seen.kind == batch.extra["kind"].unsqueeze(-1))).sum(1)
        quiet = true_seen.real.sum(1) - on
        self.update(
            index=batch.index,
            seen=padded(only(events["video"], mine)),
            others=padded(only(events["video"], ~mine)),
            heard=padded(events["audio"]),
            on=on.double(),
            off=batch.extra["off"].double(),
            quiet=quiet.double(),
        )

    def _counted(self) -> dict[str, Any]:
        rows = self.rows()
        seen, others, heard = (unpadded(rows[name]) for name in ("seen", "others", "heard"))
        lags = [match(v, a) for v, a in zip(seen, heard, strict=True)]
        alone = [np.delete(a, pairs(v, a)[1]) for v, a in zip(seen, heard, strict=True)]
        matched, unseen = _numbers(lags), _numbers(alone)
        return {
            "index": rows["index"],
            "seen": _numbers(seen),
            "heard": _numbers(heard),
            "matched": matched,
            "hits": np.stack([hits(lag) for lag in lags]),
            "unseen": unseen,
            "distracted": _numbers([match(o, a) for o, a in zip(others, alone, strict=True)]),
            "others": _numbers(others),
            **{name: rows[name] for name in ("on", "off", "quiet")},
            "found_on": np.minimum(matched, rows["on"]),
            "found_off": np.minimum(unseen, rows["off"]),
            **_by_chance(seen, heard, rows["on"], rows["off"]),
        }

    def compute(self) -> dict[str, Score]:
        if len(self.rows()["index"]) < 2:
            raise ValueError("offscreen needs at least two clips to know its chance level")
        c = self._counted()

        def auc(weights: np.ndarray) -> np.ndarray:
            seen = np.maximum(weights @ c["seen"], 1e-12)[:, None]
            return beyond_chance((weights @ c["hits"]) / seen, (weights @ c["chance"]) / seen).mean(1)

        return {
            "onscreen_auc": over_clips(auc, len(c["seen"])),
            "recall_onscreen": ratio_score(c["found_on"], c["on"]),
            "recall_onscreen_shuffled": ratio_score(c["chance_on"], c["on"]),
            "recall_offscreen": ratio_score(c["found_off"], c["off"]),
            "recall_offscreen_shuffled": ratio_score(c["chance_off"], c["off"]),
            "count_error_video": mean_score(np.abs(c["seen"] + c["others"] - c["on"] - c["quiet"])),
            "count_error_audio": mean_score(np.abs(c["heard"] - c["on"] - c["off"])),
            "silent_share": ratio_score(c["seen"] - c["matched"], c["seen"]),
            "invented_share": ratio_score(np.maximum(c["unseen"] - c["off"], 0), c["heard"]),
            "distractor_share": ratio_score(c["distracted"], c["others"]),
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        c = self._counted()
        each = {f"{kind}@{tau * 1000:.0f}ms": c[kind][:, i] for kind in ("hits", "chance") for i, tau in enumerate(TOLERANCES)}
        return {name: values for name, values in c.items() if values.ndim == 1} | each


def _numbers(parts: Sequence[np.ndarray]) -> np.ndarray:
    """How many each clip has."""
    return np.array([len(part) for part in parts], dtype=float)


def _by_chance(seen: Sequence[np.ndarray], heard: Sequence[np.ndarray], on: np.ndarray, off: np.ndarray) -> dict[str, np.ndarray]:
    """Each clip's flashes with other clips' sounds: hits within each tolerance, and what of the asked-for events is found."""
    found = []
    for clip, some in enumerate(partners(_numbers(seen).astype(int), _numbers(heard).astype(int))):
        lags = [match(seen[clip], heard[other]) for other in some]
        matched, sounds = _numbers(lags), _numbers([heard[other] for other in some])
        asked = np.minimum(matched, on[clip]).mean(), np.minimum(sounds - matched, off[clip]).mean()
        found.append((np.mean([hits(lag) for lag in lags], 0), *asked))
    each = zip(*found, strict=True)
    return dict(zip(("chance", "chance_on", "chance_off"), map(np.array, each), strict=True))
