"""FLOPs of a forward pass by part, counted by running on the meta device (multiply-adds count two).

Parts: projections (of self-attention, with qkv, output and head gates), scores (its logits and weighted values), text (its
cross-attention), exchange (bridges), feed_forward, embedders, conditioning (text encoder, noise levels, timbre) and heads.
Elementwise work is not counted. Of two experts a sample meets one, and one is counted: the other is computed here too, because no
tensor's value decides what runs, and what that costs stands apart (``IDLE``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nava_lab.budget.thin import Thin
from nava_lab.conditioning.timbre import blank_references
from nava_lab.streams import Interface, Stream

PARTS = ("projections", "scores", "text", "exchange", "feed_forward", "embedders", "conditioning", "heads")
IDLE = "idle"  # no part of what a sample needs: the expert that it does not take
SCORES = ("bmm", "baddbmm")


def flops_by_part(thin: Thin, interface: Interface) -> dict[str, int]:
    """FLOPs that one full-length sample needs, by part, and under ``IDLE`` what is computed beside it and thrown away.

    The reference attention is counted, for the counter knows its matrix products on every device.
    """
    model = thin.model
    backend, model.backend = model.backend, "reference"
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*dummy_inputs(interface, 1, "meta"))
    finally:
        model.backend = backend
    counted = counter.get_flop_counts()
    root = type(model).__name__
    paths = {name.removeprefix(root).removeprefix("."): counts for name, counts in counted.items() if name.startswith(root)}
    found: Counter[str] = Counter()
    for path, counts in _exclusive(paths).items():
        part = _part(model, path)
        for op, flops in counts.items():
            is_score = part == "projections" and str(op).split(".")[-1] in SCORES
            found["scores" if is_score else part] += thin.times(path) * flops
    return {part: found[part] for part in (*PARTS, IDLE) if found[part]}


def _exclusive(paths: Mapping[str, Mapping[object, int]]) -> dict[str, Counter]:
    """Counts of each module without those of the modules inside it that were counted too."""
    own = {path: Counter(counts) for path, counts in paths.items()}
    for path, counts in paths.items():
        if not path:
            continue
        parent = path
        while parent:
            parent = parent.rpartition(".")[0]
            if parent in own:
                break
        if parent in own:
            own[parent].subtract(counts)
    return own


def _part(model: nn.Module, path: str) -> str:
    """The part that a module belongs to: the nearest one named above it, else the nearest budget group; or that it idles."""
    part, module, named = "projections", model, False
    for name in path.split(".") if path else ():
        module = getattr(module, name) if not name.isdigit() else module[int(name)]
        if getattr(module, "idle", False):
            return IDLE
        if own := getattr(module, "part", None):
            part, named = own, True
        elif not named:
            part = getattr(module, "budget_group", part)
    return part if part in PARTS else "projections"


def dummy_inputs(
    interface: Interface, batch: int, device: torch.device | str
) -> tuple[dict[str, Stream], dict[str, torch.Tensor], Stream]:
    """Full-length inputs of the right shapes: streams, one shared level, text."""
    streams = {
        name: Stream(
            torch.zeros(batch, spec.tokens, spec.channels + spec.context, device=device),
            torch.zeros(1, spec.tokens, 3, device=device),
        )
        for name, spec in interface.modalities.items()
    }
    level = torch.zeros(batch, device=device)
    text = interface.text
    if text.vocabulary:
        words = torch.ones(batch, text.length, dtype=torch.long, device=device)
    else:
        words = torch.zeros(batch, text.length, text.features, device=device)
    places = Stream(words, torch.zeros(1, text.length, 3, device=device))
    return streams, dict.fromkeys(streams, level), blank_references(places, text)
