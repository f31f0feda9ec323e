"""Each formula of ``layers.fused`` and of the velocity error against its plain twin: values and gradients, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from nava_lab.flow.error import plain_squared_error, squared_error
from nava_lab.flow.path import PREDICTIONS
from nava_lab.layers import fused
from nava_lab.layers.norms import norm
from nava_lab.layers.rotary import plain_rotate, rotate


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def vectors(*lengths, each=()):
    """A vector per span: one for all of its tokens, or one for each of them where the span is in ``each``."""
    return [drawn(2, length if at in each else 1, 6) for at, length in enumerate(lengths)]


def cases():
    """Name, formula, twin, inputs."""
    torch.manual_seed(0)
    wide = drawn(2, 5, 18)
    x = drawn(2, 5, 6)
    angle = drawn(1, 5, 1, 4).repeat_interleave(2, -1)
    table = (angle.cos(), angle.sin() * torch.tensor([-1.0, 1.0]).repeat(4).double())
    yield "rms", lambda a, w: fused.rms_norm(a, w, 1e-6), lambda a, w: fused.plain_rms_norm(a, w, 1e-6), [x, drawn(6)]
    yield "rms without weight", lambda a: fused.rms_norm(a, None, 1e-6), lambda a: fused.plain_rms_norm(a, None, 1e-6), [x]
    yield (
        "rms of a part",
        lambda a, w: fused.rms_norm(a[..., 6:12], w, 1e-6),
        lambda a, w: fused.plain_rms_norm(a[..., 6:12], w, 1e-6),
        [wide, drawn(6)],
    )
    yield (
        "rms of heads",
        lambda a, w: fused.rms_norm(a, w, 1e-6),
        lambda a, w: fused.plain_rms_norm(a, w, 1e-6),
        [drawn(2, 5, 3, 6), drawn(6)],
    )
    yield "rotate", lambda a: rotate(a, table), lambda a: plain_rotate(a, table), [drawn(2, 5, 3, 8)]
    for lengths, each in (((5,), ()), ((3, 2), ()), ((3, 0, 2), (0,))):
        own = [x, *vectors(*lengths, each=each), *vectors(*lengths)]
        n = len(lengths)
        for name, call in (("modulated", fused.modulated_spans), ("plain", fused.plain_modulated_spans)):
            made = lambda a, *v, call=call, lengths=lengths, n=n: call(a, lengths, v[:n], v[n:])  # noqa: E731
            kept = made if name == "modulated" else kept
            plain = made
        yield f"modulated {lengths}", kept, plain, own
        yield (
            f"gated {lengths}",
            lambda a, b, *v, lengths=lengths: fused.gated_spans(a, b, lengths, v),
            lambda a, b, *v, lengths=lengths: fused.plain_gated_spans(a, b, lengths, v),
            [x, drawn(2, 5, 6), *vectors(*lengths, each=each)],
        )
    for prediction in PREDICTIONS:
        for level in (torch.tensor([0.01, 0.7]).double(), torch.rand(2, 5).double()):
            rest = [drawn(2, 5, 6) for _ in range(3)]
            yield (
                f"error of {prediction} {level.ndim}",
                lambda out, rest=rest, level=level, prediction=prediction: squared_error(out, *rest, level, prediction),
                lambda out, rest=rest, level=level, prediction=prediction: plain_squared_error(out, *rest, level, prediction),
                [x],
            )


CASES = {name: rest for name, *rest in cases()}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_twin_s(name):
    formula, twin, inputs = CASES[name]
    mine, theirs = ([part.clone().requires_grad_() for part in inputs] for _ in range(2))
    made, wanted = formula(*mine), twin(*theirs)
    assert type(made.grad_fn).__name__ != type(wanted.grad_fn).__name__  # the formula was taken, not its twin
    torch.testing.assert_close(made, wanted)
    weight = torch.randn_like(wanted)
    for ours, other in zip(*(torch.autograd.grad(y, x, weight) for y, x in ((made, mine), (wanted, theirs))), strict=True):
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("name", CASES)
def test_inputs_stay_as_they_were(name):
    formula, _, inputs = CASES[name]
    before = [part.clone() for part in inputs]
    given = [part.requires_grad_() for part in inputs]
    made = formula(*given)
    made.backward(torch.ones_like(made))
    for part, old in zip(inputs, before, strict=True):
        part.requires_grad_(False)
        part.grad = None
        assert torch.equal(part, old)


@st.composite
def layouts(draw):
    """Numbers as they come: a batch, spans of which one may be empty, a type, and where in a wider row of memory they lie."""
    return {
        "batch": draw(st.integers(1, 3)),
        "lengths": tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3).filter(any))),
        "heads": draw(st.integers(1, 3)),
        "pairs": draw(st.integers(1, 4)),
        "dtype": draw(st.sampled_from((torch.float32, torch.float64))),
        "kind": draw(st.sampled_from(("whole", "part", "turned round"))),
        "seed": draw(st.integers(0, 2**31)),
    }


@given(layouts())
def test_whatever_the_shape_and_the_memory(layout):
    """A chain of all formulas of a block, on tensors that lie in memory as a projection's parts or a transpose do."""
    batch, lengths, heads, pairs = (layout[key] for key in ("batch", "lengths", "heads", "pairs"))
    torch.manual_seed(layout["seed"])
    count, head = sum(lengths), 2 * pairs
    made = lambda *shape: torch.randn(*shape, dtype=layout["dtype"])  # noqa: E731
    if layout["kind"] == "whole":
        x = made(batch, count, heads, head)
    elif layout["kind"] == "part":
        x = made(batch, count, heads + 2, head)[:, :, 1:-1]
    else:
        x = made(batch, heads, count, head).transpose(1, 2)
    angle = made(1, count, 1, pairs).repeat_interleave(2, -1)
    table = (angle.cos(), angle.sin() * torch.tensor([-1.0, 1.0]).repeat(pairs).to(angle))
    each = [made(draw, length if draw == 1 else 1, heads * head) for draw in (1, batch) for length in lengths]
    shifts, scales = each[: len(lengths)], each[len(lengths) :]
    weight, level = made(head), torch.rand(batch)
    rest = [made(batch, count, heads * head) for _ in range(3)]

    def chain(prefix, a, w, *vectors):
        rms, turn, mod, gate, miss = prefix
        n = len(lengths)
        row = turn(rms(a, w, 1e-6), table).flatten(-2)
        row = gate(row, mod(row, lengths, vectors[:n], vectors[n:]), lengths, vectors[n:])
        return miss(row, *rest, level, "x0")

    ours = (fused.rms_norm, rotate, fused.modulated_spans, fused.gated_spans, squared_error)
    plain = (
        fused.plain_rms_norm,
        plain_rotate,
        fused.plain_modulated_spans,
        fused.plain_gated_spans,
        plain_squared_error,
    )
    inputs = [x, weight, *shifts, *scales]
    gradients, values = [], []
    for formulas in (ours, plain):
        own = [part.detach().requires_grad_() for part in inputs]
        values.append(chain(formulas, *own))
        gradients.append(torch.autograd.grad(values[-1].sum(), own))
    close = {"rtol": 2e-3, "atol": 2e-3} if layout["dtype"] == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(*values, **close)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, **close)


