"""Several seeds of one variant trained in one process, each a run of its own: folder, identity, log, checkpoints, record.

``nava train seeds=8`` makes the runs that eight commands with ``seed=0`` to ``seed=7`` would: finished ones are left alone, and
what was begun, alone or together, is continued. Seeds that have reached the same step are trained together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf

from nava_lab.attention.attend import AUTO, check
from nava_lab.config import Config, ConfigError, device_count, typed
from nava_lab.rng import stable_seed
from nava_lab.study import record
from nava_lab.study.build import Parts, network
from nava_lab.study.failures import RunFailed, in_words
from nava_lab.study.fit import WallTime, devices_of, fit, save_weights, sit_down, train, trainer_of
from nava_lab.study.identity import run_name
from nava_lab.study.run import RunBusy, alone, failures_written, identify, join, prepare_folder, prepared, score, scoring_record
from nava_lab.study.warm import start_warm
from nava_lab.training.averaging import averaging
from nava_lab.training.callbacks import EndedEarly, Ends, Progress
from nava_lab.training.ending import Asked
from nava_lab.training.loggers import make_logger
from nava_lab.training.machine import end_together, prepare_layers
from nava_lab.training.mishaps import chain
from nava_lab.training.per_seed import SeedCheckpoints, SeedFiles, SeedLog, SeedLogger
from nava_lab.training.saved import Files, numbered
from nava_lab.training.saved import check as check_file
from nava_lab.training.stacked import StackedData, StackedModule, stacked, unstacked

Tell = Callable[[str], None]
Ended = Callable[[int, Path | Exception], None]
SEEDS, TOGETHER = "seeds", "seeds_together"
ASKED = f"{SEEDS}=..."
CLIPS_AT_ONCE = 128  # on a CPU
EARLY = 0.1  # of a run's steps
WORTH_STACKING = 4  # seeds; of fewer a call for each costs as little


def seeds_of(value: Any) -> tuple[int, ...]:
    """Which seeds ``seeds=VALUE`` means: of a number as many, from 0 on; of a list those."""
    listed = str(value).strip("[] ").split(",") if isinstance(value, str) else value
    if isinstance(listed, list) and len(listed) == 1 and not str(value).lstrip().startswith("["):
        listed = listed[0]
    try:
        found = tuple(range(int(listed))) if isinstance(listed, int | str) else tuple(int(part) for part in listed)
    except (TypeError, ValueError):
        found = ()
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ConfigError(f"{SEEDS}={value} must be a number of seeds (8: seeds 0 to 7) or different ones (0,1,5)")
    return found


def asked(overrides: Iterable[str]) -> tuple[list[str], tuple[int, ...], int]:
    """Overrides without ``seeds`` and ``seeds_together``, and those: no seeds, and 0, where they are not given."""
    rest: list[str] = []
    seeds: tuple[int, ...] = ()
    together = 0
    for part in overrides:
        key, _, value = part.partition("=")
        if key == SEEDS:
            seeds = seeds_of(value)
        elif key == TOGETHER:
            if not value.isdigit() or int(value) < 1:
                raise ConfigError(f"{part} must be a number of seeds that are computed at once, at least 1")
            together = int(value)
        else:
            rest.append(part)
    if together and not seeds:
        raise ConfigError(f"{TOGETHER}={together} says how {SEEDS}=... are computed, and there are none")
    if seeds and any(part.startswith("seed=") for part in rest):
        raise ConfigError(f"seed=... and {SEEDS}=... say the same: leave one out")
    return rest, seeds, together


def configs_of(composed: DictConfig, seeds: Sequence[int], asked: str = ASKED) -> list[Config]:
    """The config of each seed's run; they share their world. ``asked`` is what the user wrote to have seeds stacked."""
    made: list[Config] = []
    for seed in seeds:
        own = composed.copy()
        own.seed, own[SEEDS], own[TOGETHER] = seed, None, None
        config = typed(own)
        if made and {**config.resolved, "seed": 0} != {**made[0].resolved, "seed": 0}:
            raise ConfigError(f"{asked}: some other setting depends on the seed, and seeds that are stacked share all others")
        made.append(replace(config, world=made[0].world) if made else config)
    return made


