"""The LightningModule: any network, any streams, one objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from nava_lab.flow.draws import Drawing, Draws
from nava_lab.flow.objective import Objective
from nava_lab.rng import generators
from nava_lab.streams import Batch, ModalitySpec, Stream, time_positions
from nava_lab.training.log import logged
from nava_lab.training.mishaps import not_finite, note_step
from nava_lab.training.settings import Training
from nava_lab.training.sharding import shard
from nava_lab.training.together import mean_of_all


def without_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay spares a parameter: vectors, tables and embeddings."""
    return parameter.ndim < 2 or any(part in name for part in ("table", "words", "places"))


def complete(batch: Batch, specs: Mapping[str, ModalitySpec]) -> Batch:
    """A batch with every modality that the network knows; one that it lacks is all padding, in which nothing counts.

    So the processes of one training walk the same graph and exchange the same gradients, whatever their shares lack.
    """
    if batch.streams.keys() >= specs.keys():
        return batch
    like, count = next(iter(batch.streams.values())).tokens, len(batch)

    def absent(spec: ModalitySpec) -> Stream:
        tokens = like.new_zeros(count, spec.tokens, spec.channels + spec.context)
        positions = time_positions(spec.tokens, spec.seconds, spec.grid, like.device)
        return Stream(tokens, positions, torch.zeros(count, spec.tokens, dtype=torch.bool, device=like.device))

    streams = {name: batch.streams[name] if name in batch.streams else absent(spec) for name, spec in specs.items()}
    return replace(batch, streams=streams)


