"""Every knob of a world at another value, and everything that a model is then shown: what contracts and golden clips look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nava_lab.worlds.base import World

OTHER = {
    "video_patch": 8,
    "audio_patch": 2,
    "size": 32,
    "classes": 3,
    "bands": 8,
    "channels": 4,
    "duration_s": 4.0,
    "density": 0.75,
    "objects": 3,
    "rho": 0.5,
    "p_off": 0.9,
    "spans": 3,
    "missing": 0.5,
}


def other_knobs(world: World) -> dict[str, Any]:
    """Another value for each field of a world: as OTHER says, else twice the number, not the boolean, or a list's beginning."""

    def perturbed(value: Any) -> Any:
        if isinstance(value, bool):
            return not value
        return value[:-1] if isinstance(value, list) else value * 2

    names = [field.name for field in dataclasses.fields(world)]
    return {name: OTHER.get(name, perturbed(getattr(world, name))) for name in names}


def look(world: World, split: str = "train", clips: int = 16) -> Mapping[str, Tensor | None]:
    """By name, everything that a model is shown of the first clips of a split; None for what a stream has not."""
    batch = world.batch(split, torch.arange(clips))
    shown = {
        f"{name} {part}": getattr(stream, part)
        for name, stream in {**batch.streams, "text": batch.text}.items()
        for part in ("tokens", "positions", "span")
    }
    heard = batch.text.references
    return shown | {f"references {part}": None if heard is None else getattr(heard, part) for part in ("features", "valid")}
