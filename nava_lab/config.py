"""From YAML and overrides to typed, checked objects. Registries become Hydra groups; unknown keys name the nearest known."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from nava_lab import registry
from nava_lab.registry import PACKAGE, nearest

CONFIGS = PACKAGE.parent / "configs"
SHORT = "warm_start"  # warm_start=PATH is warm_start.path=PATH
GROUPS = {
    "variant": registry.variants,
    "world": registry.worlds,
    "flow/levels": registry.level_laws,
    "flow/weighting": registry.level_weights,
    "evaluation/solver": registry.solvers,
    "evaluation/schedule": registry.schedules,
}


PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]


class ConfigError(ValueError):
    """A config that cannot be meant; the message names the key and the remedy."""


@dataclass
class Flow:
    """How noise is mixed in and what is learnt; see ``nava_lab.flow``."""

    prediction: str = "x0"
    coupling: str = "shared"
    text_dropout: float = 0.1
    modality_dropout: float = 0.0
    modality_given: float = 0.0
    continuation: float = 0.0
    timbre_dropout: float = 0.0
    first_step: dict[str, float] = field(default_factory=dict)
    clean_loss: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    shifts: dict[str, float] = field(default_factory=dict)
    levels: Any = None
    weighting: Any = None


@dataclass
class Evaluation:
    """How a trained model is sampled and scored; ``split``: on the test clips, or on the validation clips to tune by."""

    clips: int = 256
    loss_clips: int = 1024
    batch_size: int = 64
    steps: int = 25
    shift: float = 1.0
    shifts: dict[str, float] = field(default_factory=dict)
    schedules: dict[str, Any] = field(default_factory=dict)
    given: str = ""
    split: str = "test"
    branch_rows: int = 256
    previews: int = 4
    solver: Any = None
    schedule: Any = None
    guidance: Any = None


@dataclass
class Attention:
    """Reach and backend of attention.

    ``cut``: who is cut off where attention is cut, "all" modalities or one by name. ``packed``: compute on real tokens
    alone, packed into one row, instead of on padded ones. ``mask``: a registered rule for every layer.
    """

    window_s: float = float("inf")
    backend: str = "auto"
    cut: str = "all"
    packed: bool = False
    mask: str = "none"


@dataclass
class Conditioning:
    """How what a model is told reaches it.

    ``timbre``: reference timbres in "context" (each in the place of the word that marks its span), "added" to those words, one
    "global" mean added to every token, or "none". ``timbre_in_span``: a timbre among the words is seen from its own span alone.
    """

    timbre: str = "context"
    timbre_in_span: bool = False


@dataclass
class WarmStart:
    """A published checkpoint to start from: ``warm_start=PATH`` for short.

    ``path``: a safetensors file, the index of its shards, or their folder. ``coverage``: least share of its parameters that
    must find a place. ``ends``: also embedders, heads and the text's encoder, which must agree in channels and features.
    ``differ``: what the model may compute otherwise than the checkpoint, such as [clock,heads]; the refusal names it.
    ``digest``: what it holds, settled when the config is read, so that a run's identity knows the weights themselves.
    """

    path: str = ""
    coverage: float = 0.9
    ends: bool = True
    differ: list[str] = field(default_factory=list)
    digest: str = ""


@dataclass
class Machine:
    """What a run trains on.

    "auto" is settled when the config is read, so that a run's identity says what it ran on: CUDA where there is one (worlds
    are rendered in float64, which Apple's GPUs lack), all of its devices, bf16-mixed there and fp32 on CPU.

    ``devices``: of each machine (on a CPU: processes); ``nodes``: machines; the batch is divided among all. ``strategy``: "ddp",
    each holds all weights; "fsdp", each a shard of them. ``compile``: every layer. ``accumulate``: in how many pieces a batch is
    computed, with the whole one's gradients. ``checkpoint_activations``: remember layers' inputs alone and compute them again.
    """

    accelerator: str = "auto"
    devices: Any = 1
    nodes: int = 1
    precision: str = "auto"
    strategy: str = "auto"
    compile: bool = False
    accumulate: int = 1
    checkpoint_activations: bool = False


@dataclass
class Logger:
    """Where metrics go besides ``metrics.jsonl``; ``project`` is W&B's, or MLflow's experiment, and empty for the others."""

    kind: str = "tensorboard"
    project: str = ""


@dataclass
class Output:
    """Where and how a run is shown; the one group (with logger) that is no part of a run's identity."""

    root: str = "runs"
    progress: bool = True


