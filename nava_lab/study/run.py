"""One run from config to record: train (or continue), sample, score, write everything down.

A run's folder::

    config.yaml         the resolved config
    identity.json       hashes of config, code and data
    failed.json         why it stopped, where it failed by itself
    metrics.jsonl       the log, one line per logged step
    checkpoints/        the two newest
    model.safetensors   the averaged weights, once training is done
    previews/           clip_0.mp4, clip_0.png, ...
    per_clip.json       per-clip values for pairing runs
    record.json         the result; there once everything is
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from nava_lab.config import Config, ConfigError, from_file, machine_settings
from nava_lab.evaluation.bar import bar
from nava_lab.evaluation.previews import write_previews
from nava_lab.evaluation.protocol import Result, evaluate
from nava_lab.evaluation.score import Score
from nava_lab.flow.agreement import disagreements
from nava_lab.flow.guidance.algebra import OFF
from nava_lab.registry import metrics
from nava_lab.study import record
from nava_lab.study.build import Parts, interface, parts
from nava_lab.study.describe import attention
from nava_lab.study.failures import explained, in_words, is_lost_peer, left_at
from nava_lab.study.fit import devices_of, load_model, machines, stacked_with, train
from nava_lab.study.identity import MADE_BY, NOT_PART, code_fingerprint, git_revision, run_hash, run_name, variant_fingerprint
from nava_lab.study.warm import check_start
from nava_lab.training.callbacks import EndedEarly
from nava_lab.training.ending import note_end
from nava_lab.training.loggers import check_logger
from nava_lab.training.machine import leave, meet, of_first, wait_for_all
from nava_lab.training.mishaps import chain, step_of

Tell = Callable[[str], None]


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
    try:
        check_logger(config.logger.kind, config.logger.project)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    config.world.prepare()
    split = config.evaluation.split
    held_out = config.world.count(split)
    if held_out is not None and held_out < 2:
        raise ConfigError(
            f"world {config.world.name} holds out {held_out} clips for the {split} and scores need 2: raise world.{split}_share"
        )
    built = parts(config)
    if config.warm_start.path and Path(config.warm_start.path).exists():
        check_start(config, built.solution)
    return built


def run(config: Config, tell: Tell = print, watchers: Sequence[pl.Callback] = (), begun: Path | None = None) -> Path:
    """Train, sample and score; continue a killed run, and leave a finished one as it is. Returns the run's folder.

    Args:
        config: of the run.
        tell: where is said what happens; only the first of several processes says it.
        watchers: they see the training (callbacks of Lightning) and may end it, with an error of their own.
        begun: the folder of a run that goes on on another machine than ``config.yaml`` there says (see ``resumed``).
    """
    join(config)
    first = not getattr(rank_zero_only, "rank", 0)
    tell = tell if first else lambda message: None
    if not first:
        wait_for_all()  # until the first has prepared everything
    built = prepared(config)
    for line in scoring_record(config, built).get("unlike_training", ()):
        tell(f"warning: {line}")
    identity = identify(config)
    folder = begun or Path(config.output.root) / run_name(config.resolved, identity["data"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if first:
            if begun is None:
                prepare_folder(config, folder, identity, tell)
            wait_for_all()
        with failures_written(folder, config):
            # Only the first writes these, and each may look into a folder of its own.
            done, trained = of_first([(folder / name).exists() for name in (record.NAME, "model.safetensors")])
            if done:
                tell(f"{folder.name}: already finished, nothing to do")
                return folder
            if not trained:
                train(config, built, folder, tell, watchers)
            if not leave():
                score(config, folder, tell, built)
    return folder


def join(config: Config) -> None:
    """Meet the processes that somebody started for this run; ConfigError where they are not as many as it trains on."""
    try:
        meet(devices_of(config))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def prepare_folder(config: Config, folder: Path, identity: dict[str, str], tell: Tell) -> None:
    """Begin a run's folder, or find it; one that other code has made is put aside."""
    if not _ours(folder, identity, tell):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved), sort_keys=False), encoding="utf-8")
        record.write_json(folder / "identity.json", identity)


# What says how a run is computed, kept and shown, and not what: another machine, another split of the same batch.
HOW = ("trainer", *NOT_PART, "evaluation.batch_size", "evaluation.branch_rows")


def resumed(folder: Path, overrides: Sequence[str], tell: Tell = print) -> Path:
    """Continue a begun run on another machine (``trainer.devices=1``, ``trainer=fsdp``) or in smaller pieces.

    It stays the run that it was begun as: its folder, its name, its ``config.yaml`` and its precision, whatever the new machine's
    would be. Its record lists the machines. Numbers then agree with an unbroken run's to rounding, no longer bit for bit.
    """
    for part in overrides:
        key = part.split("=")[0].lstrip("+")
        if not any(key == name or key.startswith(f"{name}.") for name in HOW):
            raise ConfigError(f"{part} would make another run; --continue takes {', '.join(f'{name}...' for name in HOW)}")
    made = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
    if made["code"] != code_fingerprint() or made["variant_code"] != variant_fingerprint(made_of(folder)):
        raise ConfigError(f"{folder} was begun by other code (revision {made['revision']}): check that out to continue it")
    plain = [part for part in overrides if part.split("=")[0] != "trainer"]
    machine = next((part.split("=", 1)[1] for part in overrides if part.startswith("trainer=")), "")
    precision = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["trainer"]["precision"]
    config = from_file(folder / "config.yaml", [*machine_settings(machine), f"trainer.precision={precision}", *plain])
    if config.trainer.precision != precision:
        raise ConfigError(
            f"trainer.precision={config.trainer.precision} would make another run than one that was begun in {precision}: "
            "leave it out to continue this one"
        )
    return run(config, tell, begun=folder)


