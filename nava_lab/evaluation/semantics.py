"""Metrics ``semantics`` and ``entanglement``: is what the text says there, and does saying more cost timing?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nava_lab.evaluation.base import WorldMetric, padded, unpadded
from nava_lab.evaluation.events import by_kind
from nava_lab.evaluation.score import Score, beyond_chance, mean_score, over_clips, ratio_score
from nava_lab.evaluation.sync import Errors, match, partners, unmatched
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events

PARTNERS = 64  # other clips whose captions the chance level averages over


def realised(made: Mapping[str, np.ndarray], told: Mapping[str, np.ndarray]) -> np.ndarray:
    """Share of a caption's attributes that a clip shows: colour and timbre of most events, and their number.

    The number counts half for each modality. Arguments broadcast: ``made`` has kinds per event count last.
    """
    video, audio = made["video"], made["audio"]

    def kind(counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        return (counts.argmax(-1) == wanted) & (counts.sum(-1) > 0)

    counted = ((video.sum(-1) == told["count"]) * 1.0 + (audio.sum(-1) == told["count"])) / 2
    return (kind(video, told["colour"]) * 1.0 + kind(audio, told["timbre"]) + counted) / 3


@metrics.register("semantics")
class Semantics(WorldMetric):
    """What the text sets: colour, timbre and number of events.

    Scores: ``semantics`` (mean share of attributes realised), ``semantics_kappa`` (the same beyond what another clip's
    caption gets: 1 perfect, 0 chance), ``semantics_seen`` and ``semantics_held_out`` (captions whose pair of colour and
    timbre training had, and had not), ``count_error_video`` and ``count_error_audio`` (mean over clips of how many flashes, or
    sounds, are there too many or too few for what the text asks).
    """

    needs = "samples"
    higher_is_better_by_score = {
        **{"semantics": True, "semantics_kappa": True},
        **{"count_error_video": False, "count_error_audio": False},
    }
    exact = {"semantics_kappa": (1.0, 0.0)}
    repaired = ("video", "audio")

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("video", "audio", "colour", "timbre", "count", "held_out")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        told = {name: batch.extra[name] for name in ("colour", "timbre", "count", "held_out")}
        self.update(index=batch.index, video=by_kind(events["video"]), audio=by_kind(events["audio"]), **told)

    def _shares(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per clip: number, own share, mean share by others' captions, whether its pair is held out."""
        rows = self.rows()
        n = len(rows["index"])
        steps = np.unique(np.linspace(1, n - 1, min(PARTNERS, n - 1)).round().astype(int)) if n > 1 else np.zeros(0, int)
        others = (np.arange(n)[:, None] + steps) % n
        own = realised(rows, rows)
        spread = {name: rows[name][:, None] for name in ("video", "audio")}
        chance = realised(spread, {name: rows[name][others] for name in ("colour", "timbre", "count")}).mean(1) if n > 1 else own
        return rows["index"], own, chance, rows["held_out"].astype(float)

    def _miscounted(self) -> dict[str, np.ndarray]:
        """By modality, how far each clip's number of events is from the one that its text asks for."""
        rows = self.rows()
        return {name: np.abs(rows[name].sum(1) - rows["count"]) for name in ("video", "audio")}

    def compute(self) -> dict[str, Score]:
        _, own, chance, held = self._shares()

        def corrected(weights: np.ndarray) -> np.ndarray:
            return beyond_chance(*(weights @ part / weights.sum(1) for part in (own, chance)))

        scores = {"semantics_kappa": over_clips(corrected, len(own)), "semantics": mean_score(own)}
        scores |= {f"count_error_{name}": mean_score(errors) for name, errors in self._miscounted().items()}
        if held.any():
            scores["semantics_seen"] = ratio_score(own * (1 - held), 1 - held)
            scores["semantics_held_out"] = ratio_score(own * held, held)
        return scores

    def per_clip(self) -> dict[str, np.ndarray]:
        index, own, chance, held = self._shares()
        errors = {f"count_error_{name}": errors for name, errors in self._miscounted().items()}
        return {"index": index, "realised": own, "chance": chance, "held_out": held, **errors}


