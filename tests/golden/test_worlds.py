"""The clips that each version of a world stands for: whoever changes a generator gives its world a new version.

At every level, and with every knob at another value: what a model is shown, references and the spans' labels included, and
what the metrics know beside it. Regenerate with ``NAVA_GOLDEN=write ./nava test -n 0 tests/golden``. A world that is not one
of the house's own is nobody's promise yet, and is left out.
"""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

import nava_lab.worlds.speakers as speakers
from nava_lab.registry import worlds
from nava_lab.worlds.base import SPLITS
from tests.knobs import look, other_knobs

GOLDEN = Path(__file__).with_name("worlds.json")
SHIPPED = ("bind", "clock", "entangle", "gaussian", "null", "offscreen", "pulse", "speakers")
PROCEDURAL = [name for name in worlds if not worlds.get(name).SHORTCUTS]
CLIPS = 6


def digest(world):
    """Per split, a few numbers that any change to what clips show, say or hold moves: sums under waves along every axis."""

    def summed(values):
        if values is None:
            return 0.0
        flat = values.double().flatten()
        return round(float((flat * torch.cos(torch.arange(len(flat), dtype=torch.float64) * 0.7)).sum()), 4)

    found = []
    for split in SPLITS:
        extra = world.batch(split, torch.arange(CLIPS)).extra
        known = torch.cat([torch.zeros(1), *(extra[name].double().flatten() for name in sorted(extra))])
        found.append([*(summed(part) for part in look(world, split, CLIPS).values()), summed(known)])
    return found


def variations(kind):
    """A world's levels, and its default with one knob at another value, by what tells them apart."""
    made = {level: kind(**fields) for level, fields in kind.LEVELS.items()}
    return made | {f"{knob}={value}": kind(**{knob: value}) for knob, value in other_knobs(kind()).items()}


def digests(name):
    return {f"{world.version} {what}": digest(world) for what, world in variations(worlds.get(name)).items()}


def near(now, then):
    return all(a == pytest.approx(b, rel=1e-4, abs=2e-3) for a, b in zip(now, then, strict=True))


@pytest.mark.parametrize("name", PROCEDURAL)
def test_a_version_is_always_the_same_clips(name):
    if name not in SHIPPED:
        pytest.skip(f"{name} is not one of the house's worlds")
    kept, found = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}, digests(name)
    if os.environ.get("NAVA_GOLDEN") == "write":
        others = {key: value for key, value in kept.items() if key.split("-")[0] != name}
        changed = [key for key, now in found.items() if key in kept and not near(now, kept[key])]
        assert not changed, f"{name}'s clips have changed ({', '.join(changed)}): give it another version, then write"
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted({**others, **found}.items()))
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    new = [key for key in found if key not in kept]
    assert not new, f"{new[0]} is new: NAVA_GOLDEN=write ./nava test -n 0 tests/golden"
    changed = [key for key, now in found.items() if not near(now, kept[key])]
    assert not changed, f"{name}'s clips have changed ({', '.join(changed)}): give it another version"


def test_a_changed_world_cannot_be_written_under_its_old_version(monkeypatch, tmp_path):
    kept = json.loads(GOLDEN.read_text())
    key = next(key for key in kept if key.startswith("pulse-"))
    file = tmp_path / "worlds.json"
    file.write_text(json.dumps({**kept, key: [[1 + value for value in row] for row in kept[key]]}))
    monkeypatch.setattr(f"{__name__}.GOLDEN", file)
    monkeypatch.setenv("NAVA_GOLDEN", "write")
    before = file.read_text()
    with pytest.raises(AssertionError, match="give it another version, then write"):
        test_a_version_is_always_the_same_clips("pulse")
    assert file.read_text() == before


def test_every_world_of_the_house_is_kept():
    assert set(SHIPPED) == {key.split("-")[0] for key in json.loads(GOLDEN.read_text())} <= set(worlds.names())


def later(right):
    """Onsets a millisecond later."""

    def moments(self, *arguments):
        found = right(self, *arguments)
        return dataclasses.replace(found, seconds=found.seconds + 1e-3)

    return moments


def remapped(right):
    """Another map from objects to timbres, where each clip has its own."""
    return lambda self, split, purpose: right(self, split, "another" if purpose == "map" else purpose)


PLANTED = {  # world, what is changed, how, and the variations that must not show it
    "onsets": ("pulse", "moments", later, set()),
    "map": ("bind", "seed", remapped, {"bind-2 easy", "bind-2 permuted=False"}),
    "labels": ("speakers", "_labels", lambda right: lambda *arguments: right(*arguments) * 0 - 1, set()),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_another_generator_is_seen(bug):
    name, method, planted, untouched = PLANTED[bug]
    kind, before = worlds.get(name), digests(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, method, planted(getattr(kind, method)))
        moved = {key for key, now in digests(name).items() if not near(now, before[key])}
    assert moved == set(before) - untouched


def test_other_references_are_seen(monkeypatch):
    """What a model hears of a voice, where picture, sound and what the metrics know stay as they are."""
    world = worlds.get("speakers")()
    before = digest(world)
    monkeypatch.setattr(speakers, "LOUDNESS", 99.0)
    assert not near(digest(world), before)
