"""``nava train -m``: every combination of values, checked first, then handed to one of Hydra's launchers.

A job's outcome is read from its run's folder, so it makes no difference where a launcher runs it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import TorchElasticEnvironment
from omegaconf import DictConfig

from nava_lab.config import CONFIGS, Config, ConfigError, check_choices, explain, load, quoted, register, typed
from nava_lab.memory import keep_memory
from nava_lab.study.failures import in_words
from nava_lab.study.fit import devices_of
from nava_lab.study.identity import run_name
from nava_lab.study.run import FAILED, prepared, run, state_of
from nava_lab.study.seeds import SEEDS, TOGETHER, asked, check_stackable, composed_for, configs_of, run_seeds
from nava_lab.training.callbacks import Stopped
from nava_lab.training.ending import Asked, noted
from nava_lab.training.quiet import quieten
from nava_lab.training.settings import TERMINATED

Tell = Callable[[str], None]
PACKAGES = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


@dataclass(frozen=True)
class Job:
    """One combination: what it is told, and the folder of its run."""

    overrides: tuple[str, ...]
    folder: Path
    own_process: bool  # several processes of Lightning's: they must re-execute this job alone


def jobs_of(overrides: Sequence[str]) -> list[Job]:
    """Every combination, each composed, built and checked; nothing is trained where one cannot be meant."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = quoted(overrides)
    try:
        check_choices(overrides)
        parsed = OverridesParser.create().parse_overrides([part for part in overrides if not _for_hydra(part)])
        combinations = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except ConfigError:
        raise
    except Exception as error:  # Hydra's grammar errors share no public base class
        raise ConfigError(explain(error, overrides)) from None
    jobs = []
    for combination in combinations:
        config = load(combination)
        prepared(config)
        folder = Path(config.output.root) / run_name(config.resolved, config.world.data_version())
        jobs.append(Job(tuple(quoted(combination)), folder, re_executes(config)))
    if len({job.folder for job in jobs}) < len(jobs):
        raise ConfigError("two jobs of this multirun are the same run: some value is listed twice")
    return jobs


def _for_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/", "launcher="))


def re_executes(config: Config) -> bool:
    """Whether training starts this process's command again, once per further device."""
    on = devices_of(config)
    return on.each > 1 and "fork" not in on.strategy and "spawn" not in on.strategy


def missing_extra(launcher: str) -> str:
    """The extra that brings a launcher's package, where it is not installed; empty where it is, or where it needs none."""
    package, extra = PACKAGES.get(launcher, ("hydra", ""))
    return extra if find_spec(package.split(".")[0]) is None or find_spec(package) is None else ""


def multirun(overrides: Sequence[str], tell: Tell, retry_failed: bool = False) -> list[Path]:
    """Run what is not finished yet; returns the folders of all runs. ConfigError names what failed."""
    launcher = next((part.split("=", 1)[1] for part in overrides if part.startswith("launcher=")), "basic")
    if extra := missing_extra(launcher):
        raise ConfigError(f"launcher={launcher} needs a package that is not installed: pip install 'nava-lab[{extra}]'")
    if TorchElasticEnvironment.detect():
        raise ConfigError(
            "nava train -m starts every job's processes itself (trainer=ddp trainer.devices=N): start it without torchrun, or "
            "have torchrun start one run, without -m"
        )
    plain, seeds, together = asked(overrides)
    jobs = jobs_of([*plain, f"seed={','.join(map(str, seeds))}"] if seeds else plain)
    if seeds:
        for first in _stacked(jobs, 0):
            check_stackable(load([part for part in first if not part.startswith(f"{SEEDS}=")]))
    states = [state_of(job.folder) for job in jobs]
    left = [job for job, state in zip(jobs, states, strict=True) if state != "finished" and (state != "failed" or retry_failed)]
    done, begun, old = (states.count(name) for name in ("finished", "begun", "failed"))
    more = [f"{done} finished before" if done else "", f"{begun} to be continued" if begun else ""]
    more += [
        f"{old} failed before" + (" and tried again" if retry_failed else ": --retry-failed tries them again") if old else ""
    ]
    tell(f"{len(jobs)} runs, all checked" + "".join(f"; {part}" for part in more if part))
    if left:
        combined = _stacked(left, together) if seeds else [job.overrides for job in left]
        with noted(f"{len(jobs)} runs, of which the same command continues what is not finished"):
            _launch(combined, [part for part in overrides if _for_hydra(part)], tell)
    failed = [f"{job.folder.name}: {reason}" for job in jobs if (reason := _reason(job.folder))]
    if failed:
        raise ConfigError(f"{len(failed)} of {len(jobs)} runs failed: " + "; ".join(failed))
    return [job.folder for job in jobs]


