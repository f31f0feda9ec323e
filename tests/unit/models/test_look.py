"""Maps of attention: what a model attended to, without changing what it says."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from nava_lab.blocks.base import Given
from nava_lab.models.look import attention_maps, calls, full_clip
from nava_lab.registry import variants
from tests.conftest import INTERFACE, Inputs, lively


@pytest.mark.parametrize("name", ["unified", "align_then_fuse", "dual_tower"])
def test_maps_are_of_every_layer_and_the_model_says_the_same(name):
    model, inputs = lively(variants.get(name)(depth=2)), Inputs(2, padded=True)
    arguments = (inputs.streams, inputs.levels, inputs.text)
    before = model(*arguments)
    maps = attention_maps(model, *arguments)
    assert {part.layer for part in maps} == set(range(len(model.blocks)))
    for part in maps:
        sums = part.weights.sum(-1)
        assert torch.all((sums - 1).abs().lt(1e-9) | sums.eq(0))
    after = model(*arguments)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_map_is_zero_on_padding():
    model, inputs = lively(variants.get("unified")(depth=1)), Inputs(2, padded=True)
    (first,) = attention_maps(model, inputs.streams, inputs.levels, inputs.text)
    valid = torch.cat([inputs.streams["video"].valid, inputs.streams["audio"].valid], 1)
    assert first.weights[..., : valid.shape[1]].masked_select(~valid[:, None, None, :]).eq(0).all()
    assert first.weights.shape[-1] == valid.shape[1] + 3  # and the words


def long(interface):
    return replace(interface, modalities={name: replace(spec, tokens=3000) for name, spec in interface.modalities.items()})


def test_calls_tell_apart_the_attentions_that_a_window_bounds():
    """In towers a window stands between the modalities alone: only their exchange can skip blocks."""
    variant = variants.get("dual_tower")(depth=2)
    found = {(call.queries, call.keys): call.backend for call in calls(variant, long(INTERFACE), "cuda", window_s=0.2)}
    assert found[("audio",), ("video",)] == found[("video",), ("audio",)] == "flex"
    assert found[("video",), ("video",)] == found[("video",), ("text",)] == "sdpa"
    assert {call.backend for call in calls(variant, long(INTERFACE), "cuda")} == {"sdpa"}
    assert {call.backend for call in calls(variant, long(INTERFACE), "cpu", window_s=0.2)} == {"sdpa"}
    assert {call.why for call in calls(variant, INTERFACE, "cuda", backend="reference")} == {"as set"}


def test_calls_of_packed_rows_are_as_long_as_the_batch():
    variant = variants.get("unified")(depth=1)
    assert [call.backend for call in calls(variant, INTERFACE, "cuda")] == ["sdpa"]
    assert [call.backend for call in calls(variant, INTERFACE, "cuda", packed=200)] == ["flex"]


@pytest.mark.parametrize("name", variants.names())
def test_calls_are_what_a_forward_pass_attends(name):
    """Of every variant: as many distinct rows as are really attended."""
    variant = variants.get(name)(depth=3)
    model, seen = lively(variant), set()
    right = Given.attend

    def recorded(self, query, key, value, visible):
        seen.add((query.shape[1], key.shape[1]))
        return right(self, query, key, value, visible)

    streams, levels, text = full_clip(INTERFACE)
    with mock.patch.object(Given, "attend", recorded), torch.no_grad():
        model(streams, levels, text)
    lengths = {"video": 5, "audio": 7, "text": 3}
    found = calls(variant, INTERFACE, "cpu")
    assert {tuple(sum(lengths[part] for part in row) for row in (call.queries, call.keys)) for call in found} == seen
