"""The decoder's floor: how far from true onsets it lands on true traces with noise. No timing error of a model means less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from nava_lab.worlds.pulses import Decoder
from nava_lab.worlds.staged import Staged

SIGMAS = (0.0, 0.03, 0.1)  # of normal noise on a trace, in which an event is .7 to 1 high


@dataclass(frozen=True)
class Floor:
    """What the decoder makes of one modality's noisy traces.

    Attributes:
        modality: whose pulse.
        sigma: standard deviation of the noise.
        median: onset error in milliseconds, of clips whose events are all found and no others.
        tail: its 95th percentile.
        miscounted: share of clips with another number of events.
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
            ms = 1000 * np.concatenate(errors)
            median, tail = (float(np.percentile(ms, share)) if len(ms) else float("nan") for share in (50, 95))
            yield Floor(modality, sigma, median, tail, wrong / clips)
