"""Metric ``timbre``: does each span of speech sound like the reference that belongs to it?

In a span (known from the script) the mean over its frames of the bands' energies is compared with the clip's K voices by
cosine. Boundaries are where the sound rises or falls, at a part of a frame: half way between the span's own loudness and
that of the pause beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nava_lab.evaluation.base import WorldMetric
from nava_lab.evaluation.binding import kappa
from nava_lab.evaluation.score import UNDEFINED, Score, over_clips, ratio_score, weighted_median
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.voices import LOUDNESS

SILENT = 0.2  # of a voice's full loudness: a span below that has no timbre
PAUSE = 0.45  # of a span's loudness: what is louder is no pause (between syllables a voice falls to half)
FULL = 4  # so many frames on from where it rises, a sound is fully there
GATE = 0.250  # seconds; a boundary that is nowhere nearer counts as this far off


@metrics.register("timbre")
class Timbre(WorldMetric):
    """Timbre in context.

    Scores: ``timbre_kappa`` (accuracy beyond chance, 1 perfect, 0 chance; a silent span adds nothing; 0 too where there is
    one voice only), ``timbre_accuracy`` (share of the spans with a reference whose nearest voice is that reference's; a silent
    span is wrong, so chance is 1/K of those that sound), ``leakage`` (share of those spans' loudness that other speakers'
    voices explain), ``boundary_error_ms`` (median distance of a span's sounding start and end from the scripted ones),
    ``silent_spans`` (share of spans without sound). What is about references is not defined where none is given, nor leakage
    where all is silent.
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
            boundaries=boundary_errors(bands, start, end, hz),
            voices=torch.full_like(batch.index, voices.shape[1]).double(),
        )

    def compute(self) -> dict[str, Score]:
        rows = self.rows()
        given, right, silent, boundaries = (rows[name] for name in ("given", "right", "silent", "boundaries"))
        n, each = boundaries.shape
        owner, errors = np.repeat(np.arange(n), each), boundaries.reshape(-1) * 1000
        heard = given * (1 - silent)
        beyond = kappa(right.sum(1), given.sum(1), 1 / rows["voices"], heard.sum(1))
        return {
            "timbre_kappa": beyond if given.any() else UNDEFINED,
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
            "heard": (rows["given"] * (1 - rows["silent"])).sum(1),
            "leakage": rows["leak"].sum(1),
            "boundary_error_ms": 1000 * np.median(rows["boundaries"], axis=1),
        }


def spans_of(bands: Float[Tensor, "b s f"], start: Tensor, end: Tensor, hz: float) -> Float[Tensor, "b m f"]:
    """The mean energies, none negative, of the frames whose centres lie in each span."""
    inside = within(start, end, bands.shape[1], hz).double()
    mean = torch.einsum("bms,bsf->bmf", inside, bands) / inside.sum(-1, keepdim=True).clamp(min=1)
    return mean.clamp(min=0)


def within(start: Tensor, end: Tensor, frames: int, hz: float) -> Bool[Tensor, "b m s"]:
    """The frames whose centres lie in each span."""
    centres = (torch.arange(frames, device=start.device, dtype=torch.float64) + 0.5) / hz
    return (centres >= start.unsqueeze(-1)) & (centres < end.unsqueeze(-1))


def leakage(means: Float[Tensor, "b m f"], voices: Float[Tensor, "b k f"], speaker: Tensor) -> Float[Tensor, "b m"]:
    """Of what the clip's voices explain of a span (least squares, clipped at 0), the share of those that do not speak in it."""
    amounts = torch.einsum("bmf,bfk->bmk", means, torch.linalg.pinv(voices)).clamp(min=0)
    own = amounts.gather(-1, speaker.unsqueeze(-1)).squeeze(-1)
    total = amounts.sum(-1)
    return torch.where(total > 0, (total - own) / total.clamp(min=1e-12), 0.0)


def boundary_errors(
    bands: Float[Tensor, "b s f"], start: Float[Tensor, "b m"], end: Float[Tensor, "b m"], hz: float
) -> Float[Tensor, "b 2*m"]:
    """Seconds between the scripted starts, then the ends, of spans and where their sound begins and ends; at most the gate.

    A span's loudness is how much of its own mean timbre a frame holds, so neither another level nor noise in other bands
    moves it. Out from the middle of a span lies a pause, the quietest frame no further than the gate beyond the scripted
    boundary. The boundary is where, from there on, the loudness first comes half way from the pause's to that of the next
    frames, on a straight line between the centres of two (an edge within a frame is known to a twelfth of a frame). Silent
    spans, and those next to which no frame is quiet, have no boundary.

    Args:
        bands: energies.
        start: seconds, in order of time.
        end: likewise.
        hz: frames per second.
    """
    means = spans_of(bands, start, end, hz)
    norms = means.norm(dim=-1)
    own = torch.einsum("bsf,bmf->bms", bands, means / norms.clamp(min=1e-12).unsqueeze(-1))
    inside = within(start, end, own.shape[-1], hz)
    level = own.masked_fill(~inside, torch.nan).nanquantile(0.75, dim=-1)
    level = torch.where(norms >= SILENT * LOUDNESS, level, torch.nan)
    middle, far = (start + end) / 2, torch.full_like(start[:, :1], torch.inf)
    begins = _onsets(own, level, start, torch.cat((-far, middle[:, :-1]), 1), middle, hz)
    length = own.shape[-1] / hz
    later = length - torch.cat((middle[:, 1:], far), 1)
    ends = length - _onsets(own.flip(-1), level, length - end, later, length - middle, hz)
    found, true = torch.cat((begins, ends), 1), torch.cat((start, end), 1)
    return (found - true).abs().nan_to_num(GATE).clamp(max=GATE)


def _onsets(loud: Float[Tensor, "b m s"], level: Tensor, true: Tensor, after: Tensor, before: Tensor, hz: float) -> Tensor:
    """Where each span's sound begins, in seconds ``b m``; NaN where it does not.

    Args:
        loud: the loudness that belongs to each span.
        level: what it is when the span sounds; NaN where it never does.
        true: scripted start, from which the pause lies no further than the gate.
        after: the pause lies after this moment,
        before: and before this one.
    """
    loud = torch.cat((loud.quantile(0.1, dim=-1, keepdim=True), loud), -1)  # before the clip it is as in the clip's pauses
    places = torch.arange(loud.shape[-1], device=loud.device, dtype=torch.float64) - 0.5  # of centres, in frames
    seconds = places / hz
    near = (seconds >= torch.maximum(after, true - GATE).unsqueeze(-1)) & (seconds < before.unsqueeze(-1))
    quiet, pause = loud.masked_fill(~near, torch.inf).min(-1, keepdim=True)
    later = torch.arange(len(places), device=loud.device) > pause

    def first_at(half: Tensor) -> Tensor:
        return ((loud >= half) & later).long().argmax(-1, keepdim=True)  # 0, which no pause precedes, where there is none

    coarse = first_at((quiet + level.unsqueeze(-1)) / 2)
    top = torch.cat([loud.gather(-1, (coarse + k).clamp(max=len(places) - 1)) for k in range(FULL)], -1).amax(-1, keepdim=True)
    half = (quiet + top) / 2
    first = first_at(half)
    high, low = loud.gather(-1, first), loud.gather(-1, (first - 1).clamp(min=0))
    moment = (places[first] - (high - half) / (high - low).clamp(min=1e-12)) / hz
    found = (coarse > 0) & (first > 0) & (quiet <= PAUSE * level.unsqueeze(-1))
    return torch.where(found, moment, torch.nan).squeeze(-1)
