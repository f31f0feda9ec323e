"""Metric ``offscreen``: is the seen both seen and heard, the unseen heard only, and the rest silent?

Flashes of the captioned object and sounds are matched in time as in ``sync``. A flash without a partner is silent, a sound
without one is off screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nava_lab.evaluation.base import WorldMetric, padded, truth, unpadded
from nava_lab.evaluation.score import Score, over_clips, ratio_score
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
    sound, and sound alone), ``invented_share`` (share of sounds that are unseen beyond what the text asks for),
    ``distractor_share`` (share of the other object's flashes that have a sound which no visible event explains).
    """

    needs = "samples"
    higher_is_better_by_score = {
        **{"onscreen_auc": True, "silent_share": False, "recall_onscreen": True, "recall_offscreen": True},
        **{"invented_share": False, "distractor_share": False},
    }
    exact = {"onscreen_auc": (1.0, 0.0)}

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("seen", "others", "heard", "on", "off")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        mine = events["video"].kind == batch.extra["kind"].unsqueeze(-1)
        true_seen = truth(batch, "video")
        on = (true_seen.real & (true_seen.kind == batch.extra["kind"].unsqueeze(-1))).sum(1)
        self.update(
            index=batch.index,
            seen=padded(only(events["video"], mine)),
            others=padded(only(events["video"], ~mine)),
            heard=padded(events["audio"]),
            on=on.double(),
            off=batch.extra["off"].double(),
        )

    def _counted(self) -> dict[str, Any]:
        rows = self.rows()
        seen, others, heard = (unpadded(rows[name]) for name in ("seen", "others", "heard"))
        lags = [match(v, a) for v, a in zip(seen, heard, strict=True)]
        alone = [np.delete(a, pairs(v, a)[1]) for v, a in zip(seen, heard, strict=True)]
        chosen = partners(np.array([len(v) for v in seen]), np.array([len(a) for a in heard]))
        chance = [np.mean([hits(match(seen[clip], heard[other])) for other in some], 0) for clip, some in enumerate(chosen)]
        return {
            "index": rows["index"],
            "seen": np.array([len(v) for v in seen], dtype=float),
            "heard": np.array([len(a) for a in heard], dtype=float),
            "matched": np.array([len(lag) for lag in lags], dtype=float),
            "hits": np.stack([hits(lag) for lag in lags]),
            "chance": np.stack(chance),
            "unseen": np.array([len(a) for a in alone], dtype=float),
            "distracted": np.array([len(match(o, a)) for o, a in zip(others, alone, strict=True)], dtype=float),
            "others": np.array([len(o) for o in others], dtype=float),
            "on": rows["on"],
            "off": rows["off"],
        }

    def compute(self) -> dict[str, Score]:
        if len(self.rows()["index"]) < 2:
            raise ValueError("offscreen needs at least two clips to know its chance level")
        c = self._counted()

        def auc(weights: np.ndarray) -> np.ndarray:
            seen = np.maximum(weights @ c["seen"], 1e-12)[:, None]
            share, shuffled = (weights @ c["hits"]) / seen, (weights @ c["chance"]) / seen
            return ((share - shuffled) / np.maximum(1 - shuffled, 1e-9)).mean(1)

        return {
            "onscreen_auc": over_clips(auc, len(c["seen"])),
            "recall_onscreen": ratio_score(np.minimum(c["matched"], c["on"]), c["on"]),
            "recall_offscreen": ratio_score(np.minimum(c["unseen"], c["off"]), c["off"]),
            "silent_share": ratio_score(c["seen"] - c["matched"], c["seen"]),
            "invented_share": ratio_score(np.maximum(c["unseen"] - c["off"], 0), c["heard"]),
            "distractor_share": ratio_score(c["distracted"], c["others"]),
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        c = self._counted()
        plain = {name: c[name] for name in ("index", "seen", "heard", "matched", "unseen", "distracted", "on", "off")}
        each = {f"{kind}@{tau * 1000:.0f}ms": c[kind][:, i] for kind in ("hits", "chance") for i, tau in enumerate(TOLERANCES)}
        return plain | each
