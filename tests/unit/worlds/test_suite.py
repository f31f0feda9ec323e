"""What each world of the suite promises about its clips."""

import re

import numpy as np
import pytest
import torch

from nava_lab.registry import worlds
from nava_lab.worlds.entangle import FILLER
from nava_lab.worlds.scene import Scene
from nava_lab.worlds.staged import GAP

MANY = torch.arange(600)


def script(name, split="train", **knobs):
    world = worlds.get(name)(**knobs)
    return world, world.script(split, MANY)


def test_the_clock_states_the_bin_of_every_onset():
    world, found = script("clock", density=3.0)
    for row, caption in enumerate(world.captions("train", MANY)):
        colour, disc, at, *times = caption.split()
        assert (colour, disc, at) == (world.scene.colours[found.seen.kind[row, 0]], "disc", "at")
        said = np.array([float(word.removesuffix("s")) for word in times])
        true = found.seen.onsets(row)
        assert len(said) == len(true)
        assert (true - said >= -1e-6).all()
        assert (true - said <= world.bin_s + 1e-6).all()


def test_null_shares_the_class_and_nothing_else():
    _, found = script("null")
    assert torch.equal(found.seen.kind[:, 0], found.heard.kind[:, 0])
    counts = torch.stack((found.seen.real.sum(1), found.heard.real.sum(1))).double()
    assert abs(float(torch.corrcoef(counts)[0, 1])) < 0.1
    firsts = torch.stack((found.seen.seconds[:, 0], found.heard.seconds[:, 0]))
    assert abs(float(torch.corrcoef(firsts)[0, 1])) < 0.1


@pytest.mark.parametrize("permuted", [False, True])
def test_bind_follows_its_map_and_states_it_where_it_changes(permuted):
    world, found = script("bind", objects=4, permuted=permuted)
    real, map_ = found.seen.real, found.extra["timbre_of"]
    assert torch.equal(found.heard.kind[real], map_.gather(1, found.seen.kind)[real])
    assert len(torch.unique(map_, dim=0)) == (24 if permuted else 1)
    caption = world.captions("train", MANY[:1])[0].split()
    timbres = [world.scene.timbre_names[timbre] for timbre in map_[0]]
    pairs = [word for pair in zip(world.scene.colours, timbres, strict=True) for word in pair]
    assert caption == (pairs if permuted else world.scene.colours)
    shares = torch.bincount(found.heard.kind[real], minlength=4) / real.sum()
    assert (shares - 0.25).abs().max() < 0.05


