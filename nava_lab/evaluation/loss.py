"""Metrics of denoising itself: ``loss`` on any world, ``use`` where the best possible loss is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from nava_lab.evaluation.base import WorldMetric
from nava_lab.evaluation.score import NOTHING, Score, over_clips, ratio_score
from nava_lab.registry import metrics
from nava_lab.streams import Batch


@metrics.register("loss")
class Loss(WorldMetric):
    """Velocity error on test clips, per element, over the clips that have noisy tokens of a modality.

    Scores: ``loss`` (mean over a clip's noisy modalities) and ``loss_<modality>``; not defined where no clip has any.
    """

    needs = "losses"
    shown = ("loss",)
    higher_is_better_by_score = {"loss": False}

    @classmethod
    def direction(cls, score: str) -> bool | None:
        return False if score.split("_")[0] == "loss" else None

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.modalities = tuple(self.world.interface().modalities)
        self.keep("errors", "noisy")

    def update_losses(self, batch: Batch, losses: Mapping[str, Tensor], levels: Mapping[str, Tensor]) -> None:
        valid = {name: stream.valid for name, stream in batch.streams.items()}
        noisy = [_noisy(levels[name], valid.get(name)) for name in self.modalities]
        errors = torch.stack([losses[name].double() for name in self.modalities], -1)
        self.update(index=batch.index, errors=errors, noisy=torch.stack(noisy, -1).double())

    def compute(self) -> dict[str, Score]:
        errors, noisy = self.rows()["errors"], self.rows()["noisy"]
        each = {f"loss_{name}": ratio_score(errors[:, i] * noisy[:, i], noisy[:, i]) for i, name in enumerate(self.modalities)}
        some = noisy.sum(1)
        return {"loss": ratio_score((errors * noisy).sum(1) / some.clip(1), (some > 0).astype(float)), **each}

    def per_clip(self) -> dict[str, np.ndarray]:
        rows = self.rows()
        columns = {f"loss_{name}": rows["errors"][:, i] for i, name in enumerate(self.modalities)}
        return {"index": rows["index"], **columns}


@metrics.register("use")
class CrossModalUse(WorldMetric):
    """Share of the knowable gain from the other modality that a model takes: U = (L_uni - L_model) / (L_uni - L*).

    Losses are sums over all elements, at the very levels each clip was tried at. 0 ignores the other modality (below 0:
    worse than the best unimodal model), 1 is optimal; 0 too where the other modality tells nothing. Scores:
    ``cross_modal_use``.
    """

    needs = "losses"
    shown = ("cross_modal_use",)
    higher_is_better_by_score = {"cross_modal_use": True}
    exact = {"cross_modal_use": (1.0, 0.0)}

    def __init__(self, world: object):
        super().__init__(world)  # type: ignore[arg-type]
        self.modalities = self.world.interface().modalities
        self.keep("model", "alone", "best")

    def update_losses(self, batch: Batch, losses: Mapping[str, Tensor], levels: Mapping[str, Tensor]) -> None:
        def summed(parts: Mapping[str, Tensor]) -> Tensor:
            """Over the modalities that are noisy: one that is given clean is no part of the loss."""
            return sum(  # type: ignore[return-value]
                parts[name].double() * (levels[name] > 0) * spec.tokens * spec.channels for name, spec in self.modalities.items()
            )

        bayes = self.world.bayes_loss  # type: ignore[attr-defined]
        self.update(
            index=batch.index,
            model=summed(losses),
            alone=summed(bayes(levels, joint=False)),
            best=summed(bayes(levels, joint=True)),
        )

    def compute(self) -> dict[str, Score]:
        rows = self.rows()
        alone = rows["alone"]

        def taken(weights: np.ndarray) -> np.ndarray:
            whole, gain = weights @ alone, weights @ (alone - rows["best"])
            share = np.divide(weights @ (alone - rows["model"]), gain, out=np.zeros_like(gain), where=gain > NOTHING * whole)
            return np.where(whole > 0, share, np.nan)

        return {"cross_modal_use": over_clips(taken, len(alone))._replace(n=int(np.count_nonzero(alone)))}

    def per_clip(self) -> dict[str, np.ndarray]:
        return self.rows()


def _noisy(levels: Tensor, valid: Tensor | None) -> Tensor:
    """The clips that have a token which is neither given nor padding."""
    tokens = levels > 0 if levels.ndim == 2 else (levels > 0).unsqueeze(-1)
    return (tokens if valid is None else tokens & valid).any(-1)
