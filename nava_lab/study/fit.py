"""Training one run: from the newest checkpoint to averaged weights, and those weights back as a model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nava_lab.attention.attend import check
from nava_lab.config import Config, ConfigError, device_count, from_file
from nava_lab.models.denoiser import Denoiser
from nava_lab.rng import stable_seed
from nava_lab.study.build import Parts, network, parts
from nava_lab.study.warm import start_warm
from nava_lab.training.averaging import averaging
from nava_lab.training.callbacks import MetricsLog, Progress, SameStart, agreed, checkpoints
from nava_lab.training.data import WorldData
from nava_lab.training.ending import Asked
from nava_lab.training.log import LOG_EVERY, read_log, write_log
from nava_lab.training.loggers import finish_loggers, make_logger
from nava_lab.training.machine import Devices, Signals, check_compiler, end_together, of_first, prepare_layers
from nava_lab.training.mishaps import broken, note_step
from nava_lab.training.module import GenerativeModule
from nava_lab.training.per_seed import Each
from nava_lab.training.saved import give_up, newest_checkpoint, readable, whole
from nava_lab.training.sharding import by_the_first, full

Tell = Callable[[str], None]
STACKED_WITH = "stacked_with"


class WallTime(pl.Callback):
    """Seconds of training over all sittings, kept in the checkpoints.

    Of seeds that are trained together each is counted its share of the time, and who was beside it.

    Args:
        seeds: who is trained.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds, self.began = tuple(seeds), time.monotonic()
        self.before = [0.0] * len(self.seeds)
        self.beside: list[list[int]] = [sorted({*self.seeds} - {seed}) for seed in self.seeds]

    @property
    def seconds(self) -> list[float]:
        """Of each seed."""
        share = (time.monotonic() - self.began) / len(self.seeds)
        return [before + share for before in self.before]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        if len(self.seeds) == 1:
            return {"seconds": self.seconds[0], "beside": self.beside[0]}
        return {"seconds": Each(self.seconds), "beside": Each(self.beside)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        seconds, beside = state_dict["seconds"], state_dict.get("beside", [])
        self.before = list(seconds) if isinstance(seconds, Each) else [seconds] * len(self.seeds)
        before = list(beside) if isinstance(beside, Each) else [beside] * len(self.seeds)
        self.beside = [sorted({*own, *others}) for own, others in zip(self.beside, before, strict=True)]

    def about(self, number: int, steps: int) -> dict[str, str]:
        """What is written beside a seed's weights."""
        found = {"wall_time_s": f"{self.seconds[number]:.3f}", "steps": str(steps)}
        return found | ({STACKED_WITH: json.dumps(self.beside[number])} if self.beside[number] else {})


def train(config: Config, built: Parts, folder: Path, tell: Tell = print, watchers: Sequence[pl.Callback] = ()) -> None:
    """Train from the newest readable checkpoint, or from the start, and save the averaged weights.

    ``watchers`` see the training and may end it, with an error of their own. Asked to end (SIGTERM), it does so once what was
    trained is safe.
    """
    torch.manual_seed(stable_seed("init", config.seed))
    model, newest = network(config, built.solution), start_of(folder / "checkpoints", tell)
    if config.warm_start.path and newest is None:
        start_warm(config, model, tell)
    machine, on = config.trainer, devices_of(config)
    if machine.compile:
        check_compiler(machine.accelerator)
    prepare_layers(model, machine.compile, machine.checkpoint_activations)
    module = GenerativeModule(model, built.objective, built.drawing, config.training, config.seed, machine.accumulate, on.sharded)
    clock, asked = WallTime([config.seed]), Asked()
    check(config.attention.backend, machine.accelerator, gradients=True)
    same = SameStart(folder / "checkpoints", newest)
    trainer = trainer_of(config, folder, [clock, same, *callbacks_of(config, folder, asked), *watchers])
    if newest is not None:
        tell(f"{folder.name}: continuing from {newest.name}")
    if trainer.is_global_zero:
        sit_down(folder, config, newest, tell)
    with asked.listening():
        fit(trainer, module, WorldData(config.world, config.training, config.seed), newest)
        save_trained(trainer, module, folder, clock)
        (ends,) = agreed(trainer, [asked.yes])
    if ends or asked.yes:  # nothing is agreed on from here on: who is asked as late as this ends by itself
        end_together()


def start_of(folder: Path, tell: Tell) -> Path | None:
    """The checkpoint that a training goes on from: the first process's newest readable one, None for none.

    Also None where this process cannot read the one that the first has chosen: ``SameStart`` then has all of them refuse.
    """
    if dist.is_initialized() and dist.get_rank():
        name = of_first(None)
        return readable(folder / name) if name else None
    newest = newest_checkpoint(folder, tell)
    of_first(newest and newest.name)
    return newest


def save_trained(trainer: pl.Trainer, module: GenerativeModule, folder: Path, clock: WallTime) -> None:
    """Save the averaged weights; FloatingPointError where they are no numbers, and what writing meets, in all processes."""
    try:
        weights = {name: full(part) for name, part in module.network.state_dict().items()}  # of shards, all processes must ask
        if not all(bool(part.isfinite().all()) for part in weights.values()):  # of the last step: no later loss tells of it
            raise FloatingPointError(broken(trainer.global_step))
        about = clock.about(0, trainer.global_step)
        by_the_first(trainer.strategy, lambda: save_weights(folder / "model.safetensors", weights, about))
    except Exception as error:
        note_step(error, trainer.global_step)
        raise


def fit(trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, start: Path | None) -> None:
    """Train from a checkpoint, or from the start, to the end; an error, or who ends it, is told how far it came."""
    try:
        trainer.fit(module, data, ckpt_path=start, weights_only=True)
    except SystemExit as ended:
        by_hand = ended.code == 1  # how Lightning ends after Ctrl-C
        error = KeyboardInterrupt() if by_hand else ended
        note_step(error, trainer.global_step)
        raise error from None
    except Exception as error:
        note_step(error, trainer.global_step)
        raise
    finally:
        if trainer.is_global_zero:
            finish_loggers(trainer.loggers)


def callbacks_of(config: Config, folder: Path, asked: Asked) -> list[pl.Callback]:
    """What watches every training: log, average, bar, checkpoints, who asks it to end."""
    bar = [Progress(config.training.steps, f"{config.variant.name} s{config.seed}")] if config.output.progress else []
    kept = checkpoints(folder / "checkpoints", config.training, asked)
    return [MetricsLog(folder / "metrics.jsonl"), *averaging(config.training), *bar, *kept]


def trainer_of(
    config: Config, folder: Path, callbacks: list[pl.Callback], logger: Any = None, plugins: list[Any] | None = None
) -> pl.Trainer:
    """Lightning's trainer for this machine; ConfigError where it has no such one.

    Args:
        config: of the run.
        folder: of the run.
        callbacks: what watches it.
        logger: in place of the config's.
        plugins: in place of the machine's.
    """
    machine, training, on = config.trainer, config.training, devices_of(config)
    try:
        trainer = pl.Trainer(
            max_steps=training.steps,
            max_epochs=-1,
            accelerator=machine.accelerator,
            devices=machine.devices,
            num_nodes=machine.nodes,
            strategy=on.lightning(),
            plugins=on.plugins() if plugins is None else plugins,
            precision=machine.precision,  # type: ignore[arg-type]
            gradient_clip_val=training.clip_norm,
            callbacks=callbacks,
            logger=make_logger(config.logger.kind, config.logger.project, folder) if logger is None else logger,
            val_check_interval=training.every(training.validations) or None,
            check_val_every_n_epoch=None,
            limit_val_batches=None if training.validations and config.world.count("validation") != 0 else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=LOG_EVERY,
            enable_model_summary=False,
            enable_progress_bar=config.output.progress,
            enable_checkpointing=training.saves,
            default_root_dir=folder,
            use_distributed_sampler=False,
        )
    except (pl.utilities.exceptions.MisconfigurationException, RuntimeError, ValueError) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from None
    trainer._signal_connector = Signals(trainer)
    return trainer


MACHINES = "machines.jsonl"


def sit_down(folder: Path, config: Config, newest: Path | None, tell: Tell) -> None:
    """Make the folder one of a run that has come as far as its newest checkpoint, and note the machine if it is another."""
    step = int(newest.stem) if newest else 0
    give_up(folder / "checkpoints", step, tell)
    before, now = machines(folder), dict(config.resolved["trainer"])
    kept = [one for one in before if one["from_step"] < step]
    if not kept or {key: value for key, value in kept[-1].items() if key != "from_step"} != now:
        kept.append({"from_step": step, **now})
    if kept != before:
        write_log(folder / MACHINES, kept)


def machines(folder: Path) -> list[dict[str, Any]]:
    """The machines that a run was trained on, one after the other, each from which step on."""
    return read_log(folder / MACHINES)


def devices_of(config: Config) -> Devices:
    """What a run trains on."""
    machine = config.trainer
    each = device_count(machine) // machine.nodes
    return Devices(machine.accelerator, each, machine.nodes, machine.strategy)


def save_weights(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """One safetensors file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(dict(weights), temporary, metadata=dict(about))
    except SafetensorError as error:  # its own kind, also where the disk is full
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from None
    temporary.chmod(0o644)  # safetensors writes files that their owner alone can read
    temporary.replace(path)


def load_model(
    folder: Path, config: Config | None = None, tell: Tell = print, built: Parts | None = None
) -> tuple[Denoiser, int, float]:
    """A run's averaged weights, from its finished model or else its newest checkpoint; with steps and seconds trained."""
    from safetensors import safe_open

    config = config or from_file(folder / "config.yaml")
    model = network(config, (built or parts(config)).solution)
    path = folder / "model.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            about = file.metadata()
        model.load_state_dict(load_file(path))
        return model.eval(), int(about["steps"]), float(about["wall_time_s"])
    newest = newest_checkpoint(folder / "checkpoints", tell)
    if newest is None:
        raise ConfigError(f"{folder} holds neither model.safetensors nor a checkpoint: train it first")
    saved = whole(newest)
    model.load_state_dict(weights_of(saved))
    tell(f"{folder.name} is not finished: using {newest.name} (step {saved['global_step']})")
    seconds = next((state["seconds"] for key, state in saved["callbacks"].items() if key.startswith("WallTime")), 0.0)
    return model.eval(), int(saved["global_step"]), float(seconds)


def stacked_with(folder: Path) -> list[int]:
    """The seeds that a finished training shared steps with; none for a training of its own."""
    from safetensors import safe_open

    path = folder / "model.safetensors"
    if not path.exists():
        return []
    with safe_open(path, "pt") as file:
        found: list[int] = json.loads(file.metadata().get(STACKED_WITH, "[]"))
    return found


def weights_of(saved: Mapping[str, Any], averaged: bool = True) -> dict[str, Tensor]:
    """The network's weights in a checkpoint: their average, or as they are being trained."""
    state = saved["state_dict"] if averaged else saved.get("current_model_state", saved["state_dict"])
    prefix = "network."
    return {name.removeprefix(prefix): part for name, part in state.items() if name.startswith(prefix)}