class GenerativeModule(pl.LightningModule):
    """Velocity matching of a network.

    Randomness of a training step is drawn per clip from (seed, clip), so it depends on neither batch split nor device
    count, and a resumed run draws what an unbroken one would.

    A step is queued on the device and not waited for: its loss stays there until ``read_losses``, at logged steps, before a
    validation or a checkpoint, and at the end. Nor do several processes wait in other steps, but for DDP's own wait where a
    weight gets no gradient.

    Args:
        network: called as (streams, levels, text, cut); its ``specs`` say which modalities, its ``blocks`` are its layers.
        objective: the loss.
        drawing: laws of the random part.
        training: settings of the optimiser.
        seed: of the draws.
        accumulate: in how many pieces a batch is computed; their gradients are those of the whole.
        sharded: spread the weights over the processes (under a strategy that has a device mesh).

    Attributes:
        loss: of the last step that was read; None before.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        drawing: Drawing,
        training: Training,
        seed: int,
        accumulate: int = 1,
        sharded: bool = False,
    ):
        super().__init__()
        self.network = network
        self.objective = objective
        self.drawing = drawing
        self.training_config = training
        self.seed = seed
        self.accumulate = accumulate
        self.sharded = sharded
        self.loss: float | None = None
        self._unread: list[tuple[int, Tensor]] = []

    def configure_model(self) -> None:
        if self.sharded:
            self.sharded = False
            shard(self.network, self.device_mesh["data_parallel"])  # type: ignore[index]

    @property
    def validation_drawing(self) -> Drawing:
        """The laws of the validation's draws: captions are shown, unless they never are."""
        return replace(self.drawing, text_dropout=float(self.drawing.text_dropout >= 1))

    def drawn(self, batch: Batch, purpose: str, drawing: Drawing) -> tuple[Batch, Draws, dict[str, Tensor]]:
        """A batch with all modalities, its draws, and how many samples of each modality have some.

        Counts are left out where all samples have some. Those of several processes are their average, of every modality
        whether it is left out here or not: processes must ask each other the same, whatever their shares of the batch hold.
        """
        batch = complete(batch, self.network.specs)  # type: ignore[arg-type]
        draws = drawing(batch.streams, generators(purpose, self.seed, batch.index.tolist()))
        counts = self.objective.counts(batch, draws)
        if self.trainer.world_size > 1 or self.accumulate > 1:
            tokens = next(iter(batch.streams.values())).tokens
            all_of_them = tokens.new_full((), len(batch), dtype=torch.float32)
            held = torch.stack([counts.get(name, all_of_them).float() for name in batch.streams])
            counts = dict(zip(batch.streams, mean_of_all(held) if self.trainer.world_size > 1 else held, strict=True))
        return batch, draws, counts

    def training_step(self, batch: Batch, step: int) -> Tensor:
        batch, draws, counts = self.drawn(batch, "train", self.drawing)
        loss, losses = self._learn(batch, draws, counts)
        means = self.objective.means(losses, counts)
        parts = {"train/loss": self.objective.total(losses, counts).detach()}
        parts |= {f"train/loss_{name}": mean.detach() for name, mean in means.items()}
        parts |= {f"train/rate_{name}": rate for name, rate in draws.rates().items()}
        parts = self._across(parts)
        self._unread.append((self.global_step, parts["train/loss"]))
        if logged(self.global_step + 1):
            self.read_losses()
            missing = {f"train/loss_{name}" for name, count in counts.items() if not bool(count > 0)}
            self._log_anew({name: value for name, value in parts.items() if name not in missing})
        return loss

    def read_losses(self) -> None:
        """Wait for the losses that no one has read yet.

        Raises:
            FloatingPointError: one of them is not finite; it names the first.
        """
        unread, self._unread = self._unread, []
        if unread:
            self._judge([step for step, _ in unread], torch.stack([loss for _, loss in unread]).tolist())

    def _judge(self, steps: Sequence[int], losses: Sequence[float]) -> None:
        for step, loss in zip(steps, losses, strict=True):
            if message := not_finite(loss, step):
                error = FloatingPointError(message)
                note_step(error, step)
                raise error
        self.loss = losses[-1]

    def _log_anew(self, values: Mapping[str, Tensor], **how: Any) -> None:
        """Log a step's values, and nothing that an earlier step had and this one lacks: Lightning would log that again."""
        kept, told = self.trainer._results, self.trainer.callback_metrics
        assert kept is not None
        for key in [key for key, one in kept.items() if one.meta.fx == "training_step" and one.meta.name not in values]:
            told.pop(kept.pop(key).meta.name, None)
        self.log_dict(dict(values), **how)

    def on_validation_start(self) -> None:
        self.read_losses()

    def on_train_end(self) -> None:
        self.read_losses()

    def _learn(self, batch: Batch, draws: Draws, counts: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that is left to descend, and every sample's; of a batch in pieces all but the last are descended here.

        Pieces are divided by what the whole batch counts, so their gradients add up to its own.
        """
        if self.accumulate == 1:
            losses = self.objective.per_sample(self.network, batch, draws)
            return self.objective.total(losses, counts), losses
        self.optimizers(use_pl_optimizer=False).zero_grad()  # type: ignore[union-attr]
        size, pieces = len(batch) // self.accumulate, []
        for number in range(self.accumulate):
            select = slice(number * size, (number + 1) * size)
            losses = self.objective.per_sample(self.network, batch.rows(select), draws.rows(select))
            loss = self.objective.total(losses, counts)
            pieces.append({name: part.detach() for name, part in losses.items()})
            if number < self.accumulate - 1:
                with torch.autocast(self.device.type, enabled=False):  # backward passes are not to be cast
                    self.trainer.strategy.backward(loss, None)
        return loss, {name: torch.cat([piece[name] for piece in pieces]) for name in losses}

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if self.accumulate == 1:  # else before the first piece: Lightning empties gradients between forward and backward
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def _across(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The processes' average of each value, in one exchange."""
        if self.trainer.world_size == 1:
            return values
        means = mean_of_all(torch.stack([value.float() for value in values.values()]))
        return dict(zip(values, means.unbind(), strict=True))

    def validation_step(self, batch: Batch, step: int) -> None:
        batch, draws, counts = self.drawn(batch, "validation", self.validation_drawing)
        losses = self.objective.per_sample(self.network, batch, draws)
        values = {f"validation/loss_{name}": mean for name, mean in self.objective.means(losses, counts).items()}
        values["validation/loss"] = self.objective.total(losses, counts)
        self.log_dict(values, sync_dist=True, batch_size=len(batch))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm of all gradients. Lightning refuses to under bf16, for a fused optimiser might hold them scaled."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def spared(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay spares a parameter of the network."""
        return without_decay(name, parameter)

    def configure_optimizers(self) -> Any:
        config = self.training_config
        named = [(name, part) for name, part in self.network.named_parameters() if part.requires_grad]
        groups = [
            {
                "params": [part for name, part in named if not self.spared(name, part)],
                "weight_decay": config.weight_decay,
            },
            {"params": [part for name, part in named if self.spared(name, part)], "weight_decay": 0.0},
        ]
        # Under fp16 gradients are scaled, and only a plain optimiser has them unscaled before they are clipped.
        fused = self._trainer is None or self._trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
