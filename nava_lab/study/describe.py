"""What a config would build, as one plain object."""

from __future__ import annotations

import dataclasses
from typing import Any

from nava_lab.attention import Padding, Tokens, Visible, Window
from nava_lab.attention.attend import AUTO, choose
from nava_lab.attention.picture import Picture
from nava_lab.config import Config
from nava_lab.models.look import full_clip, pictures
from nava_lab.registry import variants
from nava_lab.streams import TEXT
from nava_lab.study.build import interface, parts, rules


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
            {
                "label": stage.label or stage.block.name,
                "layers": stage.layers,
                "block": _sentence(stage.config),
                "text": stage.text,
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
        "attention": _attention(config),
        "budget": {
            "kind": budget.kind,
            "requested": budget.requested,
            "realised": solution.realised,
            "steps": list(solution.steps),
        },
    }


def _attention(config: Config) -> dict[str, str]:
    """Which backend training and sampling take on this config's device, and why."""
    device = config.trainer.accelerator
    if config.attention.backend != AUTO:
        return {"backend": config.attention.backend, "why": "as set", "device": device}
    streams, _, text = full_clip(interface(config))
    names = (*streams, TEXT)
    tokens = Tokens.of({**streams, TEXT: text}, names, names)
    visible = Visible.of(Padding() & Window(config.attention.window_s), tokens, tokens)
    taken = choose(device, True, visible, len(tokens))
    return {"backend": taken.backend, "why": taken.why, "device": device}


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
