"""The decoders' floors: how far from true moments they land on true clips with noise. No timing error of a model means less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from nava_lab.evaluation.timbre import GATE, boundary_errors
from nava_lab.worlds.pulses import Decoder
from nava_lab.worlds.staged import Staged
from nava_lab.worlds.voices import LOUDNESS

SIGMAS = (0.0, 0.03, 0.1)  # of normal noise on a trace, in which an event is .7 to 1 high and a voice .5 to 1


@dataclass(frozen=True)
class Floor:
    """What a decoder makes of noisy clips.

    Attributes:
        modality: whose pulse; "turn" for the boundaries of spans of speech.
        sigma: standard deviation of the noise.
        median: error in milliseconds, of clips whose events are all found and no others, and of boundaries that are found.
        tail: its 95th percentile.
        miscounted: share of clips with another number of events; of boundaries, the share that is not found.
    """

    modality: str
    sigma: float
    median: float
    tail: float
    miscounted: float


def floors(world: Staged, clips: int = 192, threshold: float = Decoder.threshold) -> Iterator[Floor]:
    """A row per modality and noise, always from the same noise."""
    script = world.script("test", torch.arange(clips))
    for modality, pulse, events in (
        ("video", world.video_pulse, script.seen),
        ("audio", world.audio_pulse, script.heard),
    ):
        for sigma in SIGMAS:
            trace = pulse.trace(events.seconds, events.amplitude)
            noise = torch.randn(trace.shape, generator=torch.Generator().manual_seed(0), dtype=trace.dtype)
            seconds, _, real = Decoder(threshold, most=world.most + 2)(pulse, trace + sigma * noise)
            errors, wrong = [np.zeros(0)], 0
            for row in range(clips):
                true, found = events.onsets(row), np.sort(seconds[row][real[row]].numpy())
                wrong += len(true) != len(found)
                errors += [np.abs(true - found)] if len(true) == len(found) else []
            yield Floor(modality, sigma, *_percentiles(np.concatenate(errors)), wrong / clips)


def turn_floors(world: Staged, clips: int = 192) -> Iterator[Floor]:
    """A row per noise for the boundaries of a world's turns of speech, always from the same noise."""
    script = world.script("test", torch.arange(clips))
    bands = world.shown(script)[1].double()
    for sigma in SIGMAS:
        noise = torch.randn(bands.shape, generator=torch.Generator().manual_seed(0), dtype=bands.dtype)
        noisy = bands + sigma * LOUDNESS * noise
        errors = boundary_errors(noisy, script.extra["span_start"], script.extra["span_end"], world.audio_hz).flatten().numpy()
        found = errors[errors < GATE]
        yield Floor("turn", sigma, *_percentiles(found), 1 - len(found) / len(errors))


def _percentiles(seconds: np.ndarray) -> tuple[float, float]:
    """Median and 95th percentile in milliseconds; NaN of nothing."""
    if not len(seconds):
        return float("nan"), float("nan")
    return float(np.percentile(1000 * seconds, 50)), float(np.percentile(1000 * seconds, 95))
