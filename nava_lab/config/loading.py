"""From YAML and overrides to typed, checked objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from nava_lab.config.machine import CONFIGS, check_machine, settled
from nava_lab.config.schema import Config, ConfigError, WarmStart
from nava_lab.config.store import (
    GROUPS,
    check_choices,
    explain,
    first_line,
    guidance_defaults,
    opened,
    quoted,
    register,
    writable,
)
from nava_lab.registry import nearest

SHORT = "warm_start"  # warm_start=PATH is warm_start.path=PATH


def load(overrides: Sequence[str] = (), config_name: str = "train") -> Config:
    """Compose, resolve and check a config from overrides; ConfigError says what is wrong with which key."""
    return typed(composed(overrides, config_name))


def composed(overrides: Sequence[str], config_name: str = "train") -> DictConfig:
    overrides = quoted(overrides)
    if not CONFIGS.is_dir():
        raise ConfigError(f"{CONFIGS} is missing: nava-lab runs from a checkout, installed with `pip install -e .`")
    try:
        check_choices(overrides)
        register()
        overrides = [
            f"{SHORT}.path={part.removeprefix(f'{SHORT}=')}" if part.startswith(f"{SHORT}=") else part for part in overrides
        ]
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose(config_name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from None


def typed(composed_config: DictConfig) -> Config:
    """A composed config as checked objects; whatever a dataclass refuses becomes a ConfigError."""
    try:
        plain: Any = OmegaConf.to_container(composed_config, resolve=True)
        parts: Any = OmegaConf.to_container(composed_config, resolve=True, structured_config_mode=SCMode.INSTANTIATE)
    except (OmegaConfBaseException, ValueError) as error:
        cause = error.__cause__ or error
        raise ConfigError(first_line(str(cause)).removeprefix("ValueError raised while resolving interpolation: ")) from None
    names = {entry.name for entry in dataclasses.fields(Config)} - {"resolved"}
    for group in GROUPS:
        _named(group, plain, parts)
    plain["evaluation"]["guidance"] = _guided(plain["evaluation"]["guidance"])
    # A warm start that is none is no part of a run, either.
    parts["warm_start"] = _settled_start(parts["warm_start"], parts["flow"].prediction)
    plain["warm_start"] = dataclasses.asdict(parts["warm_start"])
    if not parts["warm_start"].path:
        del plain["warm_start"]
    if not isinstance(parts["seed"], int) or parts["seed"] < 0:
        raise ConfigError(f"seed={parts['seed']} must be a whole number of at least 0")
    several = {key: plain.pop(key, None) for key in ("seeds", "seeds_together")}
    for key, value in several.items():
        if value is not None:
            raise ConfigError(f"{key}={value} is for nava train, which makes a run of each seed; here one is meant: seed=0")
    # The fields that it sets are what a run's identity keeps.
    difficulty = plain.pop("difficulty")
    if difficulty != "medium" and not parts["world"].LEVELS:
        raise ConfigError(f"difficulty={difficulty}: world {parts['world'].name} has no levels of difficulty")
    shortcuts = {key.split(".")[0] for key in parts["world"].SHORTCUTS}
    for key in set(plain) - names - shortcuts:
        raise ConfigError(f"there is no setting {key}; {nearest(str(key), sorted(names))}")
    plain["trainer"] |= settled(parts["trainer"])
    parts["trainer"] = dataclasses.replace(parts["trainer"], **settled(parts["trainer"]))
    check_machine(parts["trainer"], parts["training"])
    resolved = {name: plain[name] for name in plain if name in names}
    return Config(**{name: parts[name] for name in names}, resolved=resolved)


def _named(group: str, plain: dict[str, Any], parts: dict[str, Any]) -> None:
    """Write down the name of a group's choice beside its settings."""
    outer, _, inner = group.partition("/")
    where, key, chosen = (plain[outer], inner, getattr(parts[outer], inner)) if inner else (plain, outer, parts[outer])
    if not hasattr(chosen, "name"):  # a bare value took the place of a choice
        told = str(chosen) if str(chosen) in GROUPS[group].names() else "NAME"
        near = "" if told != "NAME" else f" ({nearest(str(chosen), GROUPS[group].names())})"
        raise ConfigError(f"{outer}.{inner}={chosen}: an option is chosen with a slash: {group}={told}{near}")
    where[key] = {"name": chosen.name, **(where[key] or {})}


def _guided(guidance: Any) -> dict[str, Any]:
    """Guidance that is on: what is off is no part of a run, so that a new term changes no run's identity."""
    off = guidance_defaults()
    if not isinstance(guidance, dict):
        raise ConfigError(f"evaluation.guidance={guidance} must name its parts: evaluation.guidance.text=3, say")
    for name in guidance:
        if name not in off:
            keys = [f"evaluation.guidance.{part}" for part in off]
            raise ConfigError(f"there is no key evaluation.guidance.{name}; {nearest(f'evaluation.guidance.{name}', keys)}")
    return {name: value for name, value in guidance.items() if value != off[name]}


def _settled_start(start: WarmStart, prediction: str) -> WarmStart:
    """A warm start with the digest of its checkpoint, unless it has one: a finished run is read without its checkpoint."""
    if not start.path:
        usual = dataclasses.asdict(WarmStart())
        changed = [name for name, value in dataclasses.asdict(start).items() if value != usual[name]]
        if changed:
            raise ConfigError(f"warm_start.{changed[0]} says how a checkpoint is taken, and there is none: set warm_start=PATH")
        return start
    if not 0 <= start.coverage <= 1:
        raise ConfigError(f"warm_start.coverage={start.coverage} must lie between 0 and 1")
    if prediction != "velocity":
        raise ConfigError(
            f"warm_start={start.path}: such a checkpoint predicts velocities, and flow.prediction={prediction} would read them "
            "otherwise; set flow.prediction=velocity"
        )
    if start.digest:
        return start
    from nava_lab.checkpoints.files import digest

    try:
        return dataclasses.replace(start, digest=digest(start.path))
    except (ValueError, OSError) as error:
        raise ConfigError(f"warm_start: {error}") from None


def from_file(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config that a run was made with, from its ``config.yaml``, with overrides on top."""
    try:
        saved = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: {path.parent} is not a run's folder") from None
    assert isinstance(saved, dict)
    choice = []
    for group in GROUPS:
        outer, _, inner = group.partition("/")
        where, key = (saved[outer], inner) if inner else (saved, outer)
        other = next((part for part in overrides if part.startswith(f"{group}=")), None)
        if other is not None:
            choice.append(other)
            where.pop(key, None)
        elif key in where:  # a run of an earlier version has no word on a choice that came later
            choice.append(f"{group}={where[key].pop('name')}")
    whole = composed(choice)
    OmegaConf.set_struct(whole, True)
    opened(whole.flow, whole.evaluation)
    writable(whole.variant)
    try:
        merged = OmegaConf.merge(whole, saved)
        return typed(OmegaConf.merge(merged, OmegaConf.from_dotlist([part for part in overrides if "/" not in part])))  # type: ignore[arg-type]
    except (OmegaConfBaseException, HydraException) as error:
        if overrides:
            raise ConfigError(explain(error, overrides)) from None
        raise ConfigError(f"{path}: {first_line(str(error))}; was the run made by another version?") from None
