"""Masks as pictures: labelled, downsampled, true to what every variant's blocks ask for."""

import json
from dataclasses import dataclass
from unittest import mock

import pytest
import torch

from nava_lab.attention import Causal, Cut, Everything, Mask, Window
from nava_lab.attention.picture import Picture
from nava_lab.cli import main
from nava_lab.config import load
from nava_lab.models.look import full_clip, pictures
from nava_lab.registry import masks, variants
from nava_lab.streams import Stream, time_positions
from nava_lab.study.build import network, parts
from nava_lab.study.describe import mask_pictures
from tests.conftest import INTERFACE

WHY = "cpu: fused attention, which trains here; flex only runs forward on a CPU, and slowly"


def streams(video=2, audio=4, text=1):
    made = {}
    for name, count, seconds in (("video", video, 0.1), ("audio", audio, 0.05), ("text", text, 1.0)):
        made[name] = Stream(torch.zeros(1, count, 1), time_positions(count, seconds))
    return made


def test_the_text_picture_names_modalities_and_shades_what_is_seen():
    assert Picture.of(Cut(), streams(), title="cut").text().splitlines() == [
        "cut",
        "      │video │ audio  │text│",
        "──────┼──────┼────────┼────┤",
        "video │██████│        │████│",
        "      │██████│        │████│",
        "──────┼──────┼────────┼────┤",
        "audio │      │████████│████│",
        "      │      │████████│████│",
        "      │      │████████│████│",
        "      │      │████████│████│",
        "──────┼──────┼────────┼────┤",
        "text  │      │        │████│",
        "──────┼──────┼────────┼────┤",
    ]


def test_a_long_picture_is_downsampled_to_the_columns_asked_for():
    text = Picture.of(Window(0.5), streams(200, 800, 3)).text(columns=50)
    assert max(map(len, text.splitlines())) < 70
    assert len(text.splitlines()) < 40
    assert {"█", "▒", " "} <= set(text)


def test_the_figure_has_the_modalities_on_both_axes():
    axes = Picture.of(Everything(), streams()).figure().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["video", "audio", "text"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["video", "audio", "text"]


@pytest.mark.parametrize("name", variants.names())
@pytest.mark.parametrize("text_after", [0, 1])
def test_every_variants_stages_can_be_looked_at(name, text_after):
    made = pictures(variants.get(name)(depth=3, text_after=text_after), INTERFACE)
    video, text = slice(0, 5), slice(12, 15)
    assert [bool(picture.table[video, text].any()) for picture in made] == [number >= text_after for number in range(len(made))]
    assert all(picture.table[video, video].all() for picture in made)
    cut = pictures(variants.get(name)(depth=3), INTERFACE, cut=True)
    assert not any(picture.table[video, slice(5, 12)].any() for picture in cut)


def test_a_full_clip_is_as_long_as_the_interface_says():
    made, _, text = full_clip(INTERFACE)
    assert {name: len(stream) for name, stream in made.items()} == {"video": 5, "audio": 7}
    assert len(text) == 3
    assert (text.positions[..., 0] < 0).all()


def test_describe_prints_pictures_and_the_backend(capsys):
    main(["describe", "variant=unified", "budget.parameters=300_000", "attention.window_s=0.2", "--mask"])
    shown = capsys.readouterr().out
    assert "one space: layers 1 to 6" in shown
    assert "▒" in shown
    main(["describe", "variant=unified", "budget.parameters=300_000", "--mask=cut"])
    assert "▒" not in capsys.readouterr().out
    main(["describe", "variant=unified", "budget.parameters=300_000", "trainer.accelerator=cpu", "--json"])
    assert json.loads(capsys.readouterr().out)["attention"]["calls"] == [
        {"queries": ["video", "audio", "text"]} | {"keys": ["video", "audio", "text"], "backend": "sdpa"} | {"why": WHY}
    ]


def test_a_mask_by_name_is_in_every_picture_and_in_the_network():
    config = load(["variant=dual_tower", "budget.parameters=300_000", "attention.mask=causal"])
    for picture in mask_pictures(config):
        video = slice(0, picture.lengths["video"])
        assert torch.equal(picture.table[video, video], torch.ones_like(picture.table[video, video]).tril())
    assert Causal() in list(network(config, parts(config).solution).rule().leaves())


def test_a_new_mask_is_one_class_with_one_decorator():
    with mock.patch.dict(masks._classes):

        @masks.register("itself")
        @dataclass(frozen=True)
        class Itself(Mask):
            """Every token sees its own moment alone."""

            def allows(self, query, key):
                return query.seconds == key.seconds

        config = load(["variant=dual_tower", "budget.parameters=300_000", "attention.mask=itself"])
        parts(config)
        for picture in mask_pictures(config):
            video = slice(0, picture.lengths["video"])
            assert torch.equal(picture.table[video, video], torch.eye(picture.lengths["video"], dtype=torch.bool))
