"""Metric ``legacy``: scores that published work reports, for comparison with it alone. They decide nothing here.

AV-Align (Yariv et al., TempoTokens, arXiv 2309.16429, as its released ``av_align.py`` computes it): a sound's onset counts where
some flash lies less than a frame of the video from it; intersection over union, the mean over clips. Several sounds may count
by one flash, so a clip's score can exceed 1 (three sounds about one flash: 3 / (3 + 1 - 3)), and clips that have nothing to do
with each other score the more the more events they have. Onsets are those of the world's decoder here, where the release takes
peaks of optical flow and of librosa's onset strength.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nava_lab.evaluation.base import WorldMetric, padded, unpadded
from nava_lab.evaluation.score import Score, mean_score
from nava_lab.evaluation.sync import partners
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events


def av_align(video: np.ndarray, audio: np.ndarray, hz: float) -> float:
    """AV-Align of one clip's onsets in seconds at ``hz`` frames per second; 0 where neither modality has any."""
    near = np.abs(audio[:, None] - video[None, :]) < 1 / hz
    both = int(near.any(1).sum())
    either = len(audio) + len(video) - both
    return both / either if either else 0.0


@metrics.register("legacy")
class Legacy(WorldMetric):
    """Published scores, kept to be compared with papers.

    Scores: ``legacy_av_align`` (mean over clips of AV-Align) and ``legacy_av_align_shuffled`` (the same of re-paired clips,
    as ``sync`` re-pairs them: what chance scores).
    """

    needs = "samples"

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("video", "audio")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        self.update(index=batch.index, video=padded(events["video"]), audio=padded(events["audio"]))

    def _aligned(self) -> dict[str, np.ndarray]:
        rows, hz = self.rows(), float(self.world.video_hz)  # type: ignore[attr-defined]
        video, audio = unpadded(rows["video"]), unpadded(rows["audio"])
        counts = (np.array([len(onsets) for onsets in part]) for part in (video, audio))
        others = partners(*counts) if len(video) > 1 else [np.zeros(1, dtype=int)] * len(video)
        return {
            "index": rows["index"],
            "av_align": np.array([av_align(v, a, hz) for v, a in zip(video, audio, strict=True)]),
            "av_align_shuffled": np.array(
                [np.mean([av_align(video[clip], audio[other], hz) for other in some]) for clip, some in enumerate(others)]
            ),
        }

    def compute(self) -> dict[str, Score]:
        found = self._aligned()
        return {f"legacy_{name}": mean_score(found[name]) for name in ("av_align", "av_align_shuffled")}

    def per_clip(self) -> dict[str, np.ndarray]:
        return self._aligned()
