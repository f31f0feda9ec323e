"""The training loss: mean squared error of the velocity, per modality.

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nava_lab.flow.draws import Draws
from nava_lab.flow.error import squared_error
from nava_lab.flow.path import PREDICTIONS, interpolate
from nava_lab.flow.weighting import Even, LevelWeight
from nava_lab.streams import Batch, Stream

Network = Callable[..., Mapping[str, Tensor]]  # (streams, levels, text, cut) -> outputs


@dataclass(frozen=True)
class Objective:
    """Rectified-flow velocity matching.

    Attributes:
        prediction: what the network's output means: "velocity", or "x0" or "eps", turned into a velocity before the loss.
        weights: loss weight per modality; 1 where not named.
        weighting: loss weight by noise level.
        clean_loss: whether tokens that are given clean count in the loss; their noise cannot be seen, so they teach little
            besides the clean tokens themselves.
    """

    prediction: str = "x0"
    weights: Mapping[str, float] = field(default_factory=dict)
    weighting: LevelWeight = field(default_factory=Even)
    clean_loss: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"flow.prediction={self.prediction} is not one of {', '.join(PREDICTIONS)}")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"flow.weights.{name}={weight} must be at least 0 and finite")

    def plain(self) -> Objective:
        """The same without weights by level: what models trained by different weights are compared by."""
        return replace(self, weighting=Even(), clean_loss=False)

    def per_sample(self, network: Network, batch: Batch, draws: Draws) -> dict[str, Float[Tensor, " b"]]:
        """Each sample's mean squared velocity error per modality, over its valid, noisy tokens; 0 where it has none."""
        noisy = {
            name: stream.with_tokens(interpolate(stream.tokens, draws.noise[name], draws.levels[name]))
            for name, stream in batch.streams.items()
        }
        outputs = network(noisy, draws.levels, draws.shown(batch.text), draws.cut)
        losses = {}
        for name, stream in batch.streams.items():
            x, noise, level = noisy[name].tokens, draws.noise[name], draws.levels[name]
            error = squared_error(outputs[name], x, stream.tokens, noise, level, self.prediction)
            weight = self.weighting(draws.levels[name]).to(error.dtype)
            error = error * (weight if weight.ndim == 2 else weight.unsqueeze(-1))
            losses[name] = _over(error, self._counted(stream, draws.clean.get(name)))
        return losses

    def _counted(self, stream: Stream, clean: Tensor | None) -> Bool[Tensor, "b n"] | None:
        """The tokens whose error counts; None for all."""
        if clean is None or self.clean_loss:
            return stream.valid
        free = ~(clean if clean.ndim == 2 else clean.unsqueeze(-1).expand(-1, len(stream)))
        return free if stream.valid is None else free & stream.valid

    def counts(self, batch: Batch, draws: Draws) -> dict[str, Float[Tensor, ""]]:
        """How many samples have tokens that count, per modality; left out where nothing is given or padded: all have."""
        return {
            name: some.sum().to(batch.streams[name].tokens.dtype) for name, some in self.counted_samples(batch, draws).items()
        }

    def counted_samples(self, batch: Batch, draws: Draws) -> dict[str, Bool[Tensor, " b"]]:
        """The samples that have tokens that count, per modality; left out where nothing is given or padded: all have."""
        found = {}
        for name, stream in batch.streams.items():
            counted = self._counted(stream, draws.clean.get(name))
            if counted is not None:
                found[name] = counted.expand(len(batch), -1).any(-1)
        return found

    def means(self, losses: Mapping[str, Tensor], counts: Mapping[str, Tensor] | None = None) -> dict[str, Float[Tensor, ""]]:
        """Each modality's mean over the samples that have noisy tokens, so that giving a modality does not lower its weight.

        Args:
            losses: per sample, 0 where a sample has no such tokens.
            counts: how many have, where not all; over several processes the average of theirs, so that the processes' average
                of the means is the mean over all samples. Where nobody has any, the mean is 0, and so is its gradient.
        """
        counts = counts or {}
        return {
            name: loss.sum() / torch.where(counts[name] > 0, counts[name], 1.0) if name in counts else loss.mean()
            for name, loss in losses.items()
        }

    def total(self, losses: Mapping[str, Tensor], counts: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        """The weighted sum of the modalities' ``means``, divided by the weights' sum."""
        weights = {name: self.weights.get(name, 1.0) for name in losses}
        total = sum(weights.values())
        if total <= 0:
            raise ValueError(f"flow.weights leaves no loss for {', '.join(losses)}")
        means = self.means(losses, counts)
        return sum((weights[name] / total) * mean for name, mean in means.items())  # type: ignore[return-value]


def _over(error: Float[Tensor, "b n"], counted: Bool[Tensor, "b n"] | None) -> Float[Tensor, " b"]:
    if counted is None:
        return error.mean(-1)
    return error.masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)