def entanglement(short: np.ndarray, long: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """EI(when|what): rise of the timing error from the shortest to the longest text, over the error of re-paired clips."""
    return (long - short) / shuffled


def guidance_slope(errors: Mapping[float, Errors]) -> Score:
    """Least-squares slope of the timing error (ms) on the scale of text guidance, noise fixed: ms per unit of scale.

    Its interval is over clips, which are drawn with what they get at every scale: a clip that is hard at one is hard at all.

    Args:
        errors: what the same model, clips and noise get at each scale; 1, 2, 4 and 7 by the protocol.
    """
    if len(errors) < 2:
        raise ValueError("a slope needs the errors at two or more scales of guidance")
    clips = {part.clips for part in errors.values()}
    if len(clips) > 1:
        raise ValueError(f"a slope needs the same clips at every scale of guidance, not {' and '.join(map(str, sorted(clips)))}")
    centred = np.array(list(errors)) - np.mean(list(errors))

    def slope(weights: np.ndarray) -> np.ndarray:
        return np.stack([part.median(weights) for part in errors.values()], -1) @ centred / (centred**2).sum()

    return over_clips(slope, clips.pop())


@metrics.register("entanglement")
class Entanglement(WorldMetric):
    """Whether timing suffers from text that says nothing about it.

    Scores: ``entanglement`` (EI between the shortest and the longest captions of the test clips; 0: none) and
    ``sync_error_ms@4words`` and so on for each length. Undefined, and left out, while captions have one length only.
    """

    needs = "samples"
    higher_is_better_by_score = {"entanglement": False}

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("video", "audio", "words")

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        onsets = {name: padded(events[name]) for name in ("video", "audio")}
        self.update(index=batch.index, words=batch.extra["text_tokens"], **onsets)

    def compute(self) -> dict[str, Score]:
        rows, own = self.rows(), self._own()
        lengths = np.unique(rows["words"])
        if len(lengths) < 2:
            return {}
        video, audio = unpadded(rows["video"]), unpadded(rows["audio"])
        counts = [np.array([len(onsets) for onsets in part]) for part in (video, audio)]
        shuffled = _errors(video, audio, [some[:8] for some in partners(*counts)])

        def of_length(weights: np.ndarray, length: int) -> np.ndarray:
            return own.median(weights * (rows["words"] == length))

        def index(weights: np.ndarray) -> np.ndarray:
            return entanglement(of_length(weights, lengths[0]), of_length(weights, lengths[-1]), shuffled.median(weights))

        each = {
            f"sync_error_ms@{length}words": over_clips(lambda weights, length=length: of_length(weights, length), len(video))
            for length in lengths
        }
        return {"entanglement": over_clips(index, len(video)), **each}

    def _own(self) -> Errors:
        """Of each clip's picture with its own sound."""
        video, audio = (unpadded(self.rows()[name]) for name in ("video", "audio"))
        return _errors(video, audio, [np.array([clip]) for clip in range(len(video))])

    def per_clip(self) -> dict[str, np.ndarray]:
        rows, own = self.rows(), self._own()
        flat = {"error_ms": own.values, "error_clip": rows["index"][own.owner]}
        return {"index": rows["index"], "words": rows["words"], **flat}


def _errors(video: Sequence[np.ndarray], audio: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> Errors:
    """Errors of each clip's picture with the sounds of some clips."""
    lags, alone = [], []
    for clip, some in enumerate(others):
        found = [match(video[clip], audio[other]) for other in some]
        counts = np.array([[len(video[clip]), len(audio[other])] for other in some])
        lags.append(np.concatenate([np.zeros(0), *found]))
        alone.append(unmatched(counts, found).sum())
    return Errors.of(lags, np.array(alone, dtype=int))
