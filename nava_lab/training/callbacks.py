"""What watches a training: the metrics log, the progress bar, checkpoints."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from nava_lab.training.averaging import local
from nava_lab.training.ending import Asked
from nava_lab.training.log import LOG, LOG_EVERY, logged, read_log, write_log
from nava_lab.training.loggers import recall
from nava_lab.training.machine import end_together
from nava_lab.training.mishaps import broken
from nava_lab.training.module import GenerativeModule
from nava_lab.training.saved import SUFFIX, clear, numbered, remove, settle
from nava_lab.training.settings import Training
from nava_lab.training.together import Wishes

KEPT = 2  # checkpoints
LOSS = "validation/loss"


class MetricsLog(pl.Callback):
    """Appends one JSON line per logged step to ``metrics.jsonl``.

    A line holds nothing but what the training computed (no clock), so a resumed run's log ends equal to an unbroken
    one's. On resuming, lines after the checkpoint's step are cut off, and loggers that lose theirs are told the rest again.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        kept = [line for line in read_log(self.path) if line["step"] <= trainer.global_step]
        write_log(self.path, kept)
        for logger in self.loggers(trainer):
            recall(getattr(logger, "inner", logger), kept, LOG_EVERY)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if logged(step):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._write(trainer, step, "train/", {"lr": rate})
            for logger in self.loggers(trainer):
                logger.log_metrics({"lr": rate}, step=step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, trainer.global_step, "validation/", {})

    def loggers(self, trainer: pl.Trainer) -> Sequence[Any]:
        """Who is told the learning rate."""
        return trainer.loggers

    def values(self, trainer: pl.Trainer, prefix: str) -> dict[str, float] | None:
        """The metrics of a line; None for no line."""
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}

    def _write(self, trainer: pl.Trainer, step: int, prefix: str, more: dict[str, float]) -> None:
        values = self.values(trainer, prefix) if trainer.is_global_zero else None
        if values is None:
            return
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
        loss = pl_module.loss if isinstance(pl_module, GenerativeModule) else None
        own = {} if loss is None else {"loss": loss}  # as last read: a bar is not worth waiting for the device
        return {name: value for name, value in items.items() if name != "v_num"} | own


class EndedEarly(Exception):
    """A watcher ended the training; what was trained stays where it is, to be continued or not."""


class Stopped(EndedEarly):
    """A watcher ended the training for a reason that is none of the run's: somebody is to go on with it."""


