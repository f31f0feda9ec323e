"""Shapes that do not fit, and the settings that mend them: a table of what each axis of a weight is, and who decides it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nava_lab.checkpoints.names import SHARED, canonical

# What the rows and columns of a weight count; the first pattern that fits says it.
AXES = (
    (r"\bbridge\.readers\.\w+_to_\w+\.(query|key|value)\.linear\.weight$", ("inner", "width")),
    (r"\bbridge\.readers\.\w+_to_\w+\.(query|key|value)\.linear\.bias$", ("inner",)),
    (r"\bbridge\.readers\.\w+_to_\w+\.output\.linear\.weight$", ("width", "inner")),
    (r"\bbridge\.readers\.\w+_to_\w+\.(query|key)\.norm\.norm\.weight$", ("normed in an exchange",)),
    (r"\bbridge\.tables\b.*\btable$", ("vectors of an exchange", "width")),
    (r"^exchange\b.*\bprojection\.1\.weight$", ("vectors of an exchange", "width")),
    (r"^exchange\b.*\bprojection\.1\.bias$", ("vectors of an exchange",)),
    (r"\bfc1\.weight$", ("hidden", "width")),
    (r"\bfc1\.bias$", ("hidden",)),
    (r"\bfc2\.weight$", ("width", "hidden")),
    (r"^(level|prompt|exchange)\b.*\bmlp\.0\.weight$|\.level\.mlp\.0\.weight$", ("width", "features")),
    (r"^(level|prompt)\b.*\bprojection\.1\.weight$", ("vectors of width", "width")),
    (r"^(level|prompt)\b.*\bprojection\.1\.bias$", ("vectors of width",)),
    (r"^embed\.\w+\.weight$|\.embed\.weight$", ("width", "channels")),
    (r"^embed\.\w+\.first\.weight$", ("width", "channels", "kernel")),
    (r"^embed\.\w+\.w[13]\.weight$", ("inner", "width", "kernel")),
    (r"^embed\.\w+\.w2\.weight$", ("width", "inner", "kernel")),
    (r"^heads\.\w+\.linear\.weight$|\.head\.linear\.weight$", ("channels", "width")),
    (r"^heads\.\w+\.linear\.bias$|\.head\.linear\.bias$", ("channels",)),
    (r"^text\b.*\bmlp\.0\.weight$|\.text\.mlp\.0\.weight$", ("width", "text")),
    (r"\bmodulation\.tables\b.*\btable$", ("vectors", "width")),
    (r"_norm\.norm\.weight$|\b(query|key)\.norm\.norm\.weight$", ("normed",)),
    (r"\bqkv\.weight$", ("queries", "width")),
    (r"\bqkv\.bias$", ("queries",)),
    (r"\bgate\.weight$", ("heads", "width")),
    (r"\bgate\.bias$", ("heads",)),
    (r"", ("width", "width")),
)
# The override that makes an axis theirs, in their number; what stands later is only said where nothing before it explains.
REMEDIES = (
    ("width", "budget.width={theirs}"),
    ("hidden", "budget.hidden={theirs}"),
    ("features", "variant.ends.level_features={theirs}"),
    ("heads", "variant.heads={theirs}"),
    ("channels", "warm_start.ends=false (its latents have other channels)"),
    ("text", "warm_start.ends=false (its text has other features)"),
    ("inner", "variant.bridge.inner (whose width the exchange has)"),
    ("normed in an exchange", "variant.bridge.qk_norm (over all heads, or within each)"),
    ("vectors of an exchange", "variant.bridge.directions (vectors of an exchange)"),
    ("queries", "variant.layers (no grouped queries)"),
    ("normed", "variant.layers.qk_norm (over all heads, or within each)"),
    ("vectors", "variant.layers.text_modulation (vectors of a layer)"),
    ("vectors of width", "variant.layers.text_modulation (vectors of a layer)"),
)
FOLLOW = {
    "queries",
    "normed",
    "vectors of width",
    "inner",
    "normed in an exchange",
    "vectors of an exchange",
}  # axes that other settings move too


@dataclass(frozen=True)
class Misfit:
    """Two shapes that differ.

    Attributes:
        ours: key, and the shape of the rows to be filled.
        theirs: key and shape, and the shape as it would be laid in.
    """

    ours: str
    rows: tuple[int, ...]
    theirs: str
    shape: tuple[int, ...]
    laid: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.ours} is {'x'.join(map(str, self.rows))} and {self.theirs} {'x'.join(map(str, self.shape))}"

    def causes(self) -> list[tuple[str, int]]:
        """The axes that differ, with their number."""
        axes = next(axes for pattern, axes in AXES if re.search(pattern, self.ours))
        if len(self.rows) != len(self.laid):
            return []
        return [(axis, theirs) for axis, ours, theirs in zip(axes, self.rows, self.laid, strict=False) if ours != theirs]


def remedy(misfits: Iterable[Misfit]) -> str:
    """The overrides that mend them; where one modality's width alone is another, its share."""
    found: dict[str, int] = {}
    owners: set[str] = set()
    for misfit in misfits:
        for axis, theirs in misfit.causes():
            found[axis] = max(theirs, found.get(axis, 0))
            owners |= {canonical(misfit.ours)[1]} if axis == "width" else set()
    named = [(axis, words.format(theirs=found[axis])) for axis, words in REMEDIES if axis in found]
    if len(owners) == 1 and not owners <= {SHARED, "video"}:
        (name,) = owners
        named = [(axis, words) for axis, words in named if axis not in ("width", "hidden")]
        named.insert(0, ("width", f"variant.width_share.{name} (its width is {found['width']})"))
    direct = [words for axis, words in named if axis not in FOLLOW]
    said = list(dict.fromkeys(direct or [words for _, words in named[:1]]))
    return ", ".join(said) or "another variant: its weights are of another kind"
