"""The protocol: sample and denoise the test split, feed the world's metrics, collect scores.

Everything random is drawn per clip from (seed, clip), so scores do not depend on the batch size, and two runs of one seed
are scored on the same clips, captions and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nava_lab.conditioning.text import without_text
from nava_lab.evaluation.base import WorldMetric
from nava_lab.evaluation.score import Score
from nava_lab.flow.draws import Drawing
from nava_lab.flow.objective import Network, Objective
from nava_lab.flow.sampling import Clean, Sampler
from nava_lab.registry import metrics
from nava_lab.rng import generators
from nava_lab.streams import Batch, Stream
from nava_lab.worlds.base import World

Progress = Callable[[str, int, int], None]  # (what, done, of)


@dataclass(frozen=True)
class Protocol:
    """How a trained model is scored.

    Attributes:
        sampler: solver, steps and schedule.
        clips: generated clips.
        loss_clips: clips whose denoising error is measured.
        batch_size: clips at a time; changes no score.
        split: which clips.
        given: a modality that the samples are given clean, as it truly is; empty for none.
        told: whether samples are shown their captions; a model that was never shown any is not.
    """

    sampler: Sampler = field(default_factory=Sampler)
    clips: int = 256
    loss_clips: int = 1024
    batch_size: int = 64
    split: str = "test"
    given: str = ""
    told: bool = True


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        scores: by name.
        truth: the same of the true clips, decoded as the generated ones are: the most that the decoder lets anybody score.
        per_clip: values for pairing runs.
        first: token values of the first generated clips, for previews.
    """

    scores: Mapping[str, Score]
    truth: Mapping[str, Score]
    per_clip: Mapping[str, np.ndarray]
    first: Mapping[str, Tensor]


def batches(world: World, split: str, count: int, size: int, device: torch.device | str) -> Iterator[Batch]:
    """The first ``count`` clips of a split."""
    for start in range(0, count, size):
        yield world.batch(split, torch.arange(start, min(start + size, count), device=device))


def sample(
    network: Network,
    world: World,
    sampler: Sampler,
    seed: int,
    count: int,
    batch_size: int,
    split: str = "test",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    purpose: str = "sample",
    given: Callable[[Batch], Mapping[str, Clean]] | None = None,
    text: Callable[[Batch], Stream] | None = None,
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Generated token values beside the true clips whose captions they were given (where ``text`` says no other).

    ``given`` says what else they are given, batch by batch.
    """
    for batch in batches(world, split, count, batch_size, device):
        clean = given(batch) if given else None
        said = text(batch) if text else batch.text
        made = sampler(network, batch.streams, said, generators(purpose, seed, batch.index.tolist()), clean)
        if progress:
            progress("sampling", int(batch.index[-1]) + 1, count)
        yield batch, made


def feed(chosen: Sequence[WorldMetric], world: World, batch: Batch, streams: Mapping[str, Tensor]) -> None:
    """Show clips, as token values, to the metrics that look at clips; their events are decoded once, if anybody asks."""
    events = world.events(streams) if any(metric.needs == "samples" for metric in chosen) else {}
    for metric in chosen:
        if metric.needs == "samples":
            metric.update_samples(batch, events)
        elif metric.needs == "clips":
            metric.update_clips(batch, streams)


def untold(batch: Batch) -> Stream:
    """No caption for anybody, and no reference timbre."""
    return without_text(batch.text, torch.ones(len(batch), dtype=torch.bool, device=batch.index.device))


def true_modality(name: str) -> Callable[[Batch], dict[str, Clean]]:
    """Gives a modality of the true clips."""
    return lambda batch: {name: Clean(batch.streams[name].tokens)}


@torch.no_grad()
def evaluate(
    network: Network,
    world: World,
    protocol: Protocol,
    objective: Objective,
    drawing: Drawing,
    seed: int,
    device: torch.device | str = "cpu",
    keep: int = 4,
    progress: Progress | None = None,
) -> Result:
    """Score a network on a world by the world's own metrics."""
    chosen: list[WorldMetric] = [metrics.get(name)(world) for name in world.metrics]
    by_samples = [metric for metric in chosen if metric.needs in ("samples", "clips")]
    exact = [metrics.get(metric.name)(world) for metric in by_samples]
    by_losses = [metric for metric in chosen if metric.needs == "losses"]
    first: dict[str, list[Tensor]] = {}
    held_out = world.count(protocol.split)
    most = held_out if held_out is not None else max(protocol.clips, protocol.loss_clips, keep)
    if most < 1:
        raise ValueError(f"world {world.name} holds no {protocol.split} clips out: nothing to score on")
    count = min(most, protocol.clips if by_samples else keep)
    loss_clips = min(most, protocol.loss_clips)
    arguments = (network, world, protocol.sampler, seed, count, protocol.batch_size, protocol.split, device, progress)
    given = true_modality(protocol.given) if protocol.given else None
    for batch, made in sample(*arguments, given=given, text=None if protocol.told else untold):
        feed(by_samples, world, batch, made)
        feed(exact, world, batch, {name: stream.tokens for name, stream in batch.streams.items()})
        if sum(len(part) for part in next(iter(first.values()), [])) < keep:
            for name, part in made.items():
                first.setdefault(name, []).append(part[:keep])
    if by_losses:
        for batch in batches(world, protocol.split, loss_clips, protocol.batch_size, device):
            draws = drawing(batch.streams, generators("evaluation", seed, batch.index.tolist()))
            losses = objective.plain().per_sample(network, batch, draws)
            for metric in by_losses:
                metric.update_losses(batch, losses, draws.levels)
            if progress:
                progress("denoising", int(batch.index[-1]) + 1, loss_clips)
    scores: dict[str, Score] = {}
    per_clip: dict[str, np.ndarray] = {}
    for metric in chosen:
        scores |= metric.compute()
        per_clip |= {f"{metric.name}.{key}": value for key, value in metric.per_clip().items()}
    truth: dict[str, Score] = {}
    for metric in exact:
        truth |= metric.compute()
    return Result(scores, truth, per_clip, {name: torch.cat(parts)[:keep] for name, parts in first.items()})
