"""One run from config to record: train (or continue), sample, score, write everything down.

A run's folder::

    config.yaml         the resolved config
    identity.json       hashes of config, code and data
    metrics.jsonl       the log, one line per logged step
    checkpoints/        the two newest
    model.safetensors   the averaged weights, once training is done
    previews/           clip_0.mp4, clip_0.png, ...
    per_clip.json       per-clip values for pairing runs
    record.json         the result; there once everything is
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file, save_file

from nava_lab.attention.attend import check
from nava_lab.config import Config, ConfigError, from_file
from nava_lab.evaluation.previews import write_previews
from nava_lab.evaluation.protocol import Result, evaluate
from nava_lab.evaluation.score import Score
from nava_lab.flow.agreement import disagreements
from nava_lab.flow.guidance.algebra import OFF
from nava_lab.models.denoiser import Denoiser
from nava_lab.registry import metrics
from nava_lab.rng import stable_seed
from nava_lab.study import record
from nava_lab.study.build import Parts, network, parts
from nava_lab.study.identity import code_fingerprint, git_revision, run_hash, run_name, variant_fingerprint
from nava_lab.training.callbacks import MetricsLog, Progress, averaging, checkpoints, newest_checkpoint
from nava_lab.training.data import WorldData
from nava_lab.training.loggers import make_logger
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


def identify(config: Config) -> dict[str, str]:
    data = config.world.data_version()
    return {
        "config": run_hash(config.resolved, data),
        "code": code_fingerprint(),
        "variant_code": variant_fingerprint(config.variant.name),
        "revision": git_revision(),
        "data": data,
        "torch": torch.__version__,
    }


def prepared(config: Config) -> Parts:
    """Make the data ready and build what a run needs; whatever would fail after training is refused here."""
    config.world.prepare()
    held_out = config.world.count("test")
    if held_out is not None and held_out < 2:
        raise ConfigError(
            f"world {config.world.name} holds out {held_out} clips for the test and scores need 2: raise world.test_share"
        )
    return parts(config)


def run(config: Config, tell: Tell = print) -> Path:
    """Train, sample and score; continue a killed run, and leave a finished one as it is. Returns the run's folder."""
    built = prepared(config)
    for line in scoring_record(config, built).get("unlike_training", ()):
        tell(f"warning: {line}")
    identity = identify(config)
    folder = Path(config.output.root) / run_name(config.resolved, identity["data"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not _ours(folder, identity, tell):
            folder.mkdir(exist_ok=True)
            (folder / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved), sort_keys=False), encoding="utf-8")
            record.write_json(folder / "identity.json", identity)
        if (folder / record.NAME).exists():
            tell(f"{folder.name}: already finished, nothing to do")
            return folder
        if not (folder / "model.safetensors").exists():
            train(config, built, folder, tell)
        if not _leave_group():
            score(config, folder, tell, built)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes must not write one run; the processes of one distributed training count as one."""
    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"{folder} is being trained by another process; wait for it, or change a setting") from None


def _leave_group() -> int:
    """End a distributed training's process group, so that the first process may go on alone; returns this one's rank."""
    if not torch.distributed.is_initialized():
        return 0
    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()
    return rank


def _ours(folder: Path, identity: dict[str, str], tell: Tell) -> bool:
    """Whether the folder exists and was made by this very code; one made by other code is put aside under its own name."""
    path = folder / "identity.json"
    if not path.exists():
        return False
    old = yaml.safe_load(path.read_text(encoding="utf-8"))
    if all(old.get(key) == identity[key] for key in ("code", "variant_code")):
        return True
    aside = folder.with_name(f"{folder.name}.code-{old['code']}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.code-{old['code']}-{number}")
    folder.rename(aside)
    tell(f"{folder.name} was made by other code (revision {old['revision']}): kept as {aside.name}, starting afresh")
    return False


def train(config: Config, built: Parts, folder: Path, tell: Tell = print) -> None:
    """Train from the newest readable checkpoint, or from the start, and save the averaged weights."""
    torch.manual_seed(stable_seed("init", config.seed))
    module = GenerativeModule(network(config, built.solution), built.objective, built.drawing, config.training, config.seed)
    if config.trainer.compile:
        module.network.compile()
    clock = WallTime()
    callbacks = [clock, MetricsLog(folder / "metrics.jsonl"), *averaging(config.training)]
    if config.output.progress:
        callbacks.append(Progress(config.training.steps, f"{config.variant.name} s{config.seed}"))
    callbacks += checkpoints(folder / "checkpoints", config.training)
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


def score(
    config: Config, folder: Path, tell: Tell = print, built: Parts | None = None, into: Path | None = None
) -> dict[str, Any]:
    """Sample, score and write previews, per-clip values and (if the run is finished) the record; returns the record.

    ``into`` is where they go if not into the run's own folder: a scoring by other settings, which ``compare`` takes like a run.
    """
    built = built or parts(config)
    for line in scoring_record(config, built).get("unlike_training", ()) if into is not None else ():
        tell(f"warning: {line}")
    model, steps, seconds = load_model(folder, config, tell, built)
    device = device_of(config)
    model = model.to(device)
    result = evaluate(
        model,
        config.world,
        built.protocol,
        built.objective,
        built.scoring,
        config.seed,
        device,
        keep=max(1, config.evaluation.previews),
        progress=_bar(config.output.progress, folder.name),
    )
    made = _record(config, built, folder, steps, seconds, result, str(device), tell)
    folder = into or folder
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        (into / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved), sort_keys=False), encoding="utf-8")
    names = write_previews(folder / "previews", config.world, result.first, _captions(config, result), config.evaluation.previews)
    tell(f"{folder.name}: {len(names)} previews in {folder / 'previews'}")
    record.write_json(folder / "per_clip.json", {key: np.asarray(part).tolist() for key, part in result.per_clip.items()})
    if steps >= config.training.steps:
        record.write_json(folder / record.NAME, made)
    return made


def scoring_record(config: Config, built: Parts) -> dict[str, Any]:
    """How samples are made and counted, as the record keeps it; what is switched off is left out, but for guidance ("off")."""
    protocol, modalities = built.protocol, tuple(config.world.interface().modalities)
    sampler, given = protocol.sampler, [protocol.given] if protocol.given else []
    scoring = config.resolved["evaluation"]
    settings = {key: value for key, value in scoring["solver"].items() if key != "name"}
    told = disagreements(sampler, built.drawing, [name for name in modalities if name not in given])
    seldom = {
        "solver_settings": settings,
        "schedule": {} if scoring["schedule"]["name"] == "uniform" else scoring["schedule"],
        "shifts": dict(sampler.shifts),
        "schedules": dict(scoring["schedules"]),
        "given": protocol.given,
        "unlike_training": told,
    }
    return {
        "split": protocol.split,
        "clips": protocol.clips,
        "solver": sampler.solver.name,
        "evaluations": sampler.evaluations(modalities, given),
        "shift": sampler.shift,
        "guidance": scoring["guidance"] or OFF,
        "modalities_cut": sampler.cut,
        "loss_clips": protocol.loss_clips,
        **{key: value for key, value in seldom.items() if value},
    }


def _captions(config: Config, result: Result) -> list[str]:
    count = len(next(iter(result.first.values()), []))
    caption = getattr(config.world, "captions", None)
    return caption("test", torch.arange(count)) if caption else [""] * count


def device_of(config: Config) -> torch.device:
    """Where a run is scored and sampled: on the kind of device that it was trained on, or CPU where that is missing."""
    return torch.device("cuda" if config.trainer.accelerator == "cuda" and torch.cuda.is_available() else "cpu")


def _bar(shown: bool, name: str) -> Callable[[str, int, int], None] | None:
    if not shown:
        return None
    from rich.progress import Progress as Bar

    bar = Bar(transient=True)
    tasks: dict[str, Any] = {}

    def advance(what: str, done: int, of: int) -> None:
        if what not in tasks:
            bar.start()
            tasks[what] = bar.add_task(f"{name}: {what}", total=of)
        bar.update(tasks[what], completed=done)
        if done >= of:
            bar.stop()

    return advance


def _higher_is_better(config: Config) -> bool:
    """The direction that the headline's metric declares."""
    directions: dict[str, bool] = {}
    for name in config.world.metrics:
        directions |= metrics.get(name).higher_is_better_by_score
    return directions.get(config.world.headline, True)


