"""The mask algebra, and attention under masks in both backends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_lab.attention import Cut, Everything, Padding, Tokens, Window, attend
from nava_lab.streams import Stream, time_positions

NAMES = ("video", "audio", "text")


def streams(video, audio, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(count, seconds, shift=0.0):
        valid = torch.rand(batch, count, generator=generator) < 0.7
        return Stream(torch.zeros(batch, count, 1), time_positions(count, seconds) + shift, valid)

    return {"video": make(video, 0.08), "audio": make(audio, 0.05), "text": make(2, 1.0, -2.0)}


def dense(mask, made, queries=NAMES, keys=NAMES):
    return mask.dense(Tokens.of(made, queries, NAMES), Tokens.of(made, keys, NAMES))


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_boolean_algebra(video, audio, seconds):
    made = streams(video, audio)
    a, b = Padding(), Window(seconds)
    assert torch.equal(dense(a & b, made), dense(a, made) & dense(b, made))
    assert torch.equal(dense(a | b, made), dense(a, made) | dense(b, made))
    assert torch.equal(dense(~(a & b), made), dense(~a | ~b, made))
    assert dense(a & Everything(), made).equal(dense(a, made))
    assert dense(a | Everything(), made) is None
    assert not dense(~Everything(), made).any()


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.5), st.floats(0, 0.5))
def test_windows_are_symmetric_and_grow(video, audio, first, second):
    """Law 12."""
    made = streams(video, audio)
    small, large = sorted((first, second))
    forth, back = dense(Window(small), made, ("audio",), ("video",)), dense(Window(small), made, ("video",), ("audio",))
    assert torch.equal(forth, back.mT)
    assert not (forth & ~dense(Window(large), made, ("audio",), ("video",))).any()
    assert dense(Window(float("inf")), made) is None


@given(st.integers(1, 9), st.integers(1, 9))
def test_cut_is_by_modality_text_is_read_and_does_not_read(video, audio):
    mask = dense(Cut(torch.tensor([True, False])), streams(video, audio))
    v, a, t = slice(0, video), slice(video, video + audio), slice(video + audio, None)
    assert mask[1].all()
    for block, expected in (
        ((v, v), 1),
        ((v, a), 0),
        ((a, v), 0),
        ((a, a), 1),
        ((v, t), 1),
        ((a, t), 1),
        ((t, t), 1),
        ((t, v), 0),
        ((t, a), 0),
    ):
        assert (mask[0][block] == bool(expected)).all()


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@given(st.integers(1, 33), st.integers(1, 33), st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.integers(0, 999))
def test_backends_equal_a_float64_softmax(backend, queries, keys, heads, seed):
    """Laws 3, 4 and 5: any lengths, grouped heads, rows that see nothing give 0 with finite gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, queries, heads[0], 8), (2, keys, heads[1], 8), (2, keys, heads[1], 8))
    q, k, v = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    mask = torch.rand(2, queries, keys, generator=generator) < 0.5
    mask[0, 0] = False
    out = attend(q, k, v, mask, backend)
    exact = attend(*(part.detach().double() for part in (q, k, v)), mask, "reference")
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    assert not out[0, 0].any()
    out.square().sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in (q, k, v))


def test_a_wrong_mask_is_noticed():
    """The comparison above can fail: a mask dropped, inverted or transposed gives other numbers."""
    q, k, v = (torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    mask = torch.ones(6, 6).tril().bool().unsqueeze(0)
    right = attend(q, k, v, mask)
    for wrong in (None, ~mask, mask.mT):
        assert not torch.allclose(attend(q, k, v, wrong), right, atol=1e-3)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="reference, sdpa"):
        attend(*(torch.zeros(1, 1, 1, 2) for _ in range(3)), backend="flush")