@dataclass(frozen=True)
class Config:
    """A whole run, typed and checked."""

    variant: Any
    world: Any
    budget: Any
    training: Any
    flow: Flow
    evaluation: Evaluation
    attention: Attention
    conditioning: Conditioning
    warm_start: WarmStart
    trainer: Machine
    logger: Logger
    output: Output
    seed: int
    resolved: Mapping[str, Any]  # plain values, as written to config.yaml


def _node(cls: type) -> DictConfig:
    """A dataclass as a config node; a frozen one stays open to overrides."""
    node = OmegaConf.structured(cls)
    OmegaConf.set_readonly(node, None)
    _writable(node)
    return node


def _writable(node: DictConfig) -> None:
    """Let what a frozen dataclass holds be overridden, and settings by modality take any modality's name."""
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            OmegaConf.set_readonly(child, None)
            _writable(child)
    _open(node)


def register() -> None:
    """Put every registry entry and the schema into Hydra's store. Imports all variants and worlds."""
    from nava_lab.budget.solve import Budget
    from nava_lab.training.settings import Training

    OmegaConf.register_new_resolver("by_difficulty", by_difficulty, replace=True)
    store = ConfigStore.instance()
    for group, entries in GROUPS.items():
        for name in entries:
            cls = entries.get(name)
            shortcuts: Mapping[str, str] = getattr(cls, "SHORTCUTS", {})
            node: Any = _node(cls)
            for field_name in next(iter(getattr(cls, "LEVELS", {}).values()), {}):
                node[field_name] = f"${{by_difficulty:'{name}',{field_name},${{difficulty}}}}"
            if not shortcuts:
                store.store(group=group, name=name, node=node, package=group.replace("/", "."))
                continue
            tree: dict[str, Any] = {group: node}
            for key, field_name in shortcuts.items():
                outer, inner = key.split(".")
                tree.setdefault(outer, {})[inner] = next(f.default for f in dataclasses.fields(cls) if f.name == field_name)
                node[field_name] = f"${{{key}}}"
            store.store(group=group, name=name, node=tree, package="_global_")
    evaluation, flow = OmegaConf.structured(Evaluation), OmegaConf.structured(Flow)
    evaluation.guidance = OmegaConf.create(guidance_defaults())
    _open(evaluation, flow)
    base = {
        "budget": _node(Budget),
        "training": _node(Training),
        "flow": flow,
        "evaluation": evaluation,
        "attention": OmegaConf.structured(Attention),
        "conditioning": OmegaConf.structured(Conditioning),
        "warm_start": OmegaConf.structured(WarmStart),
        "trainer": OmegaConf.structured(Machine),
        "logger": OmegaConf.structured(Logger),
        "output": OmegaConf.structured(Output),
        "seed": 0,
        "seeds": None,
        "seeds_together": None,
        "difficulty": "medium",
    }
    store.store(name="base", node=base)


def by_difficulty(world: str, name: str, difficulty: str) -> Any:
    """What a world's field is at a named level, unless it is set itself."""
    levels = registry.worlds.get(world).LEVELS
    if difficulty not in levels:
        raise ValueError(f"difficulty={difficulty}: {nearest(difficulty, list(levels))}")
    return levels[difficulty][name]


def _open(*nodes: DictConfig) -> None:
    """Let settings by modality take any modality's name; ``study.build`` knows which there are."""
    for node in nodes:
        for key in node:
            child = node._get_node(key)
            if isinstance(child, DictConfig) and child._metadata.element_type in (float, Any):
                OmegaConf.set_struct(child, False)


def guidance_defaults() -> dict[str, Any]:
    """Every term and modifier of guidance, switched off: a bare value where it has one setting, else one key each."""
    found: dict[str, Any] = {}
    for name in registry.guidance:
        settings = {part.name: part.default for part in dataclasses.fields(registry.guidance.get(name))}
        found[name] = next(iter(settings.values())) if len(settings) == 1 else settings
    return found


