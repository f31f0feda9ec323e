"""The training loss: mean squared error of the velocity, per modality.

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Bool, Float
from torch import Tensor

from nava_lab.conditioning.text import without_text
from nava_lab.flow.draws import Draws
from nava_lab.flow.path import PREDICTIONS, as_velocity, interpolate, velocity
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

    def plain(self) -> Objective:
        """The same without weights by level: what models trained by different weights are compared by."""
        return replace(self, weighting=Even(), clean_loss=False)

    def per_sample(self, network: Network, batch: Batch, draws: Draws) -> dict[str, Float[Tensor, " b"]]:
        """Each sample's mean squared velocity error per modality, over its valid, noisy tokens; 0 where it has none."""
        noisy = {
            name: stream.with_tokens(interpolate(stream.tokens, draws.noise[name], draws.levels[name]))
            for name, stream in batch.streams.items()
        }
        outputs = network(noisy, draws.levels, without_text(batch.text, draws.drop_text), draws.cut)
        losses = {}
        for name, stream in batch.streams.items():
            predicted = as_velocity(outputs[name], noisy[name].tokens, draws.levels[name], self.prediction)
            error = (predicted - velocity(stream.tokens, draws.noise[name])).square().mean(-1)
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

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the modalities' batch means, divided by the weights' sum."""
        weights = {name: self.weights.get(name, 1.0) for name in losses}
        total = sum(weights.values())
        if total <= 0:
            raise ValueError(f"flow.weights leaves no loss for {', '.join(losses)}")
        return sum((weights[name] / total) * loss.mean() for name, loss in losses.items())  # type: ignore[return-value]


def _over(error: Float[Tensor, "b n"], counted: Bool[Tensor, "b n"] | None) -> Float[Tensor, " b"]:
    if counted is None:
        return error.mean(-1)
    return error.masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)
