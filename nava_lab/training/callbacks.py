"""What watches a training: the metrics log, the progress bar, checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from nava_lab.training.log import read_log
from nava_lab.training.settings import Training

LOG_EVERY = 10
LOSS = "validation/loss"


class MetricsLog(pl.Callback):
    """Appends one JSON line per logged step to ``metrics.jsonl``.

    A line holds nothing but what the training computed (no clock), so a resumed run's log ends equal to an unbroken
    one's. On resuming, lines after the checkpoint's step are cut off.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        kept = [line for line in read_log(self.path) if line["step"] <= trainer.global_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % LOG_EVERY == 0 or step == 1:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._write(trainer, step, "train/", {"lr": rate})
            for logger in trainer.loggers:
                logger.log_metrics({"lr": rate}, step=step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, trainer.global_step, "validation/", {})

    def _write(self, trainer: pl.Trainer, step: int, prefix: str, more: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **more, **values}) + "\n")


class Progress(RichProgressBar):
    """Lightning's rich bar with the run's own number of steps (the stream of clips has no end of its own)."""

    def __init__(self, steps: int, label: str):
        super().__init__(refresh_rate=5, leave=True, theme=RichProgressBarTheme(metrics_format=".4f"))
        self.steps = steps
        self.label = label

    @property
    def total_train_batches(self) -> int | float:
        return self.steps

    def _get_train_description(self, current_epoch: int) -> str:
        return self.label

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in items.items() if name != "v_num"}


class EndedEarly(Exception):
    """A watcher ended the training; what was trained stays where it is, to be continued or not."""


class Watch(pl.Callback):
    """Tells somebody outside of every validation, and ends the training where they say so.

    Args:
        log: the run's metrics log, whose earlier validations are told again when a run is continued.
        judge: takes (step, validation loss); whether to end.
        stop: asked after every step; whether to end at once.
    """

    def __init__(self, log: Path, judge: Callable[[int, float], bool], stop: Callable[[], bool] = lambda: False):
        self.log_file, self.judge, self.stop = log, judge, stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for line in read_log(self.log_file) if trainer.is_global_zero else []:
            if LOSS in line and line["step"] <= trainer.global_step:
                self.judge(int(line["step"]), line[LOSS])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end_if(trainer, trainer.is_global_zero and self.stop())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics.get(LOSS)
        if not trainer.sanity_checking and loss is not None:
            self._end_if(trainer, trainer.is_global_zero and self.judge(trainer.global_step, float(loss)))

    def _end_if(self, trainer: pl.Trainer, wanted: bool) -> None:
        """The first process decides for all."""
        if trainer.world_size > 1:
            wanted = trainer.strategy.broadcast(wanted)
        if wanted:
            raise EndedEarly(f"ended at step {trainer.global_step}")


def averaging(training: Training) -> list[pl.Callback]:
    """Lightning's exponential moving average of the weights, with a half-life in steps; nothing where it is switched off."""
    if not training.ema_half_life:
        return []
    return [EMAWeightAveraging(decay=0.5 ** (1 / max(1.0, training.ema_half_life * training.steps)))]


class Checkpoints(ModelCheckpoint):
    """The two newest checkpoints, each written whole or not at all by Lightning, after the steps ``moments``."""

    def __init__(self, folder: Path, moments: frozenset[int]):
        super().__init__(
            folder,
            filename="{step:07d}",
            auto_insert_metric_name=False,
            monitor="step",
            mode="max",
            save_top_k=2,
            every_n_train_steps=1,
            save_on_train_epoch_end=False,
        )
        self.moments = moments

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step in self.moments:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def checkpoints(folder: Path, training: Training) -> list[pl.Callback]:
    """The checkpoint callback, unless switched off."""
    return [Checkpoints(folder, training.saved_after())] if training.checkpoints else []


def newest_checkpoint(folder: Path, tell: Any) -> Path | None:
    """The newest checkpoint that can be read; unreadable ones are named through ``tell`` and passed over."""
    for path in sorted(folder.glob("*.ckpt"), reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever a torn file raises, the next older one may still serve
            tell(f"{path} cannot be read ({type(error).__name__}); trying an older one")
            continue
        return path
    return None
