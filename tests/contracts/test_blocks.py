"""What every block and bridge must do, at its defaults, as the whole of a model's depth."""

from dataclasses import dataclass

import pytest
import torch

from nava_lab.blocks.tower import Tower
from nava_lab.models.variant import Stage, Variant
from nava_lab.registry import blocks, bridges
from tests.conftest import Inputs, lively


@dataclass(frozen=True)
class Of(Variant):
    """A variant of nothing but one block."""

    block: object = None

    def stages(self):
        return [Stage(self.block, self.depth)]


SAMPLES = [*((f"block {name}", lambda name=name: blocks.get(name)()) for name in blocks)]
SAMPLES += [(f"bridge {name}", lambda name=name: Tower(bridge=bridges.get(name)())) for name in bridges]


@pytest.mark.parametrize("make", [make for _, make in SAMPLES], ids=[label for label, _ in SAMPLES])
class TestEveryBlock:
    def test_a_gradient_reaches_every_parameter_and_all_is_finite(self, make):
        model, inputs = lively(Of(depth=2, block=make())), Inputs(padded=True)
        out = model(inputs.streams, inputs.levels, inputs.text)
        assert all(torch.isfinite(part).all() for part in out.values())
        sum(part.square().sum() for part in out.values()).backward()
        # The blocks only: a block that reads no text leaves the text encoder without gradient.
        assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in model.blocks.parameters())

    def test_batch_rows_are_independent(self, make):
        model, inputs = lively(Of(depth=2, block=make())), Inputs(3)
        streams = {key: stream.with_tokens(stream.tokens.clone().requires_grad_()) for key, stream in inputs.streams.items()}
        out = model(streams, inputs.levels, inputs.text)
        sum(part[0].square().sum() for part in out.values()).backward()
        for stream in streams.values():
            assert torch.equal(stream.tokens.grad[1:], torch.zeros_like(stream.tokens.grad[1:]))
            assert stream.tokens.grad[0].abs().sum() > 0

    def test_permuting_tokens_with_their_positions_permutes_outputs(self, make):
        """Law 10."""
        model, inputs = lively(Of(depth=2, block=make())), Inputs()
        order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
        audio = inputs.streams["audio"]
        moved = audio.__class__(audio.tokens[:, order], audio.positions[:, order])
        out = model(inputs.streams, inputs.levels, inputs.text)
        again = model({**inputs.streams, "audio": moved}, inputs.levels, inputs.text)
        torch.testing.assert_close(again["audio"], out["audio"][:, order], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again["video"], out["video"], atol=1e-5, rtol=1e-5)
        misplaced = model({**inputs.streams, "audio": audio.with_tokens(moved.tokens)}, inputs.levels, inputs.text)
        assert not torch.allclose(misplaced["audio"], out["audio"][:, order], atol=1e-4)

    def test_the_config_is_a_hashable_value(self, make):
        assert make() == make()
        assert hash(make()) == hash(make())