@pytest.mark.parametrize("p_off", [0.0, 0.25, 0.5])
def test_offscreen_counts_are_as_told_and_distractors_are_silent(p_off):
    world, found = script("offscreen", p_off=p_off)
    kind = found.extra["kind"].unsqueeze(-1)
    mine, other = found.seen.real & (found.seen.kind == kind), found.seen.real & (found.seen.kind != kind)
    assert not (other & found.heard.real).any()
    assert not (mine & ~found.heard.real).any()
    off = found.heard.real & ~found.seen.real
    assert torch.equal(off.sum(1), found.extra["off"])
    assert abs(float(off.sum() / found.heard.real.sum()) - p_off) < 0.05
    for row, caption in enumerate(world.captions("train", MANY[:50])):
        words = caption.split()
        said = {word: int(words[place - 1]) for place, word in enumerate(words) if word in ("seen", "unseen", "silent")}
        true = {"seen": int(mine[row].sum()), "unseen": int(off[row].sum()), "silent": int(other[row].sum())}
        assert said == {word: count for word, count in true.items() if count}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"distractors": 7}, "world.distractors=7 leave no room for a sound in 2 s; at most 6"),
        ({"distractors": 6}, "world.density=1.0 does not fit events 0.25 s apart beside 6 others; at most 0.5"),
    ],
)
def test_more_flashes_than_fit_are_refused_by_the_knob_that_asks_for_them(fields, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        worlds.get("offscreen")(**fields)
    assert worlds.get("offscreen")(distractors=6, density=0.5).most == 7


def test_silent_and_sounding_flashes_are_alike_in_time():
    """By rank among a clip's events, a distractor is as likely first as last."""
    _, found = script("offscreen", p_off=0.0, distractors=2)
    other = found.seen.real & ~found.heard.real
    last = found.seen.real.sum(1, keepdim=True) - 1
    rank = torch.arange(found.seen.real.shape[1]).expand_as(other)
    inner = (other & (last > 0)).double()
    place = (rank / last.clamp(min=1) * inner).sum() / inner.sum()
    assert abs(float(place) - 0.5) < 0.05


@pytest.mark.parametrize("held_out", [1, 2])
def test_held_out_pairs_never_occur_in_training(held_out):
    world = worlds.get("entangle")(held_out=held_out)
    pairs = {}
    for split in ("train", "validation", "test"):
        extra = world.script(split, torch.arange(4000)).extra
        pairs[split] = set(zip(extra["colour"].tolist(), extra["timbre"].tolist(), strict=True))
        assert bool(extra["held_out"].any()) == (split == "test")
    assert len(pairs["train"]) == 4 * (4 - held_out)
    assert pairs["validation"] == pairs["train"]
    assert len(pairs["test"]) == 16
    extra = world.script("test", torch.arange(4000)).extra
    steps = (extra["timbre"] - extra["colour"]) % 4
    assert torch.equal(extra["held_out"], (steps >= 1) & (steps <= held_out))
    assert {colour for colour, _ in pairs["train"]} == {timbre for _, timbre in pairs["train"]} == set(range(4))


def test_entangles_words_stand_among_fillers_in_order():
    world = worlds.get("entangle")()
    extra = world.script("test", MANY).extra
    for row, caption in enumerate(world.captions("test", MANY[:60])):
        words = caption.split()
        assert len(words) == extra["text_tokens"][row]
        kept = [word for word in words if word not in FILLER]
        colour, timbre = (int(extra[name][row]) for name in ("colour", "timbre"))
        assert kept == [str(int(extra["count"][row])), world.scene.colours[colour], "disc", world.scene.timbre_names[timbre]]
    assert set(extra["text_tokens"].tolist()) == {4, 16, 64}


@pytest.mark.parametrize("name", ["pulse", "clock", "bind", "offscreen", "entangle", "null"])
def test_events_keep_their_distance(name):
    _, found = script(name)
    for events in (found.seen, found.heard):
        for row in range(100):
            assert (np.diff(events.onsets(row)) >= GAP - 1e-9).all()


def test_three_events_a_second_fit():
    world, found = script("pulse", density=3.0)
    counts = found.seen.real.sum(1)
    assert (counts.min(), counts.max()) == (5, 7)
    assert abs(float(counts.double().mean()) / world.duration_s - 3.0) < 0.1


@pytest.mark.parametrize("name", ["pulse", "clock", "bind", "offscreen", "entangle", "null"])
@pytest.mark.parametrize("density", [0.6, 1.4])
def test_a_density_is_the_mean_events_per_second(name, density):
    """Also where no range of whole numbers has that mean: a mix of the two next to it has."""
    world = worlds.get(name)(density=density)
    heard = world.script("train", torch.arange(4000)).heard
    counts = heard.real.sum(1)
    assert abs(float(counts.double().mean()) / world.duration_s - density) < 0.03
    assert counts.min() == 1
    assert counts.max() <= world.most


@pytest.mark.parametrize("density", [0.5, 0.51, 0.75, 0.9999999, 1.0, 1.1, 1.5, 2.0, 2.7, 3.0, 3.3, 3.49, 3.5])
def test_numbers_of_events_have_the_mean_and_whole_ones_are_as_ever(density):
    """Over a fine comb of draws; where one range will do, its numbers are equally likely, from 1 up where they fit."""
    counting = worlds.get("pulse")().counting(density)
    draws = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    counts = counting(draws)
    assert float(counts.double().mean()) / 2 == pytest.approx(density, abs=1e-4)
    assert int(counts.max()) == counting.most <= 7
    both = round(4 * density)
    if 4 * density == both:
        most = min(both - 1, 7)
        assert torch.equal(counts, both - most + (draws * (2 * most - both + 1)).long())


@pytest.mark.parametrize("name", ["pulse", "clock", "bind", "offscreen", "entangle", "null"])
def test_a_density_or_number_of_kinds_that_cannot_be_is_refused_by_its_key(name):
    world = worlds.get(name)
    for density, said in (
        (0.0, "positive"),
        (-1.0, "positive"),
        (float("nan"), "positive"),
        (9.0, "at most"),
        (0.1, "at least 0.5"),
    ):
        with pytest.raises(ValueError, match=rf"world\.density={density} .*{said}"):
            world(density=density)
    kinds = world.counts_kinds
    for number in (0, 9):
        with pytest.raises(ValueError, match=rf"world\.{kinds}={number}"):
            world(**{kinds: number})


@pytest.mark.parametrize(("kinds", "bands"), [(2, 16), (8, 16), (8, 8)])
def test_no_two_timbres_of_a_scene_are_alike(kinds, bands):
    timbres = torch.nn.functional.normalize(Scene(kinds, 16, bands).timbres(), dim=-1)
    assert (timbres @ timbres.T - torch.eye(kinds)).max() <= 0.5
