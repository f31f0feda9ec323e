"""What every world must do."""

import dataclasses
import importlib
import json

import pytest
import torch

from nava_lab.config import load
from nava_lab.evaluation import base
from nava_lab.evaluation.base import truth
from nava_lab.evaluation.protocol import feed
from nava_lab.evaluation.suite import exact_scores
from nava_lab.registry import metrics, worlds
from nava_lab.study.run import declared
from nava_lab.worlds.base import DIFFICULTIES, SPLITS, Events
from tests.knobs import look, other_knobs

PROCEDURAL = [name for name in worlds if not worlds.get(name).SHORTCUTS]


@pytest.mark.parametrize("name", worlds.names())
def test_declares_itself(name):
    world = worlds.get(name)()
    assert world.version
    assert all(metric in metrics.names() for metric in world.metrics)
    exact = {score for metric in world.metrics for score in metrics.get(metric).exact}
    assert set(world.mastery) <= exact - {world.headline}  # what half of a true clip's score means, chance being 0
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
    made = {split: world.batch(split, torch.arange(32)) for split in SPLITS}
    for key, spec in world.interface().modalities.items():
        tokens = [batch.streams[key].tokens for batch in made.values()]
        assert all(part.shape == (32, spec.tokens, spec.channels) for part in tokens)
    clips = [torch.cat([part.tokens.flatten(1) for part in batch.streams.values()], 1) for batch in made.values()]
    assert len({clip.numpy().tobytes() for part in clips for clip in part}) == 32 * len(SPLITS)
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


def same(a, b):
    return a is b or (a is not None and b is not None and a.shape == b.shape and torch.equal(a, b))


@pytest.mark.parametrize("name", PROCEDURAL)
def test_every_knob_changes_the_data(name):
    base = worlds.get(name)()
    before = look(base)
    for knob, value in other_knobs(base).items():
        assert value != getattr(base, knob)
        after = look(dataclasses.replace(base, **{knob: value}))
        assert not all(same(before[part], after[part]) for part in before), knob


@pytest.mark.parametrize("name", PROCEDURAL)
def test_difficulty_sets_fields_and_what_is_set_stays(name):
    levels = worlds.get(name).LEVELS
    assert tuple(levels) == DIFFICULTIES
    made = [worlds.get(name)(**fields) for fields in levels.values()]
    assert made[1] == worlds.get(name)()
    assert len({repr(world) for world in made}) == 3
    axis = next(iter(levels["hard"]))
    loaded = {level: getattr(load([f"world={name}", f"difficulty={level}"]).world, axis) for level in levels}
    assert loaded == {level: fields[axis] for level, fields in levels.items()}
    config = load([f"world={name}", "difficulty=hard", f"world.{axis}={levels['easy'][axis]}"])
    assert getattr(config.world, axis) == levels["easy"][axis]
    assert config.resolved["world"][axis] == levels["easy"][axis]
    assert "difficulty" not in config.resolved


@pytest.mark.parametrize("name", PROCEDURAL)
def test_its_docstring_draws_a_sample_on_a_time_axis(name):
    drawn = importlib.import_module(worlds.get(name).__module__).__doc__
    lines = [line.split()[0] for line in drawn.splitlines() if line.startswith("    ") and line.strip()]
    assert {"time", "video", "audio", "text"} <= set(lines)


@pytest.mark.parametrize("name", PROCEDURAL)
def test_captions_are_what_the_ids_say_in_the_least_padding(name):
    world = worlds.get(name)()
    index = torch.arange(12)
    text, said = world.batch("test", index).text, world.captions("test", index)
    tokenizer = getattr(world, "tokenizer", None)
    if tokenizer is None:
        assert said == [""] * 12
        return
    assert torch.equal(tokenizer(said).tokens, text.tokens)
    assert torch.equal(text.valid, text.tokens != 0)
    assert text.tokens.shape[1] == world.interface().text.length


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr("nava_lab.evaluation.score.RESAMPLES", 300)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("name", PROCEDURAL)
def test_true_clips_score_what_they_should_and_chance_is_within_its_interval(name):
    rows = list(exact_scores(worlds.get(name)()))
    assert rows
    assert [row for row in rows if not row.holds] == []
    assert {row.score for row in rows} >= {score for part in worlds.get(name).metrics for score in metrics.get(part).exact}


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("name", PROCEDURAL)
def test_what_is_exact_is_seen_to_be_wrong(name):
    """Were true clips those at chance, no row would hold, but where that is what the world is for."""
    for row in exact_scores(worlds.get(name)(), clips=64):
        assert not dataclasses.replace(row, truth=row.chance, chance=row.truth).holds or not worlds.get(name).paired


