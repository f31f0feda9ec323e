"""What a config would build, as one plain object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from nava_lab.attention.picture import Picture
from nava_lab.blocks.base import Dims
from nava_lab.budget import Budget, measure
from nava_lab.budget.memory import memory
from nava_lab.budget.solve import Solution
from nava_lab.config import Config, ConfigError, device_count, explain, load
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.look import calls, pictures
from nava_lab.models.variant import Size, released
from nava_lab.registry import variants
from nava_lab.streams import Interface
from nava_lab.study.build import interface, parts, rules

SIZE = "size"  # the key by which a published size is asked for: size=published, or size=NAME of one of several
PUBLISHED = "published"
OWN_LATENTS = "its own latents"
OF_A_WORLD = (
    "world=",
    "world.",
    "clips.",
    "difficulty=",
    "conditioning.",
)  # what a released system's clips and words take no part in


def described(overrides: Sequence[str]) -> dict[str, Any]:
    """What the overrides would build; with ``size=published`` (or the name of a release), a system as it was released."""
    asked = next((part.split("=", 1)[1] for part in overrides if part.startswith(f"{SIZE}=")), None)
    overrides = [part for part in overrides if not part.startswith(f"{SIZE}=")]
    return description(load(overrides)) if asked is None else _as_released(asked, overrides)


def _as_released(asked: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A system at a size of its release, with what the overrides change of it."""
    for part in overrides:
        if part.startswith("budget."):
            raise ConfigError(f"{part}: {SIZE}={asked} is a size already; leave one of them out")
        if part.startswith(OF_A_WORLD):
            raise ConfigError(
                f"{part}: {SIZE}={asked} is described on the latents and words of its release; leave one of them out"
            )
    try:
        kind = type(load([part for part in overrides if part.startswith("variant=")]).variant)
        _, found = released(kind, "" if asked == PUBLISHED else asked)
        config = load([*_as_overrides(found.fields), *overrides])
        dims = found.dims(config.variant)
        cost = measure(config.variant, found.interface, dims)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    step = f"as released ({found.source}), on {OWN_LATENTS}"
    solution = Solution(found.size, cost, Budget(**vars(found.size)), float(cost.total), (step,))
    batch = _at_once(config) if any(part.startswith("training.batch_size=") for part in overrides) else 1
    return {**_description(config, found.interface, dims, solution, batch), "world": OWN_LATENTS}


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values of ``key=a,b``."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except Exception as error:  # Hydra's grammar errors share no public base class
        raise ConfigError(explain(error, overrides)) from None


def _as_overrides(fields: Mapping[str, Any]) -> list[str]:
    def shown(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return [f"variant.{key}={shown(value)}" for key, value in fields.items()]


def description(config: Config) -> dict[str, Any]:
    """Stages, parameters, FLOPs, memory and how the budget was met; builds on the meta device only."""
    solution = parts(config).solution
    return _description(config, interface(config), solution.size, solution, _at_once(config))


def _at_once(config: Config) -> int:
    """Samples that one device computes at once."""
    return config.training.batch_size // (device_count(config.trainer) * config.trainer.accumulate)


def _description(config: Config, face: Interface, size: Size | Dims, solution: Solution, batch: int) -> dict[str, Any]:
    cost, budget = solution.cost, solution.budget
    entry = variants.entries.get(config.variant.name)
    held = memory(config.variant, face, size, bool(config.training.ema_half_life))
    return {
        "variant": config.variant.name,
        "world": config.world.name,
        "summary": entry.summary if entry else "",
        "size": {"width": solution.size.width, "hidden": solution.size.hidden},
        "heads": dict(Denoiser.dims(config.variant, face, size).heads),
        "stages": [
            {
                "label": stage.label or stage.block.name,
                "layers": stage.layers,
                "block": _sentence(stage.config),
                "text": stage.text,
                "only": list(stage.only),
            }
            for stage in config.variant.plan()
        ],
        "parameters": {
            "total": cost.total,
            "active_per_token": cost.active_per_token,
            "active": dict(cost.active),
            "groups": dict(cost.groups),
        },
        "flops_per_sample": cost.flops_per_sample,
        "flops_by_part": {part: 3 * flops for part, flops in cost.flops.items()},
        "flops_idle": 3 * cost.idle_flops,
        "memory": {"batch": batch, "total": held.total(batch), **held.parts(batch)},
        "attention": attention(config, face),
        "budget": {
            "kind": budget.kind,
            "requested": budget.requested,
            "realised": solution.realised,
            "steps": list(solution.steps),
        },
    }


def attention(config: Config, face: Interface) -> dict[str, Any]:
    """Which backend each attention takes in training on this config's device, and why."""
    device, chosen = config.trainer.accelerator, config.attention
    packed = config.training.batch_size if chosen.packed else 0
    found = calls(config.variant, face, device, chosen.backend, packed, **rules(config))
    return {"device": device, "calls": [{**vars(call), "queries": list(call.queries), "keys": list(call.keys)} for call in found]}


def mask_pictures(config: Config, cut: bool = False) -> list[Picture]:
    """Who sees whom in every stage of the config's variant."""
    return pictures(config.variant, interface(config), cut, **rules(config))


def _sentence(block: Any) -> str:
    """A block as its name and whatever it does not leave at its default."""
    plain = type(block)()
    changed = []
    for field in dataclasses.fields(block):
        value = getattr(block, field.name)
        if value != getattr(plain, field.name):
            shown = _sentence(value) if dataclasses.is_dataclass(value) else value
            changed.append(f"{field.name}={'+'.join(value) if isinstance(value, tuple) else shown}")
    return f"{block.name}({', '.join(changed)})"
