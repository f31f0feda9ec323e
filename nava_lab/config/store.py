"""Registries and schema as Hydra's groups: what can be chosen, what every key is called, what else a mistyped one may mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from nava_lab import registry
from nava_lab.config.machine import CONFIGS
from nava_lab.config.schema import Attention, Conditioning, ConfigError, Evaluation, Flow, Logger, Machine, Output, WarmStart
from nava_lab.registry import nearest

GROUPS = {
    "variant": registry.variants,
    "world": registry.worlds,
    "flow/levels": registry.level_laws,
    "flow/weighting": registry.level_weights,
    "evaluation/solver": registry.solvers,
    "evaluation/schedule": registry.schedules,
}


def _node(cls: type) -> DictConfig:
    """A dataclass as a config node; a frozen one stays open to overrides."""
    node = OmegaConf.structured(cls)
    OmegaConf.set_readonly(node, None)
    writable(node)
    return node


def writable(node: DictConfig) -> None:
    """Let what a frozen dataclass holds be overridden, and settings by modality take any modality's name."""
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            OmegaConf.set_readonly(child, None)
            writable(child)
    opened(node)


def opened(*nodes: DictConfig) -> None:
    """Let settings by modality take any modality's name; ``study.build`` knows which there are."""
    for node in nodes:
        for key in node:
            child = node._get_node(key)
            if not isinstance(child, DictConfig) or dataclasses.is_dataclass(child._metadata.object_type):
                continue
            if child._metadata.element_type in (float, Any):
                OmegaConf.set_struct(child, False)


def register() -> None:
    """Put every registry entry and the schema into Hydra's store, unless they are there. Imports all variants and worlds."""
    chosen = tuple((group, name, entries.get(name)) for group, entries in GROUPS.items() for name in entries)
    _stored(chosen, tuple(registry.guidance.get(name) for name in registry.guidance))


@lru_cache(maxsize=1)
def _stored(chosen: Sequence[tuple[str, str, type]], guidance: Sequence[type]) -> None:
    """Put these options, and the schema, into Hydra's store: again only where the registries hold others than the last time."""
    from nava_lab.budget.solve import Budget
    from nava_lab.training.settings import Training

    OmegaConf.register_new_resolver("by_difficulty", by_difficulty, replace=True)
    store = ConfigStore.instance()
    for group, name, cls in chosen:
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
    opened(evaluation, flow)
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


def known_keys() -> list[str]:
    """Every key that some choice of groups offers."""
    keys = ["seed", "seeds", "seeds_together", "difficulty"]
    for group, entries in GROUPS.items():
        for entry in entries.entries.values():
            names = {name for name, _ in entry.fields}
            cls = entries.get(entry.name)
            names |= {*_settings(cls)}
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


def _settings(cls: type) -> list[str]:
    """An entry's settings, and those of settings that are several: ``bridge``, ``bridge.kind``."""
    found: list[str] = []
    for part in dataclasses.fields(cls):  # type: ignore[arg-type]
        several: Any = part.default_factory
        inner = dataclasses.fields(several) if isinstance(several, type) and dataclasses.is_dataclass(several) else ()
        found += [part.name, *(f"{part.name}.{each.name}" for each in inner)]
    return found


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's complaint as one line that names the key and the nearest known one."""
    text = " ".join(str(part) for part in (error, error.__cause__ or "") if str(part))
    match = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'|Key '([^']+)' not in", text)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        last = key.split(".")[-1]
        if match and last in {part.split(".")[-1] for part in match.groups() if part}:
            if owners := _owners(key, overrides):
                return f"{override}: {owners}"
            known = known_keys()
            close = nearest(key, known)
            reason = "" if key not in known else first_line(text)
            return f"{override}: {reason or f'there is no key {key}'}; {close if key not in known else 'see nava train --help'}"
    return first_line(text)


def _owners(key: str, overrides: Sequence[str]) -> str:
    """Whose setting a key is, where the chosen entry of its group has none of that name and others have."""
    group, name, *_ = [*key.split("."), ""]
    chosen = [override.partition("=")[2] for override in overrides if override.split("=")[0].lstrip("+") == group]
    if group not in GROUPS or not chosen or chosen[-1] not in GROUPS[group]:
        return ""
    having = [entry for entry in GROUPS[group] if name in _settings(GROUPS[group].get(entry))]
    if not having or chosen[-1] in having:
        return ""
    return f"{group}={chosen[-1]} has no {name}; it is a setting of {', '.join(having)}"


def first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "the config cannot be read"
