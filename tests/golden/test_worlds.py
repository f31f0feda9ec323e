"""The clips that each version of a world stands for: whoever changes a generator gives its world a new version.

Regenerate with ``NAVA_GOLDEN=write ./nava test -n 0 tests/golden``.
"""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from nava_lab.registry import worlds
from nava_lab.worlds.base import SPLITS

GOLDEN = Path(__file__).with_name("worlds.json")
PROCEDURAL = [name for name in worlds if not worlds.get(name).SHORTCUTS]


def digest(world):
    """A few numbers that any change to what clips show, say or hold moves: sums under waves along every axis."""

    def summed(values):
        flat = values.double().flatten()
        return float((flat * torch.cos(torch.arange(len(flat), dtype=torch.float64) * 0.7)).sum())

    found = []
    for split in SPLITS:
        batch = world.batch(split, torch.arange(6))
        parts = [stream.tokens for stream in batch.streams.values()]
        extra = [value for _, value in sorted(batch.extra.items())]
        found.append([round(summed(part), 4) for part in (*parts, batch.text.tokens, *extra)])
    return found


@pytest.mark.parametrize("name", PROCEDURAL)
def test_a_version_is_always_the_same_clips(name):
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for level, fields in worlds.get(name).LEVELS.items():
        world = worlds.get(name)(**fields)
        key, found = f"{world.version} {level}", digest(world)
        if os.environ.get("NAVA_GOLDEN") == "write":
            kept[key] = found
            continue
        assert key in kept, f"{key} is new: NAVA_GOLDEN=write ./nava test -n 0 tests/golden"
        for now, then in zip(found, kept[key], strict=True):
            assert now == pytest.approx(then, rel=1e-4, abs=2e-3), f"{name}'s clips have changed: give it another version"
    if os.environ.get("NAVA_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(kept) + "\n")


def test_another_generator_is_seen():
    """Onsets a millisecond later move the digest."""
    world = worlds.get("pulse")()
    before = digest(world)
    moments = type(world).moments

    def later(self, *arguments):
        found = moments(self, *arguments)
        return dataclasses.replace(found, seconds=found.seconds + 1e-3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(world), "moments", later)
        assert digest(world)[0] != pytest.approx(before[0], rel=1e-4, abs=2e-3)
