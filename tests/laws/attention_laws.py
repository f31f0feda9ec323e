"""The laws of whole models: each takes a denoiser and a ragged batch, and raises AssertionError where it does not hold."""

import copy
from dataclasses import replace
from unittest import mock

import torch

from nava_lab.blocks.base import Given
from nava_lab.streams import TEXT, Stream, time_positions
from tests.laws.subjects import close, real, run, same_gradients


def padding_changes_nothing(model, case):
    """Laws 1 and 2: neither more padding nor what stands in it changes outputs or gradients.

    NaN included, in values, places and levels; that levels are given per token changes nothing either.
    """

    def longer(_, stream):
        valid = torch.cat((real(stream), torch.zeros(len(real(stream)), 2, dtype=torch.bool)), 1)
        tokens = torch.cat((stream.tokens, torch.zeros_like(stream.tokens[:, :1]).expand(-1, 2, -1)), 1)
        tokens = tokens.masked_fill(~valid.unsqueeze(-1), float("nan"))
        positions = torch.cat((stream.positions, torch.full_like(stream.positions[:, :1], torch.nan).expand(-1, 2, -1)), 1)
        if len(positions) > 1:
            positions = positions.masked_fill(~valid.unsqueeze(-1), float("nan"))
        return Stream(tokens, positions, valid)

    out, gradients = run(model, case)
    padded = case.with_streams(longer)
    levels = {
        name: level.unsqueeze(-1).masked_fill(~real(padded.streams[name]), torch.nan) for name, level in case.levels.items()
    }
    again, others = run(model, replace(padded, levels=levels))
    for name, stream in case.streams.items():
        assert torch.isfinite(out[name]).all()
        close(again[name][:, : len(stream)][real(stream)], out[name][real(stream)])
    same_gradients(others, gradients)


def text_padding_changes_nothing(model, case):
    """Law 1 for captions: a shorter row of words without its padding is the same caption."""
    words = int(real(case.text).sum(1).max())
    text = case.text
    shorter = Stream(text.tokens[:, :words], text.positions[:, :words], text.valid[:, :words])
    out, gradients = run(model, case)
    again, others = run(model, replace(case, text=shorter))
    for name in out:
        close(again[name][real(case.streams[name])], out[name][real(case.streams[name])])
    same_gradients(others, gradients)


def samples_are_independent(model, case):
    """Law 8: every sample comes out as if it were alone, and its output has no gradient in the others."""
    leaves = case.with_streams(lambda _, stream: stream.with_tokens(stream.tokens.clone().requires_grad_()))
    out = leaves(model)
    for row in range(case.batch):
        alone = case.row(row)(model)
        for name in out:
            close(alone[name][0], out[name][row])
    sum(part[0].square().sum() for part in out.values()).backward()
    for stream in leaves.streams.values():
        assert stream.tokens.grad is None or not stream.tokens.grad[1:].any()


def packed_is_padded(model, case):
    """Law 7: packed into one row, levels and positions too, outputs and gradients are those of the padded batch."""
    out, gradients = run(model, case)
    made, others = run(model, case.packed())
    for name, stream in case.streams.items():
        close(stream.unpacked(made[name]), out[name].masked_fill(~real(stream).unsqueeze(-1), 0.0))
    same_gradients(others, gradients)