def choices() -> dict[str, list[str]]:
    """The options of every config group, without importing anything heavy."""
    files = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in CONFIGS.iterdir() if folder.is_dir()}
    return files | {group: entries.names() for group, entries in GROUPS.items()}


def check_choices(overrides: Sequence[str]) -> None:
    """Refuse an option that no group has, before anything heavy is imported."""
    known = choices()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        if group not in known or override.is_delete():
            continue
        value = override.value()
        picked = value.list if override.is_choice_sweep() else [value]  # type: ignore[union-attr]
        for option in picked:
            name = str(getattr(option, "text", option))  # of a list, a name in quotes stays an object
            if option is not None and name not in known[group]:
                raise ConfigError(f"{group}={name}: {nearest(name, known[group])}")


def load(overrides: Sequence[str] = (), config_name: str = "train") -> Config:
    """Compose, resolve and check a config from overrides; ConfigError says what is wrong with which key."""
    return typed(composed(overrides, config_name))


def quoted(overrides: Sequence[str]) -> list[str]:
    """The overrides with ``null`` in quotes where an option of that name is meant, which Hydra would read as none at all."""
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") in GROUPS and "null" in GROUPS[key.lstrip("+")].names():
            options = ("'null'" if option == "null" else option for option in value.split(","))
            override = f"{key}={','.join(options)}"
        found.append(override)
    return found


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


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's complaint as one line that names the key and the nearest known one."""
    text = " ".join(str(part) for part in (error, error.__cause__ or "") if str(part))
    match = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'|Key '([^']+)' not in", text)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        last = key.split(".")[-1]
        if match and last in {part.split(".")[-1] for part in match.groups() if part}:
            known = known_keys()
            close = nearest(key, known)
            reason = "" if key not in known else first_line(text)
            return f"{override}: {reason or f'there is no key {key}'}; {close if key not in known else 'see nava train --help'}"
    return first_line(text)


def first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "the config cannot be read"


def known_keys() -> list[str]:
    """Every key that some choice of groups offers."""
    keys = ["seed", "seeds", "seeds_together", "difficulty"]
    for group, entries in GROUPS.items():
        for entry in entries.entries.values():
            names = {name for name, _ in entry.fields}
            cls = entries.get(entry.name)
            names |= {part.name for part in dataclasses.fields(cls)}  # type: ignore[arg-type]
            keys += [f"{group.replace('/', '.')}.{name}" for name in sorted(names)]
            keys += list(getattr(cls, "SHORTCUTS", {}))
    for name, default in guidance_defaults().items():
        inner = default if isinstance(default, dict) else {"": default}
        keys += [f"evaluation.guidance.{name}.{key}".removesuffix(".") for key in inner]
    from nava_lab.budget.solve import Budget
    from nava_lab.training.settings import Training

    plain = {"budget": Budget, "training": Training, "flow": Flow, "evaluation": Evaluation, "attention": Attention}
    plain |= {"conditioning": Conditioning, "warm_start": WarmStart}
    for name, cls in (plain | {"trainer": Machine, "logger": Logger, "output": Output}).items():
        keys += [f"{name}.{part.name}" for part in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return [*dict.fromkeys(keys), *choices()]


def typed(composed_config: DictConfig) -> Config:
    """A composed config as checked objects; whatever a dataclass refuses becomes a ConfigError."""
    try:
        plain = OmegaConf.to_container(composed_config, resolve=True)
        parts = OmegaConf.to_container(composed_config, resolve=True, structured_config_mode=SCMode.INSTANTIATE)
    except (OmegaConfBaseException, ValueError) as error:
        cause = error.__cause__ or error
        raise ConfigError(first_line(str(cause)).removeprefix("ValueError raised while resolving interpolation: ")) from None
    assert isinstance(parts, dict)
    assert isinstance(plain, dict)
    names = {entry.name for entry in dataclasses.fields(Config)} - {"resolved"}
    for group in GROUPS:
        outer, _, inner = group.partition("/")
        where, key, chosen = (plain[outer], inner, getattr(parts[outer], inner)) if inner else (plain, outer, parts[outer])
        if not hasattr(chosen, "name"):  # a bare value took the place of a choice
            told = str(chosen) if str(chosen) in GROUPS[group].names() else "NAME"
            near = "" if told != "NAME" else f" ({nearest(str(chosen), GROUPS[group].names())})"
            raise ConfigError(f"{outer}.{inner}={chosen}: an option is chosen with a slash: {group}={told}{near}")
        where[key] = {"name": chosen.name, **(where[key] or {})}
    # Guidance that is off is no part of a run: a new term changes no run's identity.
    off = guidance_defaults()
    if not isinstance(plain["evaluation"]["guidance"], dict):
        raise ConfigError(
            f"evaluation.guidance={plain['evaluation']['guidance']} must name its parts: evaluation.guidance.text=3, say"
        )
    for name in plain["evaluation"]["guidance"]:
        if name not in off:
            keys = [f"evaluation.guidance.{part}" for part in off]
            raise ConfigError(f"there is no key evaluation.guidance.{name}; {nearest(f'evaluation.guidance.{name}', keys)}")
    guided = {name: value for name, value in plain["evaluation"]["guidance"].items() if value != off[name]}
    plain["evaluation"]["guidance"] = guided
    # So is a warm start that is none.
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
    _check_machine(parts["trainer"], parts["training"])
    resolved = {name: plain[name] for name in plain if name in names}
    return Config(**{name: parts[name] for name in names}, resolved=resolved)


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


def settled(machine: Machine) -> dict[str, Any]:
    """What "auto" means on this machine."""
    import torch

    accelerator, devices, precision = machine.accelerator, machine.devices, machine.precision
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = accelerator in ("gpu", "cuda")
    if on_gpu:
        accelerator = "cuda"
    if devices in ("auto", -1, "-1"):
        devices = max(1, torch.cuda.device_count()) if on_gpu else 1
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu else "32-true"
    return {"accelerator": accelerator, "devices": devices, "precision": precision}


def machine_settings(name: str) -> list[str]:
    """What a choice of ``trainer=NAME`` sets, key by key, over whatever stands there; nothing for no name."""
    if not name:
        return []
    known = sorted(file.stem for file in (CONFIGS / "trainer").glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"trainer={name}: {nearest(name, known)}")
    chosen: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "trainer" / f"{name}.yaml"))
    settings: dict[str, Any] = dataclasses.asdict(Machine()) | chosen
    return [f"trainer.{key}={value}" for key, value in settings.items()]


def device_count(machine: Machine) -> int:
    """Devices over all machines; those of one are given by their number, or by their own numbers ([0, 2], "0,2")."""
    devices: Any = machine.devices
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part]
    each = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 0
    if each < 1:
        raise ConfigError(f"trainer.devices={machine.devices} must be a number of devices, or auto")
    return each * machine.nodes