class Watch(pl.Callback):
    """Tells somebody outside of every validation, and ends the training where they say so.

    Args:
        log: the run's metrics log, whose earlier validations are told again when a run is continued.
        judge: takes (step, validation loss); whether to end (``EndedEarly``).
        stop: asked after every step; whether to end at once (``Stopped``).
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
        self._end_if(trainer, trainer.is_global_zero and self.stop(), Stopped)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = trainer.callback_metrics.get(LOSS)
        if not trainer.sanity_checking and loss is not None:
            self._end_if(trainer, trainer.is_global_zero and self.judge(trainer.global_step, float(loss)))

    def _end_if(self, trainer: pl.Trainer, wanted: bool, how: type[EndedEarly] = EndedEarly) -> None:
        """The first process decides for all."""
        if trainer.world_size > 1:
            wanted = trainer.strategy.broadcast(wanted)
        if wanted:
            raise how(f"ended at step {trainer.global_step}")


class SameStart(pl.Callback):
    """Refuses, in every process, to train where one of them would not start from what the first does.

    Args:
        folder: of the checkpoints.
        start: this process's; None for none, be it that there is none or that it cannot be read here.
    """

    def __init__(self, folder: Path, start: Path | None):
        self.folder, self.name = folder, start and start.name

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        all_of: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(all_of, (self.name, socket.gethostname()))
        first = all_of[0][0]
        for rank, (name, host) in enumerate(all_of):
            if name == first:
                continue
            has = f"can read no {self.folder / first}" if first else f"would continue from {self.folder / name}"
            whence = "continues from there" if first else "starts anew"
            raise ValueError(
                f"process {rank} on {host} {has}, and the first process, which decides, {whence}: "
                "all processes of a run need the same folder (output.root)"
            )


class Ends(pl.Callback):
    """Ends a training of which nothing is saved after the step at which it is asked to (SIGTERM)."""

    def __init__(self, asked: Asked):
        self.asked, self.wishes = asked, Wishes(lambda: [asked.yes])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.asked.listen()
        self.wishes.begin(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        (asked,) = self.wishes.known()
        if trainer.global_step >= trainer.max_steps:  # of the last step the weights are saved
            return
        if asked:
            end_together()
        self.wishes.ask()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.wishes.end()


class Checkpoints(Checkpoint):
    """The two newest checkpoints, each whole or not at all; never one of weights that are none.

    They are written after the steps ``moments``, when the last is too long ago, and when the run is asked to end (SIGTERM), which
    it then does (in the last step: once its weights are saved). Where such a step is also validated, it is saved after its
    validation: a run that was killed between the two would resume past it, and its line would be missing from the log. What need
    not be this very step waits for the next, as it does until all of several processes know of it (``Wishes``).
    """

    def __init__(self, folder: Path, training: Training, asked: Asked):
        self.folder, self.moments, self.asked = folder, training.saved_after(), asked
        self.validated_every = training.every(training.validations)
        self.seconds = 60 * training.checkpoint_minutes or math.inf
        self.saved = time.monotonic()
        self.wishes = Wishes(lambda: [time.monotonic() - self.saved >= self.seconds, self.asked.yes])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            clear(self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved = time.monotonic()
        self.asked.listen()
        self.wishes.begin(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.wishes.end()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._validated(trainer):
            self._save_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._validated(trainer) and not trainer.sanity_checking:
            self._save_if_due(trainer, pl_module)

    def _validated(self, trainer: pl.Trainer) -> bool:
        every = self.validated_every if trainer.enable_validation else 0
        return bool(every) and trainer.global_step % every == 0

    def _save_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        overdue, asked = self.wishes.known()
        if trainer.global_step >= trainer.max_steps:  # what ends is not continued
            return
        if trainer.global_step in self.moments or ((overdue or asked) and self._at_any(trainer)):
            self._save(trainer, pl_module)
            if asked:
                end_together()
        self.wishes.ask()

    def _at_any(self, trainer: pl.Trainer) -> bool:
        """Whether a step may be saved that is none of the moments."""
        return not self._validated(trainer) or self.validated_every == 1

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer, pl_module)
        for log in (folder.with_name(LOG) for folder in self.kept_in()):
            if trainer.is_global_zero and log.exists():
                settle(log)  # what outlasts a power cut must not be ahead of its log
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:07d}{SUFFIX}", weights_only=False)
        for folder in self.kept_in() if trainer.is_global_zero else ():
            passed = [path for path in numbered(folder) if int(path.stem) <= trainer.global_step]
            for path in passed[KEPT:]:
                remove(path)
        self.saved = time.monotonic()

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to save weights that are no numbers, or that a loss which was none has taught."""
        if isinstance(pl_module, GenerativeModule):
            pl_module.read_losses()
        if not finite(trainer, pl_module):
            raise FloatingPointError(broken(trainer.global_step))

    def kept_in(self) -> Sequence[Path]:
        """The folders that old checkpoints are taken from."""
        return [self.folder]


def agreed(trainer: pl.Trainer, mine: Sequence[bool]) -> list[bool]:
    """What some process wants, known to all at once, for which they wait."""
    if trainer.world_size == 1:
        return list(mine)
    wanted = torch.tensor(mine, dtype=torch.float32, device=trainer.strategy.root_device)
    return [share > 0 for share in trainer.strategy.reduce(wanted, reduce_op="mean").tolist()]


def finite(trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
    """Whether all weights are numbers; every process, each with its shards, comes to the same answer."""
    mine = torch.stack([part.isfinite().all() for part in local(pl_module.parameters())]).all()
    return bool(trainer.strategy.reduce(mine.float(), reduce_op="mean") == 1)


def checkpoints(folder: Path, training: Training, asked: Asked) -> list[pl.Callback]:
    """What saves the training and ends it when it is asked to; where saving is switched off, what ends it."""
    return [Checkpoints(folder, training, asked)] if training.saves else [Ends(asked)]
