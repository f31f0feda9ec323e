"""Metric ``binding``: does the object that flashes sound with its own timbre?

Definition as in the project's evaluation protocol: over the pairs of flashes and sounds matched in time, accuracy is the
share whose timbre is the one that the clip's map gives to the object, and kappa = (accuracy - 1/N) / (1 - 1/N) for N objects.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nava_lab.evaluation.base import WorldMetric, padded_kinds
from nava_lab.evaluation.score import NOTHING, Score, over_clips, ratio_score
from nava_lab.evaluation.sync import pairs
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events


def kappa(right: np.ndarray, of: np.ndarray, chance: np.ndarray, answered: np.ndarray | None = None) -> Score:
    """How many are ``right`` beyond chance, as a share of how many can be: (right - chance answered) / (of (1 - chance)).

    Sums over clips. Where everything is answered, it is (accuracy - chance) / (1 - chance). What is not ``answered`` is wrong,
    and chance gets it wrong too: an answer left out costs what an answer at random does not, and all left out are 0.
    0 where there is nothing to gain: one answer is all there is, or nothing was asked.
    """
    lucky = chance * (of if answered is None else answered)

    def statistic(weights: np.ndarray) -> np.ndarray:
        counted, left = weights @ of, weights @ (of * (1 - chance))
        return np.divide(weights @ (right - lucky), left, out=np.zeros(len(weights)), where=left > NOTHING * counted)

    return over_clips(statistic, len(right))._replace(n=int(np.count_nonzero(of)))


@metrics.register("binding")
class Binding(WorldMetric):
    """Which object sounds.

    Scores: ``binding_kappa`` (1 perfect, 0 chance; 0 too where no flash meets a sound) and ``binding_accuracy`` (not defined
    there).
    """

    needs = "samples"
    higher_is_better_by_score = {"binding_kappa": True, "binding_accuracy": True}
    exact = {"binding_kappa": (1.0, 0.0)}

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("pairs", "right", "objects")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        timbre_of = batch.extra["timbre_of"]
        (video, objects), (audio, timbres) = (
            (part.cpu().numpy() for part in padded_kinds(events[name])) for name in ("video", "audio")
        )
        counted = np.zeros((len(video), 2))
        for row, map_ in enumerate(timbre_of.cpu().numpy()):
            seen, heard = ~np.isnan(video[row]), ~np.isnan(audio[row])
            flashes, sounds = pairs(video[row][seen], audio[row][heard])
            right = map_[objects[row][seen][flashes]] == timbres[row][heard][sounds]
            counted[row] = len(flashes), right.sum()
        many, good = batch.index.new_tensor(counted).double().unbind(-1)
        self.update(index=batch.index, pairs=many, right=good, objects=many * 0 + timbre_of.shape[1])

    def compute(self) -> dict[str, Score]:
        rows = self.rows()
        return {
            "binding_kappa": kappa(rows["right"], rows["pairs"], 1 / rows["objects"]),
            "binding_accuracy": ratio_score(rows["right"], rows["pairs"]),
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        rows = self.rows()
        return {"index": rows["index"], "pairs": rows["pairs"], "right": rows["right"]}
