"""What a config would build, as one plain object."""

from __future__ import annotations

import dataclasses
from typing import Any

from nava_lab.config import Config
from nava_lab.registry import variants
from nava_lab.study.build import parts


def description(config: Config) -> dict[str, Any]:
    """Stages, parameters, FLOPs and how the budget was met; builds on the meta device only."""
    solution = parts(config).solution
    cost, budget = solution.cost, solution.budget
    entry = variants.entries.get(config.variant.name)
    return {
        "variant": config.variant.name,
        "world": config.world.name,
        "summary": entry.summary if entry else "",
        "size": {"width": solution.size.width, "hidden": solution.size.hidden},
        "stages": [
            {"label": stage.label or stage.block.name, "layers": stage.layers, "block": _sentence(stage.block)}
            for stage in config.variant.stages()
        ],
        "parameters": {
            "total": cost.total,
            "active_per_token": cost.active_per_token,
            "active": dict(cost.active),
            "groups": dict(cost.groups),
        },
        "flops_per_sample": cost.flops_per_sample,
        "budget": {
            "kind": budget.kind,
            "requested": budget.requested,
            "realised": solution.realised,
            "steps": list(solution.steps),
        },
    }


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