def shapes_may_change(model, case):
    """Law 6: another length and batch in between changes nothing."""
    out = case(model)
    half = case.row(case.batch // 2).with_streams(
        lambda _, s: Stream(
            s.tokens[:, : (len(s) + 1) // 2], s.positions[:, : (len(s) + 1) // 2], real(s)[:, : (len(s) + 1) // 2]
        )
    )
    between = half(model)
    fresh = copy.deepcopy(model)
    for name, part in half(fresh).items():
        close(between[name], part)
    for name, part in case(model).items():
        assert torch.equal(part, out[name])


def permuting_tokens(model, case):
    """Law 10: tokens in another order with their positions; outputs follow them."""
    chance = torch.Generator().manual_seed(1)
    orders = {name: torch.randperm(len(stream), generator=chance) for name, stream in case.streams.items()}
    moved = case.with_streams(lambda n, s: Stream(s.tokens[:, orders[n]], s.positions[:, orders[n]], real(s)[:, orders[n]]))
    out, again = case(model), moved(model)
    for name, stream in case.streams.items():
        kept = real(stream)[:, orders[name]]
        close(again[name][kept], out[name][:, orders[name]][kept])


def shifting_the_clock(model, case):
    """Law 11: a joint shift of all clocks, the text's place included, changes nothing."""
    shift = torch.tensor([3.7, 0.0, 0.0], dtype=torch.float64)
    moved = case.with_streams(lambda _, stream: replace(stream, positions=stream.positions + shift))
    moved = replace(moved, text=replace(case.text, positions=case.text.positions.double() + shift))
    case = replace(case, text=replace(case.text, positions=case.text.positions.double()))
    out, again = case(model), moved(model)
    for name in out:
        close(again[name][real(case.streams[name])], out[name][real(case.streams[name])])


def positions_matter(model, case):
    """Law 10, the other half: two tokens that change places without their positions do not merely change places."""
    swapped = [1, 0]
    out = case(model)
    for name in case.streams:
        moved = case.with_streams(
            lambda n, s, name=name: (
                s if n != name else s.with_tokens(torch.cat((s.tokens[:, swapped], s.tokens[:, len(swapped) :]), 1))
            )
        )
        again = moved(model)[name]
        assert not torch.allclose(again[:, swapped], out[name][:, : len(swapped)], atol=1e-9, rtol=0)


def one_clock(model, case):
    """Law 11: tokens of the same moment and place turn alike, whichever modality they are of and whichever row they lie in."""
    same = time_positions(max(map(len, case.streams.values())), 0.08).double()
    steps = {name: spec.seconds if model.clock.anchor == "start" else 0.0 for name, spec in model.specs.items()}

    def placed(name, stream):  # the same moment of what the clock goes by, the tokens' centres or their starts
        moved = same[:, : len(stream)] + torch.tensor([steps[name] / 2, 0.0, 0.0], dtype=torch.float64)
        return replace(stream, positions=moved)

    case = case.with_streams(placed)
    right, turned = Given.rotary, []

    def recorded(self, order, head_dim, time_only=False, heads=1):
        table = right(self, order, head_dim, time_only, heads)
        if self.clock.index and not time_only:  # towers that count tokens share a clock in their exchange alone
            return table
        lengths = [len(self.streams[name]) for name in order]
        parts = zip(*(part.split(lengths, 1) for part in table), strict=True)
        turned.extend((name, (head_dim, time_only, heads), part) for name, part in zip(order, parts, strict=True) if name != TEXT)
        return table

    with mock.patch.object(Given, "rotary", recorded):
        case(model)
    assert turned
    first: dict = {}
    for _, kind, part in sorted(turned, key=lambda each: -each[2][0].shape[1]):
        longest = first.setdefault(kind, part)
        for found, expected in zip(part, longest, strict=True):
            close(found, expected[:, : found.shape[1]].expand_as(found))


def reaches(model, case, source, target):
    """Whether any token of one modality has a gradient from the other's output."""
    leaves = case.with_streams(lambda _, stream: stream.with_tokens(stream.tokens.clone().requires_grad_()))
    (leaves(model)[target].square() * real(case.streams[target]).unsqueeze(-1)).sum().backward()
    grad = leaves.streams[source].tokens.grad
    return grad is not None and bool(grad.any())


def a_window_ends_where_it_says(model, case):
    """Law 12: no gradient passes between modalities that lie further apart than the window; it does where they touch it."""
    seconds = model.window_s
    # The text is in every window, and would carry on what it has read.
    case = replace(case, text=Stream(torch.zeros_like(case.text.tokens), case.text.positions, torch.zeros_like(real(case.text))))
    case = case.row(0)
    last = case.streams["video"].positions[:, real(case.streams["video"])[0]][..., 0].max()
    touching = last + seconds - case.streams["audio"].positions[..., 0].min()
    for source, target in (("audio", "video"), ("video", "audio")):

        def moved(by):
            shift = torch.stack((touching + by, torch.zeros_like(last), torch.zeros_like(last)))
            return case.with_streams(lambda n, s: replace(s, positions=s.positions + shift) if n == "audio" else s)

        assert not reaches(model, moved(0.01), source, target)
        assert reaches(model, moved(-0.01), source, target) == exchanges(model, case, source, target)


def exchanges(model, case, source, target):
    """Whether one modality reads the other at all."""
    with mock.patch.object(model, "window_s", float("inf")):
        return reaches(model, case, source, target)


def cut_modalities_are_apart(model, case):
    """Where attention is cut no gradient passes to a modality that is cut off, not even through the text; elsewhere it may."""
    case = replace(case, cut=torch.arange(case.batch) == 0)
    for target in case.streams:
        leaves = case.with_streams(lambda _, stream: stream.with_tokens(stream.tokens.clone().requires_grad_()))
        out = leaves(model)[target]
        (out.square() * real(case.streams[target]).unsqueeze(-1)).sum().backward()
        if model.cut_off is not None and target not in model.cut_off:
            continue
        for name, stream in leaves.streams.items():
            assert name == target or stream.tokens.grad is None or not stream.tokens.grad[0].any()


def text_stays_out(model, case):
    """Law 9: before ``text_after`` layers, nothing of audio or video depends on the text; after them it does."""
    reached = {}
    text_after = model.reads_text.index(True)
    assert text_after > 0
    hook = model.blocks[text_after - 1].register_forward_hook(lambda block, inputs, made: reached.update(made))
    out = case(model)
    hook.remove()
    readers = list(model.text.parameters())
    early = sum(reached[name].square().sum() for name in case.streams)
    for grad in torch.autograd.grad(early, readers, retain_graph=True, allow_unused=True):
        assert grad is None or not grad.any()
    if real(case.text).any() and any(real(stream).any() for stream in case.streams.values()):
        late = sum((out[name].square() * real(case.streams[name]).unsqueeze(-1)).sum() for name in out)
        grads = torch.autograd.grad(late, readers, allow_unused=True)
        assert any(grad is not None and grad.any() for grad in grads)


LAWS = {
    law.__name__: law
    for law in (
        padding_changes_nothing,
        text_padding_changes_nothing,
        samples_are_independent,
        packed_is_padded,
        shapes_may_change,
        permuting_tokens,
        shifting_the_clock,
        cut_modalities_are_apart,
    )
}
# Laws that want a change, and so a batch in which there is something to change, and a model that they are about.
DEMANDS = {
    "positions_matter": (positions_matter, {}),
    "one_clock": (one_clock, {}),
    "a_window_ends_where_it_says": (a_window_ends_where_it_says, {"window_s": 0.06}),
    "text_stays_out": (text_stays_out, {"text_after": 1}),
}
