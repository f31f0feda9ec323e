"""Whole models to hold to laws: every registered variant, and every registered block and bridge as the whole of a depth."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch

from nava_lab.blocks.tower import Tower
from nava_lab.conditioning.text import text_stream
from nava_lab.models.variant import Size, Stage, Variant
from nava_lab.registry import blocks, bridges, variants
from nava_lab.streams import Stream
from tests.conftest import INTERFACE, Inputs, lively
from tests.laws.cases import Clips


@dataclass(frozen=True)
class Of(Variant):
    """A variant of nothing but one block."""

    block: object = None

    def stages(self):
        return [Stage(self.block, self.depth)]


def _subjects():
    for name in variants:
        yield f"variant {name}", lambda name=name, **fields: variants.get(name)(**{"depth": 2, **fields})
    for name in blocks:
        yield f"block {name}", lambda name=name, **fields: Of(**{"depth": 2, "block": blocks.get(name)(), **fields})
    for name in bridges:
        made = lambda name=name, **fields: Of(**{"depth": 2, "block": Tower(bridge=bridges.get(name)()), **fields})  # noqa: E731
        yield f"bridge {name}", made


SUBJECTS = dict(_subjects())
every_subject = pytest.mark.parametrize("subject", SUBJECTS)


@cache
def model_of(subject, **options):
    fields = {key: options.pop(key) for key in ("text_after",) if key in options}
    return lively(SUBJECTS[subject](**fields), Size(16, 24), **options).double()


def close(found, expected, bound=1e-6):
    torch.testing.assert_close(found, expected, atol=bound, rtol=bound)


def real(stream):
    return torch.ones(stream.tokens.shape[:2], dtype=torch.bool) if stream.valid is None else stream.valid


def run(model, case, weight=None):
    """Outputs, and the gradients of all parameters of the sum of squares over real tokens."""
    model.zero_grad(set_to_none=True)
    out = case(model)
    total = sum((out[name].square() * real(case.streams[name]).unsqueeze(-1)).sum() for name in out)
    if total.requires_grad:
        total.backward()
    return out, {name: part.grad for name, part in model.named_parameters()}


def same_gradients(found, expected):
    for name, grad in found.items():
        other = expected[name]
        if grad is None and other is None:
            continue
        grad = torch.zeros_like(other) if grad is None else grad
        assert torch.isfinite(grad).all(), name
        close(grad, torch.zeros_like(grad) if other is None else other)


def reads_text(subject):
    """Whether any of a subject's layers reads the text: a lone block may have no way to."""
    model, case = model_of(subject), plain_case()
    _, gradients = run(model, case)
    return any(grad is not None and grad.any() for name, grad in gradients.items() if name.startswith("text."))


def plain_case(batch=3):
    """A ragged batch in which every planted bug shows."""
    inputs = Inputs(batch, seed=3)
    ids = torch.tensor([[2, 3, 4], [5, 6, 0], [7, 0, 0]])[:batch]
    made = {}
    for name, stream in inputs.streams.items():
        full = INTERFACE.modalities[name].tokens
        valid = torch.arange(full) < torch.tensor([full - 1, full // 2, full - 2])[:batch, None]
        made[name] = Stream(stream.tokens.double(), stream.positions.double(), valid)
    return Clips(made, {name: level.double() for name, level in inputs.levels.items()}, text_stream(ids))
