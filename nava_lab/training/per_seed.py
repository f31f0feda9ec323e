"""What a stacked training leaves of each seed, where its single run would leave it: log lines, logger's metrics, checkpoints.

A checkpoint of several seeds is one file per seed, each what Lightning writes of that seed's single run, so that a seed
can be continued alone, and runs that were begun alone together.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from nava_lab.training.callbacks import Checkpoints, MetricsLog
from nava_lab.training.ending import Asked
from nava_lab.training.saved import Files, clear
from nava_lab.training.settings import Training
from nava_lab.training.stacked import StackedModule, unstacked

WEIGHTS = ("state_dict", "current_model_state")  # of a checkpoint: stacked tensor by tensor


class Each(list):
    """Something of which every seed has its own, in the order of the stack."""


class SeedLog(MetricsLog):
    """One seed's metrics log, and its learning rate to its own logger; silent once the seed has fallen."""

    def __init__(self, path: Path, seed: int, logger: Logger | None):
        super().__init__(path)
        self.seed, self.logger = seed, logger
        self.mark = StackedModule.mark(seed)

    def loggers(self, trainer: pl.Trainer) -> Sequence[Logger]:
        return [] if self.logger is None else [self.logger]

    def values(self, trainer: pl.Trainer, prefix: str) -> dict[str, float] | None:
        module = trainer.lightning_module
        if isinstance(module, StackedModule) and self.seed in module.fallen:
            return None
        found = super().values(trainer, self.mark + prefix) or {}
        return {name.removeprefix(self.mark): value for name, value in found.items()}


class SeedLogger(Logger):
    """A logger that is told one seed's metrics alone, by the names of a single run; none once the seed has fallen."""

    def __init__(self, inner: Logger, seed: int, fallen: Container[int]):
        super().__init__()
        self.inner, self.seed, self.fallen, self.mark = inner, seed, fallen, StackedModule.mark(seed)

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        return self.inner.version

    @property
    def save_dir(self) -> str | None:
        return self.inner.save_dir

    @property
    def experiment(self) -> Any:
        """What the logger itself writes to."""
        return self.inner.experiment  # type: ignore[attr-defined]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.seed in self.fallen:
            return
        own = {name.removeprefix(self.mark): value for name, value in metrics.items() if name.startswith(self.mark)}
        shared = {name: value for name, value in metrics.items() if "/" not in name}
        if own or "lr" in shared:
            self.inner.log_metrics(shared | own, step)

    def log_hyperparams(self, *given: Any, **named: Any) -> None:
        self.inner.log_hyperparams(*given, **named)

    def save(self) -> None:
        self.inner.save()

    def finalize(self, status: str) -> None:
        self.inner.finalize(status)


class SeedFiles(Files):
    """Writes a stacked checkpoint as one per seed, and reads it from them.

    Args:
        folders: of each seed's checkpoints, in the order of the stack.
        fallen: seeds of which nothing is written any more; it may grow.
        start: the checkpoints to read, in the order of the stack.
    """

    def __init__(self, folders: Mapping[int, Path], fallen: Mapping[int, str], start: Sequence[Path] = ()):
        super().__init__()
        self.folders, self.fallen, self.start = folders, fallen, tuple(start)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        for number, (seed, folder) in enumerate(self.folders.items()):
            if seed not in self.fallen:
                super().save_checkpoint(of_seed(checkpoint, number), folder / Path(path).name, storage_options)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return of_seeds([super(SeedFiles, self).load_checkpoint(file, map_location, weights_only) for file in self.start])


class SeedCheckpoints(Checkpoints):
    """Every seed's two newest checkpoints, but for seeds that have fallen, which keep those that they have.

    Old ones go when all seeds have the new one: wherever a training is killed, there is a step that all seeds have.
    """

    def __init__(self, folders: Mapping[int, Path], training: Training, asked: Asked):
        super().__init__(next(iter(folders.values())), training, asked)
        self.folders = folders

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for folder in self.folders.values():
            clear(folder)

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, StackedModule)
        pl_module.note_broken_weights()
        self.left = [folder for seed, folder in self.folders.items() if seed not in pl_module.fallen]

    def kept_in(self) -> Sequence[Path]:
        return self.left


def of_seed(checkpoint: Mapping[str, Any], number: int) -> dict[str, Any]:
    """One seed's checkpoint out of a stacked one."""
    made = {key: _own(value, number) for key, value in checkpoint.items() if key not in WEIGHTS}
    made |= {key: unstacked(checkpoint[key], number) for key in WEIGHTS if key in checkpoint}
    made["optimizer_states"] = [
        {**state, "state": {key: _slots(slots, number) for key, slots in state["state"].items()}}
        for state in checkpoint["optimizer_states"]
    ]
    return made


def of_seeds(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A stacked checkpoint out of each seed's, all of one step; what they count alike is the first's."""
    made = dict(parts[0])
    for key in WEIGHTS:
        if key in made:
            made[key] = {name: torch.stack([part[key][name] for part in parts]) for name in made[key]}
    made["callbacks"] = _joined([part["callbacks"] for part in parts])
    made["optimizer_states"] = [dict(state) for state in made["optimizer_states"]]
    for at, state in enumerate(made["optimizer_states"]):
        of = [part["optimizer_states"][at]["state"] for part in parts]
        state["state"] = {
            key: {name: torch.stack([slots[key][name] for slots in of]) if part.ndim else part for name, part in first.items()}
            for key, first in of[0].items()
        }
    return made


def _slots(slots: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """What the optimiser keeps of one seed's parameter; it counts steps alike for all."""
    return {name: part[number].clone() if part.ndim else part for name, part in slots.items()}


def _own(value: Any, number: int) -> Any:
    """A tree with a seed's own of what each has."""
    if isinstance(value, Each):
        return value[number]
    if isinstance(value, dict):
        return {key: _own(inner, number) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_own(inner, number) for inner in value)
    return value


def _joined(values: Sequence[Any]) -> Any:
    """Trees of one make as one: numbers and lists that differ as ``Each``, all else as the first has it."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _joined([value.get(key, inner) for value in values]) for key, inner in first.items()}
    differ = isinstance(first, int | float | list) and any(value != first for value in values)
    return Each(values) if differ else first