def test_nobody_s_gradient_is_lost():
    """What a formula has no derivative for is left to its twin: tables and levels that learn, vectors of a larger batch."""
    x, angle = drawn(2, 5, 3, 8), drawn(1, 5, 1, 8).requires_grad_()
    rotate(x, (angle.cos(), angle.sin())).sum().backward()
    assert angle.grad.abs().sum() > 0
    level = torch.tensor([0.3, 0.6]).double().requires_grad_()
    squared_error(drawn(2, 5, 6), *(drawn(2, 5, 6) for _ in range(3)), level, "x0").sum().backward()
    assert level.grad.abs().min() > 0
    one, many = drawn(1, 5, 6), vectors(5)
    assert fused.modulated_spans(one, (5,), many, many).shape == (2, 5, 6)
    assert fused.gated_spans(one, one, (5,), many).shape == (2, 5, 6)


def block(x, weight, shift, scale):
    row = fused.rms_norm(x, weight, 1e-6)
    return fused.gated_spans(row, fused.modulated_spans(row, (3, 2), shift, scale), (3, 2), shift)


def test_compiled_and_computed_again():
    """One graph without breaks; computed again in the backward pass, gradients to the bit."""
    torch.manual_seed(0)
    x, weight = (part.requires_grad_() for part in (torch.randn(2, 5, 8), torch.rand(8)))
    shift, scale = ([torch.randn(2, 1, 8) for _ in range(2)] for _ in range(2))
    made = block(x, weight, shift, scale)
    wanted = torch.autograd.grad(made.sum(), (x, weight))
    norm = lambda x, weight: fused.rms_norm(x, weight, 1e-6)  # noqa: E731
    compiled = torch.compile(norm, backend="eager", fullgraph=True)(x, weight)
    torch.testing.assert_close(compiled, norm(x, weight))
    again = checkpoint(block, x, weight, shift, scale, use_reentrant=False)
    assert torch.equal(again, made)
    assert all(map(torch.equal, torch.autograd.grad(again.sum(), (x, weight)), wanted))


@pytest.mark.parametrize(("part", "wrong"), [("_scaled", lambda row, lengths, factors: row), ("_times", lambda x, turns: 2 * x)])
def test_a_planted_mistake_is_found(monkeypatch, part, wrong):
    """A derivative that forgets the factor, a turn that is none."""
    monkeypatch.setattr(fused, part, wrong)
    with pytest.raises(AssertionError):
        test_values_and_gradients_are_the_twin_s("rotate" if part == "_times" else "modulated (3, 2)")


def test_transforms_and_other_types_take_the_twin():
    """Under torch.func, autocast and in half precision nothing here stands in the way."""
    layer = norm("rms", 6, True)
    x = torch.randn(4, 3, 6)
    weights = {"weight": torch.rand(2, 6)}
    one = lambda w, part: functional_call(layer, w, part).square().sum()  # noqa: E731
    each = vmap(grad(one), (0, None))(weights, x)["weight"]
    for row in range(2):
        own = weights["weight"][row].clone().requires_grad_()
        fused.rms_norm(x, own, layer.eps).square().sum().backward()
        torch.testing.assert_close(each[row], own.grad)
    assert not fused.eager(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.eager(x)
    assert not fused.eager(x, x.double())