def _record(
    config: Config, built: Parts, folder: Path, steps: int, seconds: float, result: Result, device: str, tell: Tell
) -> dict[str, Any]:
    cost, budget = built.solution.cost, built.solution.budget
    now = identify(config)
    path = folder / "identity.json"
    trained = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    if any(trained.get(key) != now[key] for key in ("code", "variant_code")):
        tell(f"{folder.name} was trained by other code (revision {trained['revision']}) than scores it now")
    return {
        "schema": record.SCHEMA_VERSION,
        "name": folder.name,
        "variant": config.variant.name,
        "world": config.world.name,
        "seed": config.seed,
        "identity": trained,
        "budget": {"kind": budget.kind, "requested": budget.requested, "realised": built.solution.realised},
        "size": {"width": built.solution.size.width, "hidden": built.solution.size.hidden},
        "parameters": {"total": cost.total, "active_per_token": cost.active_per_token, "groups": dict(cost.groups)},
        "flops_per_sample": cost.flops_per_sample,
        "steps": steps,
        "samples_seen": steps * config.training.batch_size,
        "wall_time_s": round(seconds, 3),
        "evaluation": {**scoring_record(config, built), "code": now["code"], "device": device},
        "headline": config.world.headline,
        "higher_is_better": _higher_is_better(config),
        "scores": _as_json(result.scores),
        "truth": _as_json(result.truth),
    }


def _as_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Scores as plain values, null where a number is not defined."""
    return {
        name: {key: value if value == value else None for key, value in part.to_dict().items()} for name, part in scores.items()
    }
