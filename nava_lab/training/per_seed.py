"""What a stacked training leaves of each seed, where its single run would leave it: log lines, logger's metrics, checkpoints.

A checkpoint of several seeds is written as one file per seed, each what Lightning writes of that seed's single run, so that a seed
can be continued alone, and runs that were begun alone together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.loggers import Logger
from torch import Tensor

from nava_lab.training.callbacks import MetricsLog
from nava_lab.training.stacked import StackedModule, unstacked

WEIGHTS = ("state_dict", "current_model_state")  # of a checkpoint: stacked tensor by tensor


class Each(list):
    """Something of which every seed has its own, in the order of the stack."""


class SeedLog(MetricsLog):
    """One seed's metrics log, and its learning rate to its own logger."""

    def __init__(self, path: Path, seed: int, logger: Logger | None):
        super().__init__(path)
        self.seed, self.logger = seed, logger
        self.mark = StackedModule.mark(seed)

    def loggers(self, trainer: pl.Trainer) -> Sequence[Logger]:
        return [] if self.logger is None else [self.logger]

    def values(self, trainer: pl.Trainer, prefix: str) -> dict[str, float]:
        found = super().values(trainer, self.mark + prefix)
        return {name.removeprefix(self.mark): value for name, value in found.items()}

    def silent(self, trainer: pl.Trainer) -> bool:
        """Whether the seed has fallen: its single run would have ended."""
        module = trainer.lightning_module
        return isinstance(module, StackedModule) and self.seed in module.fallen


class SeedLogger(Logger):
    """A logger that is told one seed's metrics alone, by the names of a single run."""

    def __init__(self, inner: Logger, seed: int):
        super().__init__()
        self.inner, self.mark = inner, StackedModule.mark(seed)

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


class SeedFiles(CheckpointIO):
    """Writes a stacked checkpoint as one per seed, and reads it from them.

    Args:
        folders: of each seed's checkpoints, in the order of the stack; Lightning is told the first seed's.
        fallen: seeds of which nothing is written or removed any more; it may grow.
        start: the checkpoints to read, in the order of the stack.
        inner: who writes a file.
    """

    def __init__(
        self,
        folders: Mapping[int, Path],
        fallen: Mapping[int, str],
        start: Sequence[Path] = (),
        inner: CheckpointIO | None = None,
    ):
        self.folders = {seed: folder.resolve() for seed, folder in folders.items()}
        self.fallen, self.start, self.inner = fallen, tuple(start), inner or TorchCheckpointIO()

    @property
    def lead(self) -> Path:
        return next(iter(self.folders.values()))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        for number, (seed, folder) in enumerate(self.folders.items()):
            if seed not in self.fallen:
                own = of_seed(checkpoint, number, {str(self.lead): str(folder)})
                self.inner.save_checkpoint(own, folder / Path(path).name, storage_options)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        where = map_location or "cpu"
        parts = [self.inner.load_checkpoint(file, where, weights_only) for file in self.start]
        return of_seeds(parts, [{str(folder): str(self.lead)} for folder in self.folders.values()])

    def remove_checkpoint(self, path: Any) -> None:
        for seed, folder in self.folders.items():
            if seed not in self.fallen:
                self.inner.remove_checkpoint(folder / Path(path).name)


def of_seed(checkpoint: Mapping[str, Any], number: int, moved: Mapping[str, str]) -> dict[str, Any]:
    """One seed's checkpoint out of a stacked one; ``moved`` says which folder's paths become which."""
    made = {key: _own(value, number, moved) for key, value in checkpoint.items() if key not in WEIGHTS}
    made |= {key: unstacked(checkpoint[key], number) for key in WEIGHTS if key in checkpoint}
    made["optimizer_states"] = [
        {**state, "state": {key: _slots(slots, number) for key, slots in state["state"].items()}}
        for state in checkpoint["optimizer_states"]
    ]
    return made


def of_seeds(parts: Sequence[Mapping[str, Any]], moved: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A stacked checkpoint out of each seed's, all of one step; what they count alike is the first's."""
    made = dict(_own(parts[0], 0, moved[0]))
    for key in WEIGHTS:
        if key in made:
            made[key] = {name: torch.stack([part[key][name] for part in parts]) for name in made[key]}
    callbacks = [_own(part["callbacks"], 0, names) for part, names in zip(parts, moved, strict=True)]
    made["callbacks"] = _joined(callbacks)
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


def _own(value: Any, number: int, moved: Mapping[str, str]) -> Any:
    """A tree with a seed's own of what each has, and with paths moved."""
    if isinstance(value, Each):
        return value[number]
    if isinstance(value, dict):
        return {_own(key, number, moved): _own(inner, number, moved) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_own(inner, number, moved) for inner in value)
    if isinstance(value, str):
        for old, new in moved.items():
            if value == old or value.startswith(f"{old}/"):
                return new + value.removeprefix(old)
    return value


def _joined(values: Sequence[Any]) -> Any:
    """Trees of one make as one: numbers and lists that differ as ``Each``, all else as the first has it."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _joined([value.get(key, inner) for value in values]) for key, inner in first.items()}
    differ = isinstance(first, int | float | list) and any(value != first for value in values)
    return Each(values) if differ else first