def _check_machine(machine: Machine, training: Any) -> None:
    """Refuse a precision that does not train, and a batch that does not divide among devices and pieces."""
    if machine.precision not in PRECISIONS:
        near = nearest(machine.precision, PRECISIONS)
        raise ConfigError(
            f"trainer.precision={machine.precision}: {near}; known: auto, {', '.join(PRECISIONS)} "
            "(weights and moments themselves stay float32: in bf16 they would lose AdamW's small steps)"
        )
    if machine.precision == "16-mixed" and machine.accelerator == "cpu":
        raise ConfigError("trainer.precision=16-mixed needs a GPU: a CPU has bf16-mixed")
    for name in ("nodes", "accumulate"):
        if getattr(machine, name) < 1:
            raise ConfigError(f"trainer.{name}={getattr(machine, name)} must be at least 1")
    devices, pieces = device_count(machine), machine.accumulate
    for key, count, parts in (("batch_size", training.batch_size, pieces), ("validation_clips", training.validation_clips, 1)):
        if count % (devices * parts):
            among = f"{devices} devices" + (f" and trainer.accumulate={parts} pieces" if parts > 1 else "")
            raise ConfigError(f"training.{key}={count} does not divide among {among}")


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
    _open(whole.flow, whole.evaluation)
    _writable(whole.variant)
    try:
        merged = OmegaConf.merge(whole, saved)
        return typed(OmegaConf.merge(merged, OmegaConf.from_dotlist([part for part in overrides if "/" not in part])))  # type: ignore[arg-type]
    except (OmegaConfBaseException, HydraException) as error:
        if overrides:
            raise ConfigError(explain(error, overrides)) from None
        raise ConfigError(f"{path}: {first_line(str(error))}; was the run made by another version?") from None