def at_once(config: Config, seeds: int, wanted: int = 0) -> int:
    """How many seeds are computed in one call.

    On a GPU all; on a CPU as many as have ``CLIPS_AT_ONCE`` clips: what is larger leaves the caches and gains nothing
    (``nava bench seeds``).
    """
    if config.trainer.accelerator == "cuda":
        return min(wanted or seeds, seeds)
    fit_in = CLIPS_AT_ONCE // config.training.batch_size
    return min(wanted or (fit_in if fit_in >= WORTH_STACKING else 1), seeds)


def check_stackable(config: Config, asked: str = ASKED, otherwise: str = "-m seed=0,1,2 trains one after the other") -> None:
    """Refuse what couples seeds, or needs more than one process.

    Args:
        config: of any of the seeds.
        asked: what the user wrote to have seeds stacked.
        otherwise: what happens without.
    """
    machine = config.trainer
    where = f"; without it, {otherwise}"
    if device_count(machine) > 1 or machine.strategy != "auto":
        raise ConfigError(f"{asked}: seeds are stacked on one device: set trainer.devices=1 trainer.strategy=auto{where}")
    if machine.precision == "16-mixed":
        raise ConfigError(f"{asked}: trainer.precision=16-mixed scales one loss for all seeds: set bf16-mixed{where}")
    if config.logger.kind == "wandb":
        raise ConfigError(f"{asked}: W&B keeps one open run per process: set logger=tensorboard (or csv, mlflow){where}")


def set_aside(config: Config, together: int) -> list[str]:
    """Settings of how a run is computed that stacked seeds do without; numbers agree to rounding."""
    machine, attention = config.trainer, config.attention
    several = together > 1
    chosen = {
        "trainer.compile": machine.compile,
        "trainer.accumulate": machine.accumulate > 1,
        "trainer.checkpoint_activations": machine.checkpoint_activations and several,
        "attention.packed": attention.packed and several,
        f"attention.backend={attention.backend} (sdpa)": several and attention.backend not in (AUTO, "sdpa", "reference"),
    }
    return [name for name, wanted in chosen.items() if wanted]


@dataclass(frozen=True)
class Seed:
    """One seed's run."""

    config: Config
    folder: Path

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def finished(self) -> bool:
        return (self.folder / record.NAME).exists()


@dataclass(frozen=True)
class Sitting:
    """What the trainings of one call share: parts, who is told, who watches, how many are computed at once, who hears of ends."""

    built: Parts
    tell: Tell
    watchers: Sequence[pl.Callback]
    together: int
    ended: Ended


def run_seeds(
    configs: Sequence[Config],
    tell: Tell = print,
    watchers: Sequence[pl.Callback] = (),
    together: int = 0,
    ended: Ended = lambda seed, made: None,
) -> list[Path]:
    """Train seeds together, then sample and score each; finished runs are left alone, begun ones continued.

    A seed that fails, or that another process is at, stops none of the others.

    Args:
        configs: that differ in their seeds (``configs_of``).
        tell: where is said what happens.
        watchers: they see the trainings.
        together: how many seeds are computed in one call; 0 for what suits the device.
        ended: told of each seed, once nothing is left to do for it, its run's folder or its error; it may end what is left with
            an ``EndedEarly``.

    Raises:
        RunBusy: another process is at all of the seeds.
        RunFailed: some seeds have failed; the others are finished.
    """
    first = configs[0]
    check_stackable(first)
    join(first)
    together = at_once(first, len(configs), together)
    built = prepared(first)
    for line in scoring_record(first, built).get("unlike_training", ()):
        tell(f"warning: {line}")
    runs = [_seed(config) for config in configs]
    with ExitStack() as stack:
        failed = _take(runs, stack, tell)
        mine = [run for run in runs if run.seed not in failed]
        left = [run for run in mine if not run.finished]
        if len(left) < len(mine):
            tell(f"{len(mine) - len(left)} of {len(runs)} seeds already finished")
        untrained = [run for run in left if not (run.folder / "model.safetensors").exists()]
        for start, group in groups(untrained, tell):
            failed |= _train(group, start, Sitting(built, tell, watchers, min(together, len(group)), ended))
        for run in runs:
            if run.seed not in failed and not run.finished:
                failed |= _tried(run, partial(score, run.config, run.folder, tell, built))
            ended(run.seed, failed.get(run.seed, run.folder))
    if failed:
        first_error = next(iter(failed.values()))
        if not mine:
            raise first_error
        told = "; ".join(map(in_words, failed.values()))
        raise RunFailed(f"{len(failed)} of {len(runs)} seeds failed: {told}", type(first_error).__name__)
    return [run.folder for run in runs]


