"""Maps of attention: what a model attended to, without changing what it says."""

import pytest
import torch

from nava_lab.models.look import attention_maps
from nava_lab.registry import variants
from tests.conftest import Inputs, lively


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
