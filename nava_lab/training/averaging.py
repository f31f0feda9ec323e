"""The exponential moving average of the weights, kept as the weights are: of a sharded model, each process its shard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from nava_lab.training.settings import Training


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each: of a sharded tensor its shard, whose changes are the tensor's."""
    return [part.to_local() if hasattr(part, "to_local") else part for part in (one.detach() for one in tensors)]


class Averaging(pl.Callback):
    """Averages the weights after every optimiser step, and validates by the average.

    A checkpoint's ``state_dict`` is the average, its ``current_model_state`` what is being trained (the layout of Lightning's
    own callback, whose average cannot be sharded).

    Args:
        decay: what an update keeps of the average.
    """

    def __init__(self, decay: float):
        self.decay, self.updates = decay, 0
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.average:
            self.average = {name: part.detach().clone() for name, part in pl_module.named_parameters()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        weight = 1 - self.decay if self.updates else 1.0  # the first update is where the average begins
        with torch.no_grad():
            torch._foreach_lerp_(local(self.average.values()), local(pl_module.parameters()), weight)
        self.updates += 1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            torch._foreach_copy_(local(pl_module.parameters()), local(self.average.values()))

    def _swap(self, pl_module: pl.LightningModule) -> None:
        """Weights and average change places."""
        if not self.average:
            return
        weights, average = local(pl_module.parameters()), local(self.average.values())
        with torch.no_grad():
            kept = [part.clone() for part in weights]
            torch._foreach_copy_(weights, average)
            torch._foreach_copy_(average, kept)

    def state_dict(self) -> dict[str, int]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.updates = state_dict["updates"]

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.average:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self.average}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        pl_module.load_state_dict(checkpoint["current_model_state"])
        average = checkpoint["state_dict"]
        # Here weights may not be on their device yet; a shard is placed as its weight is.
        self.average = {name: average[name].to(part.device).clone() for name, part in pl_module.named_parameters()}


def averaging(training: Training) -> list[pl.Callback]:
    """The average with its half-life in steps; nothing where it is switched off."""
    if not training.ema_half_life:
        return []
    return [Averaging(0.5 ** (1 / max(1.0, training.ema_half_life * training.steps)))]
