"""Training one run: from the newest checkpoint to averaged weights, and those weights back as a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from safetensors.torch import load_file, save_file

from nava_lab.attention.attend import check
from nava_lab.config import Config, ConfigError, from_file
from nava_lab.models.denoiser import Denoiser
from nava_lab.rng import stable_seed
from nava_lab.study.build import Parts, network, parts
from nava_lab.study.warm import start_warm
from nava_lab.training.callbacks import MetricsLog, Progress, averaging, checkpoints, newest_checkpoint
from nava_lab.training.data import WorldData
from nava_lab.training.loggers import finish_loggers, make_logger
from nava_lab.training.module import GenerativeModule

Tell = Callable[[str], None]


class WallTime(pl.Callback):
    """Seconds of training over all sittings, kept in the checkpoints."""

    def __init__(self) -> None:
        self.before, self.began = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.monotonic()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.before = state_dict["seconds"]


def train(config: Config, built: Parts, folder: Path, tell: Tell = print, watchers: Sequence[pl.Callback] = ()) -> None:
    """Train from the newest readable checkpoint, or from the start, and save the averaged weights.

    ``watchers`` see the training and may end it, with an error of their own.
    """
    torch.manual_seed(stable_seed("init", config.seed))
    model = network(config, built.solution)
    if config.warm_start.path and newest_checkpoint(folder / "checkpoints", tell) is None:
        start_warm(config, model, tell)
    module = GenerativeModule(model, built.objective, built.drawing, config.training, config.seed)
    if config.trainer.compile:
        module.network.compile()
    clock = WallTime()
    callbacks = [clock, MetricsLog(folder / "metrics.jsonl"), *averaging(config.training)]
    if config.output.progress:
        callbacks.append(Progress(config.training.steps, f"{config.variant.name} s{config.seed}"))
    callbacks += [*checkpoints(folder / "checkpoints", config.training), *watchers]
    machine = config.trainer
    check(config.attention.backend, machine.accelerator, gradients=True)
    try:
        trainer = pl.Trainer(
            max_steps=config.training.steps,
            max_epochs=-1,
            accelerator=machine.accelerator,
            devices=machine.devices,
            strategy=machine.strategy,
            precision=machine.precision,  # type: ignore[arg-type]
            gradient_clip_val=config.training.clip_norm,
            callbacks=callbacks,
            logger=make_logger(config.logger.kind, config.logger.project, folder),
            val_check_interval=config.training.every(config.training.validations) or None,
            check_val_every_n_epoch=None,
            limit_val_batches=None if config.training.validations and config.world.count("validation") != 0 else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            enable_model_summary=False,
            enable_progress_bar=config.output.progress,
            enable_checkpointing=bool(config.training.checkpoints),
            default_root_dir=folder,
            use_distributed_sampler=False,
        )
    except (pl.utilities.exceptions.MisconfigurationException, ValueError) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from None
    newest = newest_checkpoint(folder / "checkpoints", tell)
    if newest is not None:
        tell(f"{folder.name}: continuing from {newest.name}")
    try:
        trainer.fit(module, WorldData(config.world, config.training, config.seed), ckpt_path=newest, weights_only=True)
    except SystemExit:  # how Lightning ends after Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        if trainer.is_global_zero:
            finish_loggers(trainer.loggers)
    if trainer.is_global_zero:
        weights = {name: part.detach().cpu().contiguous() for name, part in module.network.state_dict().items()}
        temporary = folder / ".model.tmp"
        save_file(weights, temporary, metadata={"wall_time_s": f"{clock.seconds:.3f}", "steps": str(trainer.global_step)})
        temporary.chmod(0o644)  # safetensors writes files that their owner alone can read
        temporary.replace(folder / "model.safetensors")


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
    saved = torch.load(newest, map_location="cpu", weights_only=True)
    prefix = "network."
    model.load_state_dict(
        {name.removeprefix(prefix): part for name, part in saved["state_dict"].items() if name.startswith(prefix)}
    )
    tell(f"{folder.name} is not finished: using {newest.name} (step {saved['global_step']})")
    seconds = next((state["seconds"] for key, state in saved["callbacks"].items() if key.startswith("WallTime")), 0.0)
    return model.eval(), int(saved["global_step"]), float(seconds)