def _reason(folder: Path) -> str:
    """Why a run is not finished; empty where it is."""
    state = state_of(folder)
    if state == "finished":
        return ""
    if state == "failed":
        return json.loads((folder / FAILED).read_text(encoding="utf-8"))["error"]
    return "ended without a word; the same command continues it"


def _stacked(jobs: Sequence[Job], together: int) -> list[tuple[str, ...]]:
    """What to launch where seeds are trained together: all seeds of a combination at once."""
    found: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        rest = tuple(part for part in job.overrides if not part.startswith("seed="))
        found.setdefault(rest, []).append(next(part for part in job.overrides if part.startswith("seed=")).removeprefix("seed="))
    how = (f"{TOGETHER}={together}",) if together else ()
    return [(*rest, f"{SEEDS}=[{','.join(seeds)}]", *how) for rest, seeds in found.items()]


def _launch(jobs: Sequence[tuple[str, ...]], for_hydra: list[str], tell: Tell) -> None:
    """Through the launcher that the config names. Hydra's own way to it is its sweeper, which would launch finished runs too."""
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    register()
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("nava", create_config_search_path(str(CONFIGS)))
    try:
        master = hydra.compose_config("train", for_hydra, RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(master))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job_of, config=master)
        launcher.launch([list(job) for job in jobs], initial_job_idx=0)
    finally:
        GlobalHydra.instance().clear()


def job_of(composed: DictConfig) -> str:
    """What a launcher runs, here or elsewhere; a failure is left in the run's folder and does not stop other runs."""
    from hydra.core.hydra_config import HydraConfig

    quieten()
    keep_memory()
    seeds, together = composed_for(composed)
    if seeds:
        configs = configs_of(composed, seeds)
        try:
            return "\n".join(map(str, run_seeds(configs, _say, together=together)))
        except Exception as error:
            _say(f"failed: {configs[0].variant.name} seeds {', '.join(map(str, seeds))}: {in_words(error)}")
            return ""
    config = typed(composed)
    try:
        if re_executes(config):
            return in_own_process(list(HydraConfig.get().overrides.task))
        return str(run(config, _say))
    except Exception as error:  # whatever a part under development raises: the other runs go on
        _say(f"failed: {config.variant.name} seed {config.seed}: {in_words(error)}")
        return ""


def in_own_process(overrides: Sequence[str], alive: Callable[[], bool] = lambda: True) -> str:
    """One run by a command of its own, which Lightning may then start again on every device.

    Raises:
        Stopped: ``alive`` said no, and the run was ended; somebody is to go on with it.
        SystemExit: somebody else asked it to end (SIGTERM): so does this process, with the same status. Where this one is
            asked, or meets Ctrl-C, it ends the run first.
    """
    stopped = False
    command: list[Any] = [sys.executable, "-m", "nava_lab", "train", *overrides]
    path = os.pathsep.join(part for part in (str(CONFIGS.parent), os.environ.get("PYTHONPATH", "")) if part)
    asked = Asked()
    with asked.listening():  # whoever is ended between a process's start and knowing of it leaves it behind
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    try:
        if asked.yes:
            raise SystemExit(TERMINATED)
        while True:
            try:
                output, _ = process.communicate(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                if not alive():
                    stopped = True
                    process.terminate()
    except BaseException:  # SIGTERM, Ctrl-C: nobody would hear of the run any more
        process.terminate()
        process.wait()
        raise
    if process.returncode and stopped:
        raise Stopped(f"nava train {' '.join(overrides)} was ended")
    if process.returncode in (TERMINATED, -signal.SIGTERM):  # the latter before it could listen
        raise SystemExit(TERMINATED)
    if process.returncode:
        raise RuntimeError(f"nava train {' '.join(overrides)} ended with status {process.returncode}")
    return output.strip().splitlines()[-1]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
