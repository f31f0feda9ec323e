"""The LightningDataModule: indices travel, clips are rendered where training happens."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from nava_lab.streams import Batch
from nava_lab.training.settings import Training
from nava_lab.worlds.base import World


class Indices(IterableDataset):
    """Rows of clip numbers, one per step; step s of the run holds clips ``s B`` to ``(s + 1) B - 1``, whoever counts.

    Each process takes its share of every row, so the global batch is the same on any number of devices. It has no
    length on purpose: Lightning counts a resumed epoch's batches from the epoch's start and would stop early.
    """

    def __init__(self, first_step: int, steps: int, batch_size: int, rank: int, world_size: int):
        if batch_size % world_size:
            raise ValueError(f"training.batch_size={batch_size} does not divide among {world_size} devices")
        self.first, self.steps, self.batch_size, self.rank, self.world_size = (
            first_step,
            steps,
            batch_size,
            rank,
            world_size,
        )

    def __iter__(self) -> Iterator[Tensor]:
        share = self.batch_size // self.world_size
        for step in range(self.first, self.steps):
            start = step * self.batch_size + self.rank * share
            yield torch.arange(start, start + share)


class WorldData(pl.LightningDataModule):
    """A world's training and validation clips.

    A resumed training begins its row of indices at the step that it resumes from: the position is the optimiser's step
    count, so nothing else needs saving.
    """

    def __init__(self, world: World, training: Training):
        super().__init__()
        self.world = world
        self.training_config = training

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        config = self.training_config
        rows = Indices(trainer.global_step, config.steps, config.batch_size, trainer.global_rank, trainer.world_size)
        return DataLoader(rows, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        size = min(self.training_config.batch_size, self.training_config.validation_clips)
        size -= size % trainer.world_size
        if size < 1:
            raise ValueError(f"training.validation_clips and batch_size must be at least {trainer.world_size}, one per device")
        rows = Indices(0, self.training_config.validation_clips // size, size, trainer.global_rank, trainer.world_size)
        return DataLoader(rows, batch_size=None)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Batch:
        trainer = self.trainer
        assert trainer is not None
        return self.world.batch("validation" if trainer.validating else "train", batch)
