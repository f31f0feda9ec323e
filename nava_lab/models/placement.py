"""Where, among a model's layers, the ones of a kind sit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from nava_lab.blocks.base import choose

OWN = ("early", "late", "sandwich", "interleaved")
BRIDGES = ("full", "shallow_focus", "distributed", "progressive")


def own_layers(placement: str, own: int, depth: int) -> list[bool]:
    """Which of ``depth`` layers keep weights per modality, ``own`` of them in all.

    early: the first (NAVA). late: the last. sandwich: half at each end, the odd one first (MagiHuman; NAVA's 5-20-5).
    interleaved: spread evenly, the first among them.
    """
    choose(placement, "placement", OWN)
    if not 0 <= own <= depth:
        raise ValueError(f"{own} of {depth} layers cannot keep weights per modality")
    first = {"early": own, "late": 0, "sandwich": own - own // 2, "interleaved": 0}[placement]
    last = {"early": 0, "late": own, "sandwich": own // 2, "interleaved": 0}[placement]
    chosen = {*range(first), *range(depth - last, depth)}
    if placement == "interleaved":
        chosen = {layer * depth // own for layer in range(own)}
    return [layer in chosen for layer in range(depth)]


def bridged_layers(placement: str, depth: int) -> list[bool]:
    """Which of ``depth`` layers have a bridge (MOVA's strategies, whose counts at 30 layers are 30, 10, 10 and 16).

    full: all. shallow_focus: the first third. distributed: every third. progressive: the first 8 of 30, then every third.
    """
    choose(placement, "bridge_placement", BRIDGES)
    early = max(1, round(depth * 8 / 30))
    chosen = {
        "full": range(depth),
        "shallow_focus": range(max(1, depth // 3)),
        "distributed": range(0, depth, 3),
        "progressive": [*range(early), *range(early, depth, 3)],
    }[placement]
    return [layer in set(chosen) for layer in range(depth)]


def runs(flags: Sequence[bool]) -> list[tuple[bool, int]]:
    """Equal neighbours together: (flag, how many)."""
    return [(flag, len(list(group))) for flag, group in groupby(flags)]
