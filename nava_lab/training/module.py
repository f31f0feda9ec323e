"""The LightningModule: any network, any streams, one objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from nava_lab.flow.draws import Drawing, Draws
from nava_lab.flow.objective import Objective
from nava_lab.rng import generators
from nava_lab.streams import Batch
from nava_lab.training.settings import Training


def without_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay spares a parameter: vectors, tables and embeddings."""
    return parameter.ndim < 2 or any(part in name for part in ("table", "words", "places"))


class GenerativeModule(pl.LightningModule):
    """Velocity matching of a network.

    Randomness of a training step is drawn per clip from (seed, clip), so it depends on neither batch split nor device
    count, and a resumed run draws what an unbroken one would.
    """

    def __init__(self, network: nn.Module, objective: Objective, drawing: Drawing, training: Training, seed: int):
        super().__init__()
        self.network = network
        self.objective = objective
        self.drawing = drawing
        self.training_config = training
        self.seed = seed

    def losses(self, batch: Batch, purpose: str, drawing: Drawing) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Draws]:
        """Losses per sample, how many samples of each modality have some (the processes' average), and the draws."""
        draws = drawing(batch.streams, generators(purpose, self.seed, batch.index.tolist()))
        losses, counts = self.objective.per_sample(self.network, batch, draws), self.objective.counts(batch, draws)
        return losses, {name: self.trainer.strategy.reduce(count, reduce_op="mean") for name, count in counts.items()}, draws

    def training_step(self, batch: Batch, step: int) -> Tensor:
        losses, counts, draws = self.losses(batch, "train", self.drawing)
        loss = self.objective.total(losses, counts)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"the loss is {float(loss.detach())} at step {self.global_step}; the last checkpoint is whole: lower training.lr"
            )
        means = self.objective.means(losses, counts)
        parts = {f"train/loss_{name}": mean.detach() for name, mean in means.items() if name not in counts or counts[name] > 0}
        parts |= {f"train/rate_{name}": rate for name, rate in draws.rates().items()}
        self.log_dict({"train/loss": loss.detach(), **parts}, sync_dist=True, batch_size=len(batch))
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, step: int) -> None:
        losses, counts, _ = self.losses(
            batch, "validation", replace(self.drawing, text_dropout=float(self.drawing.text_dropout >= 1))
        )
        values = {f"validation/loss_{name}": mean for name, mean in self.objective.means(losses, counts).items()}
        values["validation/loss"] = self.objective.total(losses, counts)
        self.log_dict(values, sync_dist=True, batch_size=len(batch))

    def configure_optimizers(self) -> Any:
        config = self.training_config
        named = [(name, part) for name, part in self.network.named_parameters() if part.requires_grad]
        groups = [
            {
                "params": [part for name, part in named if not without_decay(name, part)],
                "weight_decay": config.weight_decay,
            },
            {"params": [part for name, part in named if without_decay(name, part)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
