"""Laws of whole models, for every registered variant and for every registered block and bridge as the whole of a depth.

Each law takes a denoiser and a ragged batch, and raises AssertionError where it does not hold. A bug of each kind is planted
where every block would meet it (what it is told of masks and positions), and its law must notice.
"""

import contextlib
import copy
from dataclasses import dataclass, replace
from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nava_lab.attention import Cut, Segments, Visible, Window
from nava_lab.attention.visible import Ruled
from nava_lab.blocks.base import Given
from nava_lab.blocks.tower import Tower
from nava_lab.layers.rotary import Clock, rotate
from nava_lab.models import denoiser
from nava_lab.models.variant import Size, Stage, Variant
from nava_lab.registry import blocks, bridges, variants
from nava_lab.streams import TEXT, Packing, Stream, time_positions
from tests.conftest import lively
from tests.laws.cases import Clips, clips, fewer


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


@every_subject
@pytest.mark.parametrize("law", [law for law in DEMANDS if law != "text_stays_out"])
def test_what_must_change_changes(law, subject):
    demands, options = DEMANDS[law]
    demands(model_of(subject, **options), plain_case())


@every_subject
@pytest.mark.parametrize("law", LAWS)
def test_law(law, subject):
    @fewer
    @given(st.booleans().flatmap(lambda whole: clips(least=0, full=whole, absent=True)))  # whole clips carry no table of validity
    def holds(case):
        LAWS[law](model_of(subject, **case.options), case)

    holds()


def reads_text(subject):
    """Whether any of a subject's layers reads the text: a lone block may have no way to."""
    model, case = model_of(subject), plain_case()
    _, gradients = run(model, case)
    return any(grad is not None and grad.any() for name, grad in gradients.items() if name.startswith("text."))


@every_subject
def test_law_9_text_stays_out_of_chosen_stages(subject):
    if not reads_text(subject):
        pytest.skip("reads no text")

    @fewer
    @given(clips(least=1))
    def holds(case):
        text_stays_out(model_of(subject, text_after=1, **case.options), case)

    holds()


