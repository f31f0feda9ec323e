"""The training loss: mean squared error of the velocity, per modality.

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from nava_lab.conditioning.text import without_text
from nava_lab.flow.draws import Draws
from nava_lab.flow.path import PREDICTIONS, as_velocity, interpolate, velocity
from nava_lab.streams import Batch, Stream

Network = Callable[..., Mapping[str, Tensor]]  # (streams, levels, text, cut) -> outputs


@dataclass(frozen=True)
class Objective:
    """Rectified-flow velocity matching.

    Attributes:
        prediction: what the network's output means: "velocity", or "x0", turned into a velocity before the loss.
        weights: loss weight per modality; 1 where not named.
    """

    prediction: str = "x0"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"flow.prediction={self.prediction} is not one of {', '.join(PREDICTIONS)}")

    def per_sample(self, network: Network, batch: Batch, draws: Draws) -> dict[str, Float[Tensor, " b"]]:
        """Each sample's mean squared velocity error per modality, over its valid tokens; 0 where it has none."""
        noisy = {
            name: stream.with_tokens(interpolate(stream.tokens, draws.noise[name], draws.levels[name]))
            for name, stream in batch.streams.items()
        }
        outputs = network(noisy, draws.levels, without_text(batch.text, draws.drop_text), draws.cut)
        losses = {}
        for name, stream in batch.streams.items():
            predicted = as_velocity(outputs[name], noisy[name].tokens, draws.levels[name], self.prediction)
            error = (predicted - velocity(stream.tokens, draws.noise[name])).square().mean(-1)
            losses[name] = _over_valid(error, stream)
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the modalities' batch means, divided by the weights' sum."""
        weights = {name: self.weights.get(name, 1.0) for name in losses}
        total = sum(weights.values())
        if total <= 0:
            raise ValueError(f"flow.weights leaves no loss for {', '.join(losses)}")
        return sum((weights[name] / total) * loss.mean() for name, loss in losses.items())  # type: ignore[return-value]


def _over_valid(error: Float[Tensor, "b n"], stream: Stream) -> Float[Tensor, " b"]:
    if stream.valid is None:
        return error.mean(-1)
    kept = error.masked_fill(~stream.valid, 0.0).sum(-1)
    return kept / stream.valid.sum(-1).clamp(min=1)
