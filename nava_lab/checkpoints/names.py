"""Keys of a denoiser as the tables write them, whatever block a weight sits in."""

from __future__ import annotations

import re

SHARED = "shared"
ENDS = ("embed.", "heads.", "text.")
# Ours by other names: a tower's storey (one of two experts, perhaps), a bridge that reads the text, the second expert's ends.
ALIASES = (
    (r"^(blocks\.\d+)\.storeys\.parts\.(\w+)\.(?:(?:low|high)\.)?(.+)$", r"\1.\3"),
    (r"^(blocks\.\d+)\.bridge\.readers\.parts\.(\w+)\.((?:query|key|value|output)\..+)$", r"\1.text.parts.parts.shared.\3"),
    (r"^(blocks\.\d+)\.bridge\.readers\.parts\.(\w+)\.text_norm\.(.+)$", r"\1.text_norm.parts.parts.shared.\3"),
    (r"^()high\.(\w+)\.(?:(embed)|(head))\.(.+)$", None),
    (r"^()high\.(\w+)\.(text|level)\.(.+)$", r"\3.parts.shared.\4"),
)
NAMED = re.compile(r"^(embed|heads)\.(\w+)\.|\.parts\.(?!parts\.)(\w+)\.|^(?:text|level|prompt)\.parts\.(\w+)\.")


def canonical(key: str) -> tuple[str, str]:
    """A key of ours as the tables write it, ``{m}`` for whose it is; and whose: a modality's name, or "shared"."""
    for pattern, written in ALIASES:
        found = re.match(pattern, key)
        if found is None:
            continue
        if written is None:
            end = "embed" if found[3] else "heads"
            return f"{end}.{{m}}.{found[5]}", found[2]
        return canonical(found.expand(written))[0], found[2]
    found = NAMED.search(key)
    if found is None:
        return key, SHARED
    group = next(place for place in (2, 3, 4) if found[place])
    return f"{key[: found.start(group)]}{{m}}{key[found.end(group) :]}", found[group]


def layered(pattern: str) -> str:
    """The same with ``{i}`` for the number of the layer."""
    return re.sub(r"^blocks\.\d+\.", "blocks.{i}.", pattern)


def of_layer(theirs: str, key: str) -> str:
    """A checkpoint's key pattern in the layer of one of ours."""
    found = re.match(r"blocks\.(\d+)\.", key)
    return theirs.replace("{i}", found[1]) if found else theirs


def second_expert(key: str) -> bool:
    """Whether a weight is of the expert for high noise levels."""
    return ".high." in key or key.startswith("high.")


def part_of(key: str) -> str:
    """The part of a model that a weight is in, to be counted with its like: ``blocks.*.storeys.parts.audio``, ``embed.audio``."""
    parts = re.sub(r"^blocks\.\d+\.", "blocks.*.", key).split(".")
    long = {"blocks": 5, "embed": 2, "heads": 2}.get(parts[0], 3)
    return ".".join(parts[: min(long, max(1, len(parts) - 1))])
