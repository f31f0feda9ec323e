"""The LightningDataModule: indices travel, clips are rendered where training happens."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from nava_lab.rng import stable_seed
from nava_lab.streams import Batch
from nava_lab.training.settings import Training
from nava_lab.worlds.base import World


class Indices(IterableDataset):
    """Rows of clip numbers, one per step: ``clips`` numbers from ``first`` on, ``batch_size`` in a row (the last may hold fewer).

    Each process takes its share of every row, so the global batch is the same on any number of devices. It has no
    length on purpose: Lightning counts a resumed epoch's batches from the epoch's start and would stop early.
    """

    def __init__(self, first: int, clips: int, batch_size: int, rank: int, world_size: int):
        if batch_size % world_size or clips % world_size:
            raise ValueError(
                f"training.batch_size={batch_size} and the {clips} clips it runs over must divide among {world_size} devices"
            )
        self.first, self.clips, self.batch_size, self.rank, self.world_size = first, clips, batch_size, rank, world_size

    def __iter__(self) -> Iterator[Tensor]:
        for done in range(0, self.clips, self.batch_size):
            share = min(self.batch_size, self.clips - done) // self.world_size
            start = self.first + done + self.rank * share
            yield torch.arange(start, start + share)


def first_clip(seed: int) -> int:
    """The number of a run's first training clip: runs of one seed see the same clips in the same order, other seeds others."""
    return stable_seed("training clips", seed) % 2**40


class WorldData(pl.LightningDataModule):
    """A world's training and validation clips.

    A resumed training begins its row of indices at the step that it resumes from: the position is the optimiser's step
    count, so nothing else needs saving. Validation clips are the same for every seed.
    """

    def __init__(self, world: World, training: Training, seed: int):
        super().__init__()
        self.seed = seed
        self.world = world
        self.training_config = training

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.training_rows(self.seed), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.validation_rows(), batch_size=None)

    def training_rows(self, seed: int) -> Indices:
        """A seed's clips from the step on that the training has reached."""
        trainer = self.trainer
        assert trainer is not None
        config = self.training_config
        done = trainer.global_step
        first = first_clip(seed) + done * config.batch_size
        clips = (config.steps - done) * config.batch_size
        return Indices(first, clips, config.batch_size, trainer.global_rank, trainer.world_size)

    def validation_rows(self) -> Indices:
        trainer = self.trainer
        assert trainer is not None
        config = self.training_config
        return Indices(0, config.validation_clips, config.batch_size, trainer.global_rank, trainer.world_size)

    def transfer_batch_to_device(self, batch: Tensor, device: torch.device, dataloader_idx: int) -> Batch:
        trainer = self.trainer
        assert trainer is not None
        return self.world.sent("validation" if trainer.validating else "train", batch, device)