def made_of(folder: Path) -> str:
    """The variant of a run, by its folder."""
    return folder.resolve().name.split("-")[0]


FAILED = "failed.json"


class RunBusy(ConfigError):
    """Another process is at this run."""


@contextmanager
def failures_written(folder: Path, config: Config, together: int = 0) -> Iterator[None]:
    """Leave ``failed.json`` behind where the run fails, and only there; what a user can act on ends in one message.

    ``together`` seeds are computed at once, where the run is one of several in one process.
    """
    if not getattr(rank_zero_only, "rank", 0):
        (folder / FAILED).unlink(missing_ok=True)
    try:
        yield
    except EndedEarly:
        raise
    except (KeyboardInterrupt, SystemExit) as ended:
        note_end(ended, left_at(folder, step_of(ended), together))
        raise
    except Exception as error:
        told = explained(error, folder, config, together)
        left = {"error": in_words(told or error), "kind": type(error).__name__}
        left |= {} if told else {"traceback": traceback.format_exc()}
        if not ((folder / FAILED).exists() and any(map(is_lost_peer, chain(error)))):  # the process that failed first said why
            with suppress(OSError):  # a full disk takes no word of it either
                record.write_json(folder / FAILED, left)
        if told is None:
            raise
        raise told from error


def state_of(folder: Path) -> str:
    """How far a run is, by its folder: "finished", "failed", "begun" or "missing"; what other code made counts as missing."""
    path = folder / "identity.json"
    if not path.exists():
        return "missing"
    made = json.loads(path.read_text(encoding="utf-8"))
    code = (code_fingerprint(), variant_fingerprint(made_of(folder)), torch.__version__)
    if any(made.get(key) != value for key, value in zip(MADE_BY, code, strict=True)):
        return "missing"
    return "finished" if (folder / record.NAME).exists() else "failed" if (folder / FAILED).exists() else "begun"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two processes must not write one run; the processes of one distributed training count as one."""
    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise RunBusy(f"{folder} is being trained by another process; wait for it, or change a setting") from None


def _ours(folder: Path, identity: dict[str, str], tell: Tell) -> bool:
    """Whether the folder exists and was made by this very code and PyTorch; one that was not is put aside under its own name."""
    path = folder / "identity.json"
    if not path.exists():
        return False
    old = yaml.safe_load(path.read_text(encoding="utf-8"))
    if all(old.get(key) == identity[key] for key in MADE_BY):
        return True
    aside = folder.with_name(f"{folder.name}.code-{old['code']}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.code-{old['code']}-{number}")
    folder.rename(aside)
    by = f"revision {old['revision']}, PyTorch {old.get('torch', 'unknown')}"
    tell(f"{folder.name} was made by other code ({by}): kept as {aside.name}, starting afresh")
    return False


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
        progress=bar(config.output.progress, folder.name),
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
        "captions": "" if protocol.told else "never shown",
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
    return caption(config.evaluation.split, torch.arange(count)) if caption else [""] * count


def device_of(config: Config) -> torch.device:
    """Where a run is scored and sampled: on the kind of device that it was trained on, or CPU where that is missing."""
    return torch.device("cuda" if config.trainer.accelerator == "cuda" and torch.cuda.is_available() else "cpu")


def declared(config: Config, scores: Iterable[str]) -> tuple[list[str], dict[str, bool], list[str]]:
    """What the world's metrics want of a report: the scores that lead its tables, whether higher is better, by score, and
    those whose 0 is chance and whose 1 is perfect.
    """
    chosen = [metrics.get(name) for name in config.world.metrics]
    found = {
        score: next((part.direction(score) for part in chosen if part.direction(score) is not None), None) for score in scores
    }
    shown = [score for part in chosen for score in part.shown if score in found]
    exact = [score for part in chosen for score, ends in part.exact.items() if ends == (1.0, 0.0) and score in found]
    return shown, {score: higher for score, higher in found.items() if higher is not None}, exact


def _record(
    config: Config, built: Parts, folder: Path, steps: int, seconds: float, result: Result, device: str, tell: Tell
) -> dict[str, Any]:
    cost, budget = built.solution.cost, built.solution.budget
    now = identify(config)
    path = folder / "identity.json"
    trained = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    if any(trained.get(key) != now[key] for key in ("code", "variant_code")):
        tell(f"{folder.name} was trained by other code (revision {trained['revision']}) than scores it now")
    shown, directions, exact = declared(config, result.scores)
    sat, beside = machines(folder), stacked_with(folder)
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
        **({"machines": sat} if len(sat) > 1 else {}),
        **({"stacked_with": beside} if beside else {}),
        "attention": attention(config, interface(config)),
        "evaluation": {**scoring_record(config, built), "code": now["code"], "device": device},
        "headline": config.world.headline,
        "higher_is_better": directions.get(config.world.headline, True),
        "shown": shown,
        "directions": directions,
        "exact": exact,
        "scores": _as_json(result.scores),
        "truth": _as_json(result.truth),
    }


def _as_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Scores as plain values, null where a number is not defined."""
    return {name: part.to_json() for name, part in scores.items()}
