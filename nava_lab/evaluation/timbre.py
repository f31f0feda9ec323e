"""Metric ``timbre``: does each span of speech sound like the reference that belongs to it?

In a span (known from the script) the mean over its frames of the bands' energies is compared with the clip's K voices by
cosine. Boundaries are where the sound rises or falls, at a part of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nava_lab.evaluation.base import WorldMetric
from nava_lab.evaluation.binding import kappa
from nava_lab.evaluation.score import Score, over_clips, ratio_score, weighted_median
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.voices import LOUDNESS

SILENT = 0.2  # of a voice's full loudness: a span below that has no timbre
LOW, HIGH = 0.25, 0.5  # a sound has begun where a frame below LOW is followed by one above HIGH
GATE = 0.250  # seconds; a boundary that is nowhere nearer counts as this far off


@metrics.register("timbre")
class Timbre(WorldMetric):
    """Timbre in context.

    Scores: ``timbre_kappa`` (accuracy beyond chance, 1 perfect, 0 chance; 0 too where there is one voice only),
    ``timbre_accuracy`` (share of the spans with a reference whose nearest voice is that reference's, chance 1/K; a silent
    span is wrong), ``leakage`` (share of those spans' loudness that other speakers' voices explain), ``boundary_error_ms``
    (median distance of a span's sounding start and end from the scripted ones), ``silent_spans`` (share of spans without
    sound).
    """

    needs = "clips"
    higher_is_better_by_score = {
        **{"timbre_kappa": True, "timbre_accuracy": True, "leakage": False},
        **{"boundary_error_ms": False, "silent_spans": False},
    }
    exact = {"timbre_kappa": (1.0, 0.0)}

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.keep("given", "right", "leak", "silent", "boundaries", "voices")

    def update_clips(self, batch: Batch, streams: Mapping[str, Tensor]) -> None:
        bands = self.world.untokenize(streams)[1].double()  # type: ignore[attr-defined]
        extra, hz = batch.extra, self.world.audio_hz  # type: ignore[attr-defined]
        start, end, voices = extra["span_start"], extra["span_end"], extra["voices"].double()
        means = spans_of(bands, start, end, hz)
        loud = means.norm(dim=-1) >= SILENT * LOUDNESS
        nearest = torch.einsum("bmf,bkf->bmk", means, voices / voices.norm(dim=-1, keepdim=True)).argmax(-1)
        self.update(
            index=batch.index,
            given=extra["given"].double(),
            right=((nearest == extra["speaker"]) & loud & extra["given"]).double(),
            leak=leakage(means, voices, extra["speaker"]) * (extra["given"] & loud),
            silent=(~loud).double(),
            boundaries=torch.cat(
                (boundary_errors(bands, start, hz, rising=True), boundary_errors(bands, end, hz, rising=False)), 1
            ),
            voices=torch.full_like(batch.index, voices.shape[1]).double(),
        )

    def compute(self) -> dict[str, Score]:
        rows = self.rows()
        given, right, silent, boundaries = (rows[name] for name in ("given", "right", "silent", "boundaries"))
        n, each = boundaries.shape
        owner, errors = np.repeat(np.arange(n), each), boundaries.reshape(-1) * 1000
        heard = given * (1 - silent)
        return {
            "timbre_kappa": kappa(right.sum(1), given.sum(1), 1 / rows["voices"]),
            "timbre_accuracy": ratio_score(right.sum(1), given.sum(1)),
            "leakage": ratio_score(rows["leak"].sum(1), heard.sum(1)),
            "boundary_error_ms": over_clips(lambda weights: weighted_median(errors, weights[:, owner]), n),
            "silent_spans": ratio_score(silent.sum(1), np.full(n, float(silent.shape[1]))),
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        rows = self.rows()
        return {
            "index": rows["index"],
            "right": rows["right"].sum(1),
            "given": rows["given"].sum(1),
            "leakage": rows["leak"].sum(1),
            "boundary_error_ms": 1000 * np.median(rows["boundaries"], axis=1),
        }


def spans_of(bands: Float[Tensor, "b s f"], start: Tensor, end: Tensor, hz: float) -> Float[Tensor, "b m f"]:
    """The mean energies, none negative, of the frames whose centres lie in each span."""
    centres = (torch.arange(bands.shape[1], device=bands.device, dtype=torch.float64) + 0.5) / hz
    inside = ((centres >= start.unsqueeze(-1)) & (centres < end.unsqueeze(-1))).double()
    mean = torch.einsum("bms,bsf->bmf", inside, bands) / inside.sum(-1, keepdim=True).clamp(min=1)
    return mean.clamp(min=0)


def leakage(means: Float[Tensor, "b m f"], voices: Float[Tensor, "b k f"], speaker: Tensor) -> Float[Tensor, "b m"]:
    """Of what the clip's voices explain of a span (least squares, clipped at 0), the share of those that do not speak in it."""
    amounts = torch.einsum("bmf,bfk->bmk", means, torch.linalg.pinv(voices)).clamp(min=0)
    own = amounts.gather(-1, speaker.unsqueeze(-1)).squeeze(-1)
    total = amounts.sum(-1)
    return torch.where(total > 0, (total - own) / total.clamp(min=1e-12), 0.0)


def boundary_errors(bands: Float[Tensor, "b s f"], true: Float[Tensor, "b m"], hz: float, rising: bool) -> Float[Tensor, "b m"]:
    """Seconds between each boundary and the nearest moment at which the sound begins (or ends); at most the gate.

    A frame that is partly filled tells by its loudness, next to its full neighbour's, where in it the boundary lies.
    """
    loud = bands.norm(dim=-1) / LOUDNESS
    if not rising:
        loud = loud.flip(1)
    before, here, after = (torch.nn.functional.pad(loud, (1, 1))[:, k : k + loud.shape[1]] for k in range(3))
    edge = (before < LOW) & (here >= LOW) & (torch.maximum(here, after) >= HIGH)
    filled = (here / torch.maximum(here, after).clamp(min=1e-12)).clamp(max=1)
    places = torch.arange(loud.shape[1], device=loud.device, dtype=torch.float64)
    seconds = (places + 1 - filled) / hz
    if not rising:
        seconds = loud.shape[1] / hz - seconds
    far = (seconds.unsqueeze(1) - true.unsqueeze(-1)).abs().masked_fill(~edge.unsqueeze(1), GATE)
    return far.amin(-1).clamp(max=GATE)