@every_subject
@pytest.mark.parametrize("backend", ["flex", "reference"])
def test_law_5_every_backend_gives_the_same_model(subject, backend):
    @settings(max_examples=max(2, settings().max_examples // 10))  # flex traces anew for every shape
    @given(clips(least=0))
    def holds(case):
        fast, other = model_of(subject, **case.options), model_of(subject, backend=backend, **case.options)
        with torch.no_grad():
            for each in (case, case.packed()):
                for (name, found), expected in zip(each(other).items(), each(fast).values(), strict=True):
                    kept = real(each.streams[name])
                    close(found[kept], expected[kept])

    holds()


@every_subject
def test_law_12_a_window_as_long_as_the_clip_is_none(subject):
    case = plain_case()
    out = case(model_of(subject))
    for name, part in case(model_of(subject, window_s=5.0)).items():
        close(part, out[name])


@every_subject
@pytest.mark.parametrize("missing", ["video", "audio", "text", "all of one sample"])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_missing_leaves_defined_results_and_finite_gradients(subject, missing, length, batch):
    model, case = model_of(subject), plain_case(batch)

    def emptied(name, stream):
        valid = torch.ones(stream.tokens.shape[:2], dtype=torch.bool)
        valid[0] = missing not in (name, "all of one sample")
        tokens = stream.tokens.masked_fill(~valid.unsqueeze(-1), float("nan"))
        return Stream(tokens[:, :length], stream.positions[:, :length], valid[:, :length])

    case = case.with_streams(emptied)
    if missing in ("text", "all of one sample"):
        ids = case.text.tokens.clone()
        ids[0] = 0
        case = replace(case, text=Stream(ids, case.text.positions, ids != 0))
    out, gradients = run(model, case)
    assert all(torch.isfinite(part).all() for part in out.values())
    assert all(grad is None or torch.isfinite(grad).all() for grad in gradients.values())
    packed_is_padded(model, case)


def plain_case(batch=3):
    """A ragged batch in which every planted bug shows."""
    from nava_lab.conditioning.text import text_stream
    from tests.conftest import INTERFACE, Inputs

    inputs = Inputs(batch, seed=3)
    ids = torch.tensor([[2, 3, 4], [5, 6, 0], [7, 0, 0]])[:batch]
    made = {}
    for name, stream in inputs.streams.items():
        full = INTERFACE.modalities[name].tokens
        valid = torch.arange(full) < torch.tensor([full - 1, full // 2, full - 2])[:batch, None]
        made[name] = Stream(stream.tokens.double(), stream.positions.double(), valid)
    return Clips(made, {name: level.double() for name, level in inputs.levels.items()}, text_stream(ids))


def table_changed(change, rows_only=False):
    """Plant a bug into what every block is told of masks."""
    right = Given.visible

    def wrong(self, queries, keys):
        visible = right(self, queries, keys)
        if visible is None or visible.dense is None:
            return visible
        table = change(visible.dense)
        return Visible(table, tuple(table.shape[1:]), clean=True) if table.shape[1:] == visible.shape else visible

    return mock.patch.object(Given, "visible", wrong)


def positions_changed(change):
    right = Given.rotary

    def wrong(self, order, head_dim, time_only=False, heads=1):
        return tuple(change(part) for part in right(self, order, head_dim, time_only, heads))

    return mock.patch.object(Given, "rotary", wrong)


def rotary_dropped():
    right = Given.rotary

    def wrong(self, order, head_dim, time_only=False, heads=1):
        cos, sin = right(self, order, head_dim, time_only, heads)
        return torch.ones_like(cos), torch.zeros_like(sin)

    return mock.patch.object(Given, "rotary", wrong)


def audio_late():
    right = Given.rotary

    def wrong(self, order, head_dim, time_only=False, heads=1):
        audio = self.streams["audio"]
        late = audio.positions + torch.tensor([0.5, 0.0, 0.0], dtype=audio.positions.dtype)
        streams = {**self.streams, "audio": replace(audio, positions=late)}
        return right(replace(self, streams=streams, _memo={}), order, head_dim, time_only, heads)

    return mock.patch.object(Given, "rotary", wrong)


def clock_bent():
    """Plant a clock that does not run evenly, so that angles depend on where zero is."""
    right = Clock.table

    def wrong(self, positions, head_dim, time_only=False, heads=1):
        return right(self, positions.square(), head_dim, time_only, heads)

    return mock.patch.object(Clock, "table", wrong)


class InvertedWindow(Window):
    """A mutant: the comparison the wrong way round, and nothing else."""

    def allows(self, query, key):
        if self.seconds == float("inf"):
            return True
        same = (query.modality == key.modality) | key.is_(TEXT) | query.is_(TEXT)
        return same | ((query.seconds - key.seconds).abs() > self.seconds)


def window_is(other):
    """Plant another window into the rule that a denoiser makes."""
    return mock.patch.object(denoiser, "Window", other)


def outlived_cache():
    """Plant a cache of tables that belongs to the model instead of the forward pass."""
    right, kept = Given.visible, {}

    def wrong(self, queries, keys):
        now = right(self, queries, keys)
        if now is None or now.dense is None:
            return now
        old = kept.setdefault((id(self.clock), queries, keys, self.text_visible), now.dense)
        if old.shape == now.dense.shape or old.shape[1] < now.shape[0] or old.shape[2] < now.shape[1]:
            return now
        return Visible(old[:1, : now.shape[0], : now.shape[1]], now.shape, clean=True)

    return mock.patch.object(Given, "visible", wrong)


def text_always_visible():
    right = Given.visible
    return mock.patch.object(
        Given, "visible", lambda self, queries, keys: right(replace(self, text_visible=True, _memo={}), queries, keys)
    )


def cut_forgotten():
    return mock.patch.object(Cut, "allows", return_value=True)


def places_counted_through():
    return mock.patch.object(Packing, "places", lambda self: torch.arange(self.ids.shape[1]).clamp(max=2).unsqueeze(0))


def samples_not_kept_apart():
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Segments, "allows", return_value=True))
    stack.enter_context(mock.patch.object(Ruled, "groups", None))
    return stack


# What is planted, and the laws of which at least one must notice it.
PLANTED = {
    "mask dropped": (lambda: table_changed(torch.ones_like), ["padding_changes_nothing"]),
    "mask inverted": (lambda: table_changed(lambda table: ~table), ["padding_changes_nothing", "packed_is_padded"]),
    "mask transposed": (lambda: table_changed(lambda t: t.mT), ["padding_changes_nothing", "packed_is_padded"]),
    "mask off by one": (lambda: table_changed(lambda t: t.roll(1, -1)), ["padding_changes_nothing", "permuting_tokens"]),
    "mask of the next sample": (lambda: table_changed(lambda t: t.roll(1, 0)), ["samples_are_independent"]),
    "mask of another batch": (outlived_cache, ["shapes_may_change"]),
    "positions shifted by one": (lambda: positions_changed(lambda part: part.roll(1, 1)), ["permuting_tokens"]),
    "rotary dropped": (rotary_dropped, ["positions_matter"]),
    "audio late": (audio_late, ["one_clock"]),
    "clock bent": (clock_bent, ["shifting_the_clock"]),
    "window ignored": (lambda: window_is(lambda seconds: Window(float("inf"))), ["a_window_ends_where_it_says"]),
    "window inverted": (lambda: window_is(InvertedWindow), ["a_window_ends_where_it_says"]),
    "positions of the row": (lambda: positions_changed(lambda part: part * torch.arange(1, part.shape[1] + 1).view(1, -1, 1, 1)), ["permuting_tokens", "packed_is_padded"]),
    "places counted through a packed row": (places_counted_through, ["packed_is_padded"]),
    "packed samples not kept apart": (samples_not_kept_apart, ["packed_is_padded"]),
    "cut forgotten": (cut_forgotten, ["cut_modalities_are_apart"]),
    "text let in": (text_always_visible, ["text_stays_out"]),
}  # fmt: skip


@every_subject
@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_planted_in_any_block_is_noticed(subject, bug):
    plant, names = PLANTED[bug]
    case = plain_case()
    options = DEMANDS[names[0]][1] if names[0] in DEMANDS else {}
    if "text_after" in options and not reads_text(subject):
        pytest.skip("reads no text")
    laws = LAWS | {name: law for name, (law, _) in DEMANDS.items()}
    shown = replace(case, cut=torch.tensor([True, True, True])) if bug == "cut forgotten" else case
    shown = shown.packed() if "packed" in bug else shown
    model = model_of(subject, **options)
    right = shown(model)
    for name in names:
        laws[name](model, case)  # the laws hold before
    noticed = []
    with plant():
        for name in names:
            try:
                laws[name](model, case)
            except AssertionError:
                noticed.append(name)
        wrong = shown(model)
    changed = any(not torch.equal(wrong[name], right[name]) for name in right)
    assert noticed or not changed, f"none of {', '.join(names)} notices it"
    # Who reads the text from outside is built without it where it is kept out, and a lone block may have nothing to spoil.
    assert noticed or bug == "text let in" or not subject.startswith("variant"), "no way to notice it"


@given(st.floats(0.02, 0.2), st.floats(0.02, 0.2), st.integers(2, 12), st.integers(2, 12))
def test_law_11_equal_content_attends_most_to_the_nearest_moment(first, second, queries, keys):
    nearest_moment(Clock(), first, second, queries, keys)


def nearest_moment(clock, first, second, queries, keys, places=time_positions):
    """Whatever the two rates, a rotary logit between equal contents is largest at the key nearest in seconds."""
    seconds = [(torch.arange(count) + 0.5) * rate for count, rate in ((queries, first), (keys, second))]
    positions = [places(count, rate) for count, rate in ((queries, first), (keys, second))]
    content = torch.ones(1, 1, 1, 32)
    q, k = (rotate(content.expand(1, part.shape[1], 1, 32), clock.table(part, 32, True))[0, :, 0] for part in positions)
    logits = q @ k.mT
    distance = (seconds[0][:, None] - seconds[1]).abs()
    chosen = distance.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)
    near = distance.min(1).values <= 0.1  # beyond a tenth of a second the fastest pair has come round
    assert not ((chosen - distance.min(1).values)[near] > 1e-3).any()


@pytest.mark.parametrize("change", [lambda s: s.roll(1, 1), lambda s: s * 0.5])
def test_a_shifted_clock_is_caught(change):
    class Wrong(Clock):
        def table(self, positions, head_dim, time_only=False):
            return super().table(positions if positions.shape[1] == 9 else change(positions), head_dim, time_only)

    nearest_moment(Clock(), 0.08, 0.05, 9, 12)
    with pytest.raises(AssertionError):
        nearest_moment(Wrong(), 0.08, 0.05, 9, 12)


def test_places_at_the_start_of_tokens_are_caught():
    def starts(tokens, seconds):
        return time_positions(tokens, seconds) - torch.tensor([seconds / 2, 0.0, 0.0])

    nearest_moment(Clock(), 0.2, 0.05, 5, 20)
    with pytest.raises(AssertionError):
        nearest_moment(Clock(), 0.2, 0.05, 5, 20, starts)
