"""What every world must do."""

import dataclasses

import numpy as np
import pytest
import torch

from nava_lab.registry import metrics, worlds

PROCEDURAL = [name for name in worlds if not worlds.get(name).SHORTCUTS]


@pytest.mark.parametrize("name", worlds.names())
def test_declares_itself(name):
    world = worlds.get(name)()
    assert world.version
    assert all(metric in metrics.names() for metric in world.metrics)
    spec = world.interface()
    assert set(spec.modalities) == {"video", "audio"}


@pytest.mark.parametrize("name", PROCEDURAL)
def test_a_clip_depends_on_its_index_alone(name):
    world = worlds.get(name)()
    whole = world.batch("train", torch.arange(12))
    for rows in (torch.tensor([7]), torch.tensor([11, 3, 5])):
        part = world.batch("train", rows)
        for key, stream in part.streams.items():
            assert torch.equal(stream.tokens, whole.streams[key].tokens[rows])
        assert torch.equal(part.text.tokens, whole.text.tokens[rows])


@pytest.mark.parametrize("name", PROCEDURAL)
def test_splits_differ_and_shapes_match_the_interface(name):
    world = worlds.get(name)()
    made = {split: world.batch(split, torch.arange(4)) for split in ("train", "validation", "test")}
    for key, spec in world.interface().modalities.items():
        tokens = [batch.streams[key].tokens for batch in made.values()]
        assert all(part.shape == (4, spec.tokens, spec.channels) for part in tokens)
        assert not torch.equal(tokens[0], tokens[1])
        assert not torch.equal(tokens[1], tokens[2])
    with pytest.raises(ValueError, match="split 'tset'"):
        world.batch("tset", torch.arange(2))


@pytest.mark.parametrize("name", PROCEDURAL)
def test_positions_are_seconds_at_token_centres(name):
    world = worlds.get(name)()
    for key, stream in world.batch("train", torch.arange(1)).streams.items():
        spec = world.interface().modalities[key]
        seconds = stream.positions[0, :, 0].unique()
        torch.testing.assert_close(seconds[0], torch.tensor(spec.seconds / 2))
        torch.testing.assert_close(seconds.diff(), torch.full((len(seconds) - 1,), spec.seconds))


OTHER = {
    "video_patch": 8,
    "audio_patch": 2,
    "size": 32,
    "classes": 3,
    "bands": 8,
    "channels": 4,
    "duration_s": 4.0,
    "density": 1.0,
}


@pytest.mark.parametrize("name", PROCEDURAL)
def test_every_knob_changes_the_data(name):
    base = worlds.get(name)()

    def look(world):
        batch = world.batch("train", torch.arange(8))
        return [(stream.tokens.shape, stream.tokens, stream.positions) for stream in batch.streams.values()]

    before = look(base)
    for field in dataclasses.fields(base):
        value = OTHER.get(field.name, getattr(base, field.name) * (0.5 if field.name == "rho" else 2))
        after = look(dataclasses.replace(base, **{field.name: value}))
        assert any(a[0] != b[0] or not torch.equal(a[1], b[1]) for a, b in zip(before, after, strict=True)), field.name


@pytest.mark.parametrize("name", PROCEDURAL)
def test_ground_truth_scores_one_and_shuffled_pairs_score_chance(name):
    world = worlds.get(name)()
    if "sync" not in world.metrics:
        pytest.skip("no events")
    batch = world.batch("test", torch.arange(192))
    events = world.events({key: stream.tokens for key, stream in batch.streams.items()})
    truth, shuffled = (metrics.get("sync")(world) for _ in range(2))
    truth.update_samples(batch, events)
    assert truth.compute()["sync_auc"].value > 0.99
    order = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    audio = events["audio"]
    events["audio"] = type(audio)(*(part[order] for part in (audio.seconds, audio.kind, audio.amplitude, audio.real)))
    shuffled.update_samples(batch, events)
    found = shuffled.compute()["sync_auc"]
    assert found.low < 0 < found.high
    assert np.isclose(found.value, 0, atol=0.06)