WITH_EVENTS = [name for name in PROCEDURAL if any(metrics.get(part).needs == "samples" for part in worlds.get(name).metrics)]


def by_any_order(name, permute):
    """What metrics of events make of a world's pictures with other clips' sounds."""
    world, one, other = worlds.get(name)(), *(worlds.get(name)().batch("test", torch.arange(16) + by) for by in (0, 16))
    events = world.events({"video": one.streams["video"].tokens, "audio": other.streams["audio"].tokens})
    batch = one
    if permute:
        events = {key: permuted(part) for key, part in events.items()}
        true = {key: permuted(truth(one, key)) for key in ("video", "audio")}
        told = {f"{key}_{part.name}": getattr(true[key], part.name) for key in true for part in dataclasses.fields(Events)}
        batch = dataclasses.replace(one, extra={**one.extra, **told})
    found = {}
    for metric in (metrics.get(part)(world) for part in world.metrics if metrics.get(part).needs == "samples"):
        metric.update_samples(batch, events)
        found |= {score: repr(value) for score, value in metric.compute().items()}
    return found


def permuted(events):
    """Each clip's events in an order of their own, padding among them."""
    order = torch.rand(events.real.shape, generator=torch.Generator().manual_seed(1)).argsort(1)
    return Events(*(getattr(events, part.name).gather(1, order) for part in dataclasses.fields(events)))


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("name", WITH_EVENTS)
def test_no_metric_minds_the_order_in_which_events_are_listed(name):
    assert by_any_order(name, permute=True) == by_any_order(name, permute=False)


@pytest.mark.usefixtures("few_resamples")
def test_a_metric_that_minds_the_order_is_found_out(monkeypatch):
    """Kinds left behind when their onsets are put in order."""
    right = base.padded_kinds
    monkeypatch.setattr("nava_lab.evaluation.binding.padded_kinds", lambda events: (right(events)[0], in_place(events)))
    assert by_any_order("bind", permute=True) != by_any_order("bind", permute=False)


def in_place(events):
    kinds = events.kind.masked_fill(~events.real, -1)
    return torch.nn.functional.pad(kinds, (0, base.MOST - kinds.shape[1]), value=-1)


@pytest.mark.parametrize("name", PROCEDURAL)
def test_records_say_which_scores_run_from_chance_to_perfection(name):
    config = load([f"world={name}"])
    scores = [score for part in config.world.metrics for score in metrics.get(part).exact]
    exact = declared(config, [*scores, "loss", "count_error"])[2]
    assert config.world.headline in exact
    assert exact == scores


def test_two_processes_score_what_one_does(tmp_path):
    """Each scores its half, clip 0 twice as a distributed sampler may; their states are gathered by torchmetrics over gloo."""
    torch.multiprocessing.start_processes(_half, (tmp_path,), nprocs=2, start_method="fork")
    both = json.loads((tmp_path / "scores.json").read_text())
    assert both == {name: _scored(name, range(24)) for name in PROCEDURAL}


def _scored(name, indices):
    world = worlds.get(name)()
    found = {}
    for metric in (metrics.get(part)(world) for part in world.metrics):
        batch = world.batch("test", torch.tensor(indices))
        streams = {key: stream.tokens for key, stream in batch.streams.items()}
        feed([metric], world, batch, streams)
        if metric.needs == "losses":
            losses = {key: tokens.square().flatten(1).mean(1) for key, tokens in streams.items()}
            metric.update_losses(batch, losses, {key: torch.full((len(batch),), 0.5) for key in streams})
        found |= {score: repr(value) for score, value in metric.compute().items()}
    return found


def _half(rank, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
    mine = [*range(0, 24, 2), 0] if rank == 0 else [*range(1, 24, 2), 0]
    found = {name: _scored(name, mine) for name in PROCEDURAL}
    if rank == 0:
        (path / "scores.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
