"""Clips to watch side by side: the same captions and the same noise for every variant."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nava_lab.report.compare import Comparison
from nava_lab.report.runs import Run

CLIPS = 3
MOST_BYTES = 6_000_000  # of clips and pictures on one page, before base64 adds a third


@dataclass(frozen=True)
class Tile:
    """One clip of one variant, as base64."""

    label: str
    name: str
    clip: int
    mp4: str
    png: str


@dataclass(frozen=True)
class Tiles:
    """What a page shows: tiles of one seed, and a sentence where it is less than there is."""

    tiles: Sequence[Tile]
    seed: int | None
    fewer: str = ""

    @property
    def clips(self) -> int:
        return len({tile.clip for tile in self.tiles})


def tiles(comparison: Comparison) -> Tiles:
    """The first clips of the lowest seed that most variants share, as many as fit a page."""
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in comparison.runs:
        if _files(run, 0):
            groups.setdefault((run.family, run.label), {})[run.seed] = run
    if not groups:
        return Tiles((), None)
    seeds = sorted({seed for group in groups.values() for seed in group})
    seed = max(seeds, key=lambda one: (sum(one in group for group in groups.values()), -one))
    shown = [group[seed] for group in groups.values() if seed in group]
    for count in range(CLIPS, 0, -1):
        size = sum(path.stat().st_size for run in shown for clip in range(count) for path in _files(run, clip))
        if size <= MOST_BYTES:
            break
    else:
        count = 1
        while sum(path.stat().st_size for run in shown for path in _files(run, 0)) > MOST_BYTES and len(shown) > 1:
            shown.pop()
    missing = len(groups) - len(shown)
    fewer = (
        f"{missing} variant{'s' if missing > 1 else ''} without a clip of this seed, or too many for one page." if missing else ""
    )
    several = len(comparison.families) > 1
    made = [
        Tile(run.label, f"{run.label} [{run.family}]" if several else run.label, clip, *map(_base64, _files(run, clip)))
        for clip in range(count)
        for run in shown
        if _files(run, clip)
    ]
    return Tiles(made, seed, fewer)


def _files(run: Run, clip: int) -> list[Path]:
    """A clip's film and picture; empty unless both are there."""
    paths = [run.folder / "previews" / f"clip_{clip}.{suffix}" for suffix in ("mp4", "png")]
    return paths if all(path.exists() for path in paths) else []


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
