"""Weights of a run or of one of its checkpoints, sharded or not, as one safetensors file, in our names or a published layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from nava_lab.checkpoints.files import CONFIG
from nava_lab.checkpoints.tables import DIALECTS
from nava_lab.checkpoints.write import EXPERTS, Written, export, layout_of
from nava_lab.config import ConfigError, from_file
from nava_lab.registry import nearest
from nava_lab.study.build import network, parts
from nava_lab.study.fit import Tell, save_weights, weights_of
from nava_lab.training.saved import SUFFIX, check, newest_checkpoint, whole

PLAIN = "plain"
LAYOUTS = (PLAIN, *(dialect.name for dialect in DIALECTS))
WEIGHTS = ("averaged", "current")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Form:
    """How weights are to be written.

    Attributes:
        layout: "plain" for our own names, or a published checkpoint's.
        weights: "averaged", which a run is scored by, or "current", which were being trained.
        dtype: of the values.
        patch: over which a published embedding convolves; its sizes multiply to our values per channel.
        expert: which of two is written where a layout holds one: for "low" noise levels, or for "high" ones.
        differ: what the model may compute otherwise than every release of the layout, such as ("clock", "heads").
    """

    layout: str = PLAIN
    weights: str = "averaged"
    dtype: str = "float32"
    patch: tuple[int, ...] = (1, 2, 2)
    expert: str = "low"
    differ: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, value, known in (
            ("to", self.layout, LAYOUTS),
            ("weights", self.weights, WEIGHTS),
            ("dtype", self.dtype, DTYPES),
            ("expert", self.expert, EXPERTS),
        ):
            if value not in known:
                raise ConfigError(f"--{option} {value}: {nearest(value, list(known))}; known: {', '.join(known)}")


def export_weights(source: Path, out: Path, form: Form, tell: Tell) -> dict[str, str]:
    """Write the weights of a run (its finished model, or else its newest checkpoint) or of a checkpoint.

    Returns what the file says of itself: run, step, weights, layout.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} must end in .safetensors")
    run, found, step = _weights(source, form, tell)
    told: dict[str, Any] = {}
    if form.layout != PLAIN:
        made = _in_layout(run, found, form)
        found, told = dict(made.tensors), dict(made.config)
        for line in made.lines():
            tell(line)
    dtype = DTYPES[form.dtype]
    written = {name: part.to(dtype) if part.is_floating_point() else part for name, part in found.items()}
    about = {"run": run.name, "step": str(step), "weights": form.weights, "layout": form.layout, "format": "pt"}
    beside = _tell(told, form.layout, out, about)
    out.parent.mkdir(parents=True, exist_ok=True)
    if beside is not None:
        beside.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    save_weights(out, {name: part.contiguous() for name, part in written.items()}, about)
    count = sum(part.numel() for part in written.values())
    tell(f"{out}: {form.weights} weights at step {step}, {len(written)} tensors, {count:,} parameters, {form.layout} layout")
    return about


def _weights(source: Path, form: Form, tell: Tell) -> tuple[Path, dict[str, Tensor], int]:
    """The run, its weights by our names, and the step that they are of."""
    if not source.exists():
        raise ConfigError(f"{source} does not exist: name a run's folder or one of its checkpoints")
    if source.suffix == SUFFIX:
        run, path = source.resolve().parent.parent, source
        try:
            check(path)
        except Exception as error:  # whatever a torn file raises
            raise ConfigError(f"{path} cannot be read ({type(error).__name__}): name another of the run's checkpoints") from None
    elif (source / "model.safetensors").exists() and form.weights == "averaged":
        finished = source / "model.safetensors"
        with safe_open(finished, "pt") as file:
            step = int(file.metadata()["steps"])
        return source.resolve(), load_file(finished), step
    elif (source / "config.yaml").exists():
        newest = newest_checkpoint(source / "checkpoints", tell)
        if newest is None:
            raise ConfigError(f"{source} holds no checkpoint that can be read")
        run, path = source.resolve(), newest
    else:
        raise ConfigError(f"{source} is neither a run's folder nor a checkpoint (NUMBER{SUFFIX})")
    saved = whole(path)
    return run, weights_of(saved, form.weights == "averaged"), int(saved["global_step"])


def _tell(told: dict[str, Any], layout: str, out: Path, about: dict[str, str]) -> Path | None:
    """Where a checkpoint says what it computes by: in its header, or in a config beside it, which is then to be written."""
    if not told:
        return None
    if layout_of(layout).header:
        about["config"] = json.dumps({"transformer": told})
        return None
    beside = out.parent / CONFIG
    if beside.is_file():
        try:
            same = json.loads(beside.read_text(encoding="utf-8")) == told
        except ValueError:
            same = False
        if not same:
            raise ConfigError(f"{beside} says what other weights compute by: give {out.name} a folder of its own")
    return beside


def _in_layout(run: Path, weights: dict[str, Tensor], form: Form) -> Written:
    """The weights as a published checkpoint names and shapes them, and what is said beside them of what they compute by."""
    config = from_file(run / "config.yaml")
    model = network(config, parts(config).solution)
    model.load_state_dict(weights)
    try:
        found = export(model, form.layout, form.patch, expert=form.expert, differ=form.differ)
    except ValueError as error:
        raise ConfigError(f"{run.name}: {error}") from None
    except RuntimeError:
        sizes = ",".join(map(str, form.patch))
        raise ConfigError(f"--patch {sizes} does not divide what {run.name} embeds: give the patch of its world") from None
    if not found.tensors:
        raise ConfigError(f"no weights of {config.variant.name} have a place in the {form.layout} layout")
    return found