def _seed(config: Config) -> Seed:
    return Seed(config, Path(config.output.root) / run_name(config.resolved, config.world.data_version()))


def _take(runs: Sequence[Seed], stack: ExitStack, tell: Tell) -> dict[int, Exception]:
    """Keep others from the runs until the stack is left, and make their folders ready; returns those that others are at."""
    busy: dict[int, Exception] = {}
    for run in runs:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(alone(run.folder))
        except RunBusy as error:
            tell(f"{run.folder.name}: another process is at it; the other seeds go on without")
            busy[run.seed] = error
            continue
        prepare_folder(run.config, run.folder, identify(run.config), tell)
    return busy


def _tried(run: Seed, work: Callable[[], Any]) -> dict[int, Exception]:
    """What came of one seed's work: nothing, or how it failed, which stops no other seed."""
    try:
        with failures_written(run.folder, run.config):
            work()
    except EndedEarly:  # by a watcher, which means all of them
        raise
    except Exception as error:
        return {run.seed: error}
    return {}


def groups(runs: Sequence[Seed], tell: Tell) -> list[tuple[dict[int, Path], list[Seed]]]:
    """Runs that can be trained together, with the checkpoints of one step that they start from; none for the start.

    A run that was killed while a checkpoint of all was written goes back to the last one that all have, if need be to the start;
    ``sit_down`` says what is given up.
    """
    found = {run.seed: _starts(run, tell) for run in runs}
    left, made = list(runs), []
    while left:
        steps = [step for run in left for step in found[run.seed]]
        step = max(dict.fromkeys(steps), key=lambda step: (steps.count(step), step))
        group = [run for run in left if step in found[run.seed]]
        made.append(({run.seed: path for run in group if (path := found[run.seed][step]) is not None}, group))
        left = [run for run in left if run not in group]
    return made


def _starts(run: Seed, tell: Tell) -> dict[int, Path | None]:
    """A run's checkpoints by step; and step 0, without one, for a run that has none, or one from so early that little is lost."""
    made: dict[int, Path | None] = {}
    for path in numbered(run.checkpoints):
        try:
            check_file(path)
        except Exception as error:  # whatever a torn file raises, the older one may still serve
            tell(f"{path} cannot be read ({type(error).__name__}); trying an older one")
            continue
        made[int(path.stem)] = path
    early = all(step <= EARLY * run.config.training.steps for step in made)
    return {**made, 0: None} if len(made) < 2 and early else made


def _train(group: Sequence[Seed], start: Mapping[int, Path], how: Sitting) -> dict[int, Exception]:
    """Train a group to the end; returns the seeds that fell on the way. What stops all of them is raised."""
    if len(group) == 1:
        run = group[0]
        return _tried(run, partial(train, run.config, how.built, run.folder, how.tell, how.watchers))
    try:
        with ExitStack() as stack:
            for run in group:
                stack.enter_context(failures_written(run.folder, run.config, how.together))
            fallen = train_together(group, start, how)
    except EndedEarly:
        raise
    except Exception as error:
        for run in group:
            how.ended(run.seed, _own(error, run))
        raise
    failed: dict[int, Exception] = {}
    for run in group:
        if run.seed in fallen:
            failed |= _tried(run, partial(_fell, fallen[run.seed]))
    return failed


def _own(error: Exception, run: Seed) -> Exception:
    """What an error that stopped several seeds said of one of them."""
    told = (one for one in chain(error) if isinstance(one, RunFailed) and str(one).startswith(f"{run.folder}: "))
    return next(told, error)


def _fell(why: str) -> None:
    """A seed's end in a training that went on without it, as its own training would have told it."""
    raise FloatingPointError(why)


def train_together(group: Sequence[Seed], start: Mapping[int, Path], how: Sitting) -> dict[int, str]:
    """Train several seeds from checkpoints of one step, or from the start, and save each one's averaged weights.

    Returns:
        The seeds that have fallen on the way, and why.
    """
    tell, together = how.tell, how.together
    config, seeds, lead = group[0].config, [run.seed for run in group], group[0].folder
    module = stacked_module(config, seeds, how.built, together, None if start else tell)
    folders = {run.seed: run.checkpoints for run in group}
    files = SeedFiles(folders, module.fallen, [start[seed] for seed in seeds if seed in start])
    plugins = [part for part in devices_of(config).plugins() if not isinstance(part, Files)]
    loggers = [make_logger(config.logger.kind, config.logger.project, run.folder) for run in group]
    told = [SeedLogger(logger, seed, module.fallen) if logger else None for logger, seed in zip(loggers, seeds, strict=True)]
    clock, asked = WallTime(seeds), Asked()
    logs = [SeedLog(run.folder / "metrics.jsonl", run.seed, one) for run, one in zip(group, told, strict=True)]
    callbacks: list[pl.Callback] = [clock, *logs, *averaging(config.training), *how.watchers]
    if config.output.progress:
        callbacks.append(Progress(config.training.steps, f"{config.variant.name} s{','.join(map(str, seeds))}"))
    callbacks.append(SeedCheckpoints(folders, config.training, asked) if config.training.saves else Ends(asked))
    trainer = trainer_of(config, lead, callbacks, [one for one in told if one is not None] or False, [*plugins, files])
    aside = set_aside(config, together)
    pace = f"{together} at once" if together > 1 else "in turns"
    tell(f"{len(seeds)} seeds ({', '.join(map(str, seeds))}) in one training, {pace}" + _without(aside))
    newest = start.get(seeds[0])
    for run in group:
        if run.seed in start:
            tell(f"{run.folder.name}: continuing from {start[run.seed].name}")
        sit_down(run.folder, run.config, start.get(run.seed), tell)
    with asked.listening():
        fit(trainer, module, StackedData(config.world, config.training, seeds), newest)
        module.note_broken_weights()  # of the last step: no later loss tells of it
        state = {name: part.cpu() for name, part in module.network.state_dict().items()}
        for number, run in enumerate(group):
            if run.seed not in module.fallen:
                weights = unstacked(state, number)
                save_weights(run.folder / "model.safetensors", weights, clock.about(number, trainer.global_step))
    if asked.yes:
        end_together()
    return dict(module.fallen)


def _without(aside: Sequence[str]) -> str:
    return f"; set aside, as it changes no number: {', '.join(aside)}" if aside else ""


def stacked_module(config: Config, seeds: Sequence[int], built: Parts, together: int, fresh: Tell | None = None) -> StackedModule:
    """The networks of several seeds, each initialised as its single run's, as one module.

    Args:
        config: of any of them.
        seeds: whose.
        built: the parts of their runs.
        together: how many are computed in one call.
        fresh: where is said what becomes of a warm start; None where a checkpoint fills the networks.
    """
    networks = []
    for seed in seeds:
        torch.manual_seed(stable_seed("init", seed))
        networks.append(network(config, built.solution))
        if config.warm_start.path and fresh is not None:
            start_warm(config, networks[-1], fresh if seed == seeds[0] else lambda line: None)
    made: Any = stacked(networks)
    if together > 1:
        made.packed = False  # lengths of samples are shapes, and those that are stacked share theirs
        made.backend = "sdpa" if made.backend != "reference" else made.backend
    prepare_layers(made, False, config.trainer.checkpoint_activations and together == 1)
    check(made.backend, config.trainer.accelerator, gradients=True)
    return StackedModule(made, built.objective, built.drawing, config.training, seeds, together)


def composed_for(composed: DictConfig) -> tuple[tuple[int, ...], int]:
    """The seeds that a composed config asks for, none where it does not, and how many at once."""
    seeds = composed.get(SEEDS)
    if seeds is None:
        return (), 0
    return seeds_of(OmegaConf.to_container(seeds) if OmegaConf.is_config(seeds) else seeds), int(composed.get(TOGETHER) or 0)
