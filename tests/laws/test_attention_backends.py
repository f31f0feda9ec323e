"""Laws of attention itself, for every registered backend, each shown to catch mutants.

A law takes the function under test, ``attend(query, key, value, visible)``, and raises AssertionError where it does not hold.
Backends that have no gradients on the device (NAVA_DEVICE, the CPU by default) are held to the forward half.
"""

from dataclasses import replace
from functools import cache, partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings

from nava_lab.attention import Causal, Cut, Everything, Padding, Segments, Spans, Tokens, Visible, Window, WithoutText, attend
from nava_lab.attention.attend import check, choose
from nava_lab.attention.backends import flex
from nava_lab.registry import backends
from nava_lab.streams import Packing, Stream, time_positions
from tests.laws import cases
from tests.laws.cases import DEVICE, NAMES, Scene, fewer, generator, on_device, scenes
from tests.laws.test_masks import big

NAMED = {name: on_device(partial(attend, backend=name)) for name in [*backends, "auto"]}
SINGLE = {"cpu": 1e-5, "cuda": 5e-3}  # matrix products of single precision may run in TF32 there
TOLERANCE = {torch.float64: 1e-6, torch.float32: SINGLE.get(DEVICE, 1e-5), torch.bfloat16: 3e-2}


def trains(name):
    try:
        check(name, DEVICE, gradients=True)
    except ValueError:
        return False
    return True


def close(found, expected, dtype=torch.float32):
    bound = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), expected.double(), atol=bound, rtol=bound)


def run(function, values, visible, gradients, weight=None):
    """Output, and gradients of a weighted sum of its squares."""
    if not gradients:
        return [function(*(part.detach() for part in values), visible)]
    values = [part.detach().requires_grad_() for part in values]
    out = function(*values, visible)
    (out.double().square() * (1 if weight is None else weight)).sum().backward()
    return [out.detach(), *(part.grad for part in values)]


def equals_the_reference(function, scene, gradients=True):
    """Laws 4 and 5: any lengths, queries and keys alike or not, grouped heads, every mask; forward and backward."""
    visible = scene.visible()
    values = scene.values(len(scene.tokens(scene.queries)), len(scene.tokens(scene.keys)))
    exact = run(partial(attend, backend="reference"), [part.double() for part in values], visible, gradients)
    for found, expected in zip(run(function, values, visible, gradients), exact, strict=True):
        close(found, expected, scene.dtype)


def padding_changes_nothing(function, scene, gradients=True):
    """Law 1: more padding, with anything in it."""
    longer = {name: _lengthened(stream, 2) for name, stream in scene.streams.items()}
    short, long = scene, replace(scene, streams=longer)
    kept = [torch.cat([_old(scene.streams[name], 2) for name in order]) for order in (scene.queries, scene.keys)]
    values = long.values(len(kept[0]), len(kept[1]))
    with torch.no_grad():
        for part in values[1:]:
            part[:, ~kept[1]] = 1e3
    few = [values[0][:, kept[0]], values[1][:, kept[1]], values[2][:, kept[1]]]
    # Padded queries answer something, but to no purpose: only the real ones count.
    weight = kept[0].double()[None, :, None, None]
    padded = run(function, values, long.visible(), gradients, weight)
    plain = run(function, few, short.visible(), gradients)
    for number, (found, expected) in enumerate(zip(padded, plain, strict=True)):
        close(found[:, kept[0 if number < 2 else 1]], expected)
    if gradients:
        for found in padded[2:]:
            assert not found[:, ~kept[1]].any()


def _lengthened(stream, by):
    batch, length = stream.tokens.shape[:2]
    valid = torch.ones(batch, length, dtype=torch.bool) if stream.valid is None else stream.valid
    return Stream(
        torch.cat((stream.tokens, stream.tokens.new_zeros(batch, by, 1)), 1),
        torch.cat((stream.positions, stream.positions[:, -1:].expand(-1, by, -1)), 1),
        torch.cat((valid, valid.new_zeros(batch, by)), 1),
        None,
        torch.cat((stream.span, stream.span[:, -1:].expand(-1, by)), 1),
    )


def _old(stream, by):
    return torch.arange(len(stream) + by) < len(stream)


def nan_stays_out(function, scene, gradients=True):
    """Law 2: NaN in keys and values that nobody sees reaches neither outputs nor gradients."""
    visible = scene.visible()
    values = scene.values(len(scene.tokens(scene.queries)), len(scene.tokens(scene.keys)))
    hidden = torch.zeros(scene.batch, values[1].shape[1], dtype=torch.bool)
    if visible is not None and visible.dense is not None and scene.tokens(scene.keys).valid is not None:
        hidden = ~visible.dense.any(1).expand(scene.batch, -1)
    broken = [values[0], *(part.detach().masked_fill(hidden[..., None, None], float("nan")) for part in values[1:])]
    clean = [values[0], *(part.detach().masked_fill(hidden[..., None, None], 0.0) for part in values[1:])]
    for found, expected in zip(
        run(function, broken, visible, gradients), run(function, clean, scene.visible(), gradients), strict=True
    ):
        assert torch.isfinite(found).all()
        close(found, expected)


def blind_rows_are_zero(function, scene, gradients=True):
    """Law 3: a query that sees nothing gets exactly 0; all gradients are finite, its own 0."""
    visible = scene.visible()
    table = None if visible is None else visible.dense
    shape = (scene.batch, len(scene.tokens(scene.queries)), len(scene.tokens(scene.keys)))
    table = torch.ones(shape, dtype=torch.bool) if table is None else table.expand(shape).clone()
    table[0, 0] = False
    blind = ~table.any(-1)
    values = scene.values(*shape[1:])
    made = run(function, values, Visible(table, shape[1:]), gradients)
    assert not made[0][blind].any()
    assert all(torch.isfinite(part).all() for part in made)
    if gradients:
        assert not made[1][blind].any()


def samples_are_independent(function, scene, gradients=True):
    """Law 8: a sample's output depends on that sample alone, and so does its gradient."""
    values = scene.values(len(scene.tokens(scene.queries)), len(scene.tokens(scene.keys)))
    only_first = torch.zeros(scene.batch, 1, 1, 1, dtype=torch.float64)
    only_first[0] = 1
    made = run(function, values, scene.visible(), gradients, only_first)
    first = replace(scene, streams={name: stream.rows(slice(0, 1)) for name, stream in scene.streams.items()})
    mask = scene.mask  # its per-sample parts are indexed by sample, and the first one keeps its number
    alone = run(function, [part[:1] for part in values], first.visible(mask=mask), gradients)
    for found, expected in zip(made, alone, strict=True):
        close(found[:1], expected)
    for found in made[1:]:
        assert not found[1:].any()


def permuting_keys_and_queries(function, scene, gradients=True):
    """Law 10, for attention: tokens in another order with all that is known of them; outputs follow their queries."""
    orders = {name: torch.randperm(len(part), generator=generator(scene.seed)) for name, part in scene.streams.items()}
    moved = {name: _permuted(stream, orders[name]) for name, stream in scene.streams.items()}
    rows = [_places(scene.streams, orders, order) for order in (scene.queries, scene.keys)]
    values = scene.values(len(rows[0]), len(rows[1]))
    plain = run(function, values, scene.visible(), gradients)
    shuffled = [values[0][:, rows[0]], values[1][:, rows[1]], values[2][:, rows[1]]]
    again = run(function, shuffled, scene.visible(moved), gradients)
    for number, (found, expected) in enumerate(zip(again, plain, strict=True)):
        close(found, expected[:, rows[0 if number < 2 else 1]])


def _permuted(stream, order):
    valid = None if stream.valid is None else stream.valid[:, order]
    return Stream(stream.tokens[:, order], stream.positions[:, order], valid, None, stream.span[:, order])


def _places(made, orders, order):
    start, places = 0, []
    for name in order:
        places.append(orders[name] + start)
        start += len(made[name])
    return torch.cat(places)


def packed_is_separate(function, scene, gradients=True):
    """Law 7, for attention: samples packed into one row see what they saw as lines of a padded batch."""
    streams = {name: stream.packed() for name, stream in scene.streams.items()}
    padded = [scene.tokens(order) for order in (scene.queries, scene.keys)]
    packed = [scene.tokens(order, streams) for order in (scene.queries, scene.keys)]
    real = [tokens.valid if tokens.valid is not None else torch.ones_like(tokens.sample, dtype=torch.bool) for tokens in padded]
    values = scene.values(len(padded[0]), len(padded[1]))
    weight = real[0][..., None, None].double()
    plain = run(function, values, scene.visible(), gradients, weight)
    row = [_gather(part, scene, order) for part, order in zip(values, (scene.queries, scene.keys, scene.keys), strict=True)]
    assert len(packed[0]) == row[0].shape[1]
    visible = Visible.of(scene.mask, *packed)
    made = run(function, row, visible, gradients)
    for number, (found, expected) in enumerate(zip(made, plain, strict=True)):
        close(found, _gather(expected, scene, scene.queries if number < 2 else scene.keys))


def _gather(values, scene, order):
    """What a padded row holds of real tokens, in the order of a packed one: by modality, then by sample."""
    parts, start = [], 0
    for name in order:
        stream = scene.streams[name]
        part = values[:, start : start + len(stream)]
        parts.append(part.flatten(0, 1) if stream.valid is None else part[stream.valid])
        start += len(stream)
    return torch.cat(parts).unsqueeze(0)


def references_reach_their_span(function, scene, gradients=True):
    """Law 13: what a timbre token holds changes only the tokens of its own span."""
    scene = replace(scene, mask=Padding() & Spans("timbre"), queries=NAMES, keys=NAMES)
    tokens = scene.tokens(NAMES)
    values = scene.values(len(tokens), len(tokens), gradients=False)
    changed = [part.clone() for part in values]
    own = tokens.is_("timbre") & (tokens.span == 1)
    for part in changed[1:]:
        part[own] += 3.0
    moved = function(*values, scene.visible()) - function(*changed, scene.visible())
    assert not moved[(tokens.span != 1)].any()
    if own.any() and (tokens.valid is None or (own & tokens.valid).any()):
        assert moved.any()


def tables_and_rules_agree(function, scene, gradients=True):
    """Law 14: a mask given as a rule (which may skip blocks), as a table, and as what is added to logits."""
    visible = scene.visible()
    values = scene.values(len(scene.tokens(scene.queries)), len(scene.tokens(scene.keys)))
    if visible is None or visible.dense is None:
        return
    ruled = run(function, values, visible, gradients)
    for found, expected in zip(run(function, values, visible.dense, gradients), ruled, strict=True):
        close(found, expected)
    allowed = visible.dense.unsqueeze(1)
    query, key, value = (part.detach().double().transpose(1, 2) for part in values)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.mT * 8**-0.5 + torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    added = logits.softmax(-1).nan_to_num(0.0) @ value
    close(ruled[0], added.transpose(1, 2))


LAWS = {
    law.__name__: law
    for law in (
        equals_the_reference,
        padding_changes_nothing,
        nan_stays_out,
        blind_rows_are_zero,
        samples_are_independent,
        permuting_keys_and_queries,
        packed_is_separate,
        references_reach_their_span,
        tables_and_rules_agree,
    )
}


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("law", LAWS)
def test_law(law, backend):
    @(fewer if backend == "flex" else settings())
    @given(scenes())
    def holds(scene):
        LAWS[law](NAMED[backend], scene, trains(backend))

    holds()


@pytest.mark.parametrize("backend", NAMED)
@fewer
@given(scenes(dtypes=(torch.float64, torch.bfloat16)))
def test_other_precisions_equal_the_reference(backend, scene):
    equals_the_reference(NAMED[backend], scene, trains(backend))


def long_scene(length, mask, seed=0):
    """One modality of ``length`` tokens at 50 Hz and a second at half of it, ragged."""
    chance = generator(seed)
    made = {}
    for name, count, seconds in (("video", length // 2 + 1, 0.04), ("audio", length, 0.02)):
        valid = torch.arange(count) < torch.randint(count // 2 + 1, count + 1, (2, 1), generator=chance)
        positions = torch.stack(((torch.arange(count) + 0.5) * seconds, torch.zeros(count), torch.zeros(count)), -1)
        made[name] = Stream(
            torch.zeros(2, count, 1), positions.unsqueeze(0), valid, None, torch.zeros(2, count, dtype=torch.long)
        )
    return Scene(made, mask, ("audio",), ("video",), (2, 1))


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("length", [1, 127, 128, 129, 137, 1025])
def test_law_5_at_the_edges_of_blocks(length, backend):
    for mask in (Everything(), Padding() & Window(0.1)):
        equals_the_reference(NAMED[backend], long_scene(length, mask), trains(backend))


MUTANTS = {
    "dropped": lambda visible: torch.ones_like(visible.dense),
    "inverted": lambda visible: ~visible.dense,
    "transposed": lambda visible: visible.dense.mT,
    "off by one": lambda visible: visible.dense.roll(1, -1),
    "of the next sample": lambda visible: visible.dense.roll(1, 0),
}
# Which law must catch a mutant of the mask inside attention.
CAUGHT = {
    "equals_the_reference": list(MUTANTS),
    "padding_changes_nothing": list(MUTANTS),
    "nan_stays_out": ["dropped", "inverted", "off by one", "of the next sample"],
    "blind_rows_are_zero": ["dropped", "inverted", "transposed", "of the next sample"],
    "samples_are_independent": ["of the next sample"],
    "permuting_keys_and_queries": ["off by one", "transposed"],
    "packed_is_separate": ["dropped", "inverted", "transposed", "off by one"],
    "references_reach_their_span": ["dropped", "inverted", "transposed", "off by one"],
    "tables_and_rules_agree": list(MUTANTS),
}


@pytest.mark.parametrize(("law", "mutant"), [(law, mutant) for law, mutants in CAUGHT.items() for mutant in mutants])
def test_a_mutant_is_caught(law, mutant):
    scene = replace(
        big(),
        mask=Padding() & Segments() & Causal() & Cut(torch.tensor([True, False, True])),
        queries=("video", "audio", "timbre"),
    )
    scene = replace(scene, keys=scene.queries)

    def wrong(query, key, value, visible):
        table = visible if isinstance(visible, torch.Tensor) else visible.dense
        changed = MUTANTS[mutant](Visible(table, table.shape[1:]))
        return unguarded(query, key, value, changed)

    LAWS[law](NAMED["sdpa"], scene, True)
    with pytest.raises(AssertionError):
        LAWS[law](wrong, scene, True)


def unguarded(query, key, value, table):
    """Attention as it is often written: nothing done about blind rows or what stands in masked keys."""
    logits = torch.einsum("bqhe,bkhe->bhqk", query, key.repeat_interleave(query.shape[2] // key.shape[2], 2)) * 8**-0.5
    logits = logits + torch.zeros(table.shape).masked_fill(~table, float("-inf")).unsqueeze(1)
    return torch.einsum("bhqk,bkhe->bqhe", logits.softmax(-1), value.repeat_interleave(query.shape[2] // value.shape[2], 2))


@pytest.mark.parametrize("law", ["nan_stays_out", "blind_rows_are_zero"])
def test_attention_without_guards_is_caught(law):
    def naive(query, key, value, visible):
        return unguarded(query, key, value, visible if isinstance(visible, torch.Tensor) else visible.dense)

    scene = replace(big(), mask=Padding() & Cut(), queries=("video",), keys=("audio", "video"))
    with pytest.raises(AssertionError):
        LAWS[law](naive, scene, True)


@pytest.mark.parametrize("backend", NAMED)
def test_nothing_to_see_and_nobody_to_see_it(backend):
    query, key = torch.randn(2, 3, 2, 8), torch.randn(2, 0, 2, 8)
    assert torch.equal(NAMED[backend](query, key, key, None), torch.zeros_like(query))
    assert NAMED[backend](key, query, query, None).shape == key.shape


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("packed", [False, True])
def test_law_2_nan_in_keys_that_nobody_sees_stays_out_without_any_padding(backend, packed):
    """The contract of ``attend``, whichever rule hides them: text that is kept out, a modality that is cut off."""
    made = {
        name: Stream(torch.zeros(2, count, 1), time_positions(count, 0.1), span=torch.zeros(2, count, dtype=torch.long))
        for name, count in (("video", 3), ("audio", 4), ("timbre", 2), ("text", 2))
    }
    made = {name: stream.packed() for name, stream in made.items()} if packed else made
    rows = {("video",): ("video", "text"), ("audio",): ("video",), ("video", "audio"): ("video", "audio", "text")}
    for (queries, keys), mask in zip(rows.items(), (WithoutText(), Cut(), WithoutText()), strict=True):
        scene = Scene(made, Padding() & Segments() & mask, queries, keys)
        query, key, value = scene.values(len(scene.tokens(queries)), len(scene.tokens(keys)), gradients=trains(backend))
        unseen = ~scene.visible().dense.expand(len(key), -1, -1).any(1)
        assert unseen.any()
        bad = [
            part.detach().masked_fill(unseen[..., None, None], torch.nan).requires_grad_(trains(backend)) for part in (key, value)
        ]
        found = NAMED[backend](query, *bad, scene.visible())
        close(found, NAMED["reference"](query, key, value, scene.visible()).to(found))
        if trains(backend):
            found.square().sum().backward()
            assert all(torch.isfinite(part.grad).all() for part in (query, *bad))


def test_rows_of_one_modality_know_that_nobody_is_hidden():
    """A tower's own attention and its reading of the text need no table under a cut or a window: nothing to make or to skip."""
    streams = {name: replace(stream, valid=None) for name, stream in big().streams.items()}
    mask = Padding() & Segments() & Window(0.1) & Cut(torch.tensor([True, False, True])) & Spans()
    for name in ("video", "audio"):
        tokens, text = (Tokens.of(streams, (part,), NAMES) for part in (name, "text"))
        assert Visible.of(mask, tokens, tokens) is None
        assert Visible.of(Padding() & Window(0.1) & Cut(), tokens, text) is None
        assert Visible.of(mask, tokens, text) is not None  # its marks are seen from their spans alone
        other = Tokens.of(streams, ("audio" if name == "video" else "video",), NAMES)
        assert Visible.of(mask, tokens, other).dense.any()


def test_flex_takes_what_autocast_leaves_in_mixed_types_and_heads_below_its_least():
    scene = replace(big(), mask=Padding() & Causal())
    query, key, value = scene.values(*scene.visible().shape, gradients=False)
    expected = NAMED["reference"](query, key, value, scene.visible())
    mixed = NAMED["flex"](query, key.double(), value, scene.visible())
    assert mixed.dtype == torch.float64
    close(mixed.float(), expected)
    with torch.autocast(DEVICE, torch.bfloat16):
        low = NAMED["flex"](query, key, value.bfloat16(), scene.visible())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, atol=0.05, rtol=0.05)


def test_flex_traces_a_kind_of_rule_once_whatever_its_numbers_and_lengths():
    """Compiled as on a GPU, a graph is for a kind of rule and row: new clips, lengths and cut samples bring no new one.

    A window's seconds are a constant of the config and of the graph.
    """
    graphs = []

    def counting(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = cache(lambda function: torch.compile(function, backend=counting, dynamic=True))
    with mock.patch.object(flex, "_compiled", compiled), mock.patch.object(flex, "compiles", return_value=True):
        for window, most in ((0.1, 4), (0.2, 8)):  # of the mask and of attention, and lengths turn symbolic at the second one
            for seed, length in enumerate([260, 260, 300, 388, 260]):
                mask = Padding() & Window(window) & Cut(torch.rand(2, generator=generator(seed)) < 0.5)
                scene = long_scene(length, mask, seed)
                values = scene.values(*scene.visible().shape, gradients=False)
                close(NAMED["flex"](*values, scene.visible()), NAMED["sdpa"](*values, scene.visible()))
            assert 0 < len(graphs) <= most
    assert torch._dynamo.config.specialize_float is False  # the user's own models are compiled as ever


def test_flex_refuses_to_train_on_a_cpu_and_names_the_remedy():
    parts = [torch.randn(1, 2, 1, 8, requires_grad=True) for _ in range(3)]
    with pytest.raises(ValueError, match=r"flex: .*no gradients on cpu; attention.backend=auto"):
        attend(*parts, backend="flex")


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="auto, flex, reference, sdpa"):
        attend(*(torch.zeros(1, 1, 1, 2) for _ in range(3)), backend="flush")


def test_auto_says_what_it_takes_and_why():
    window = long_scene(2500, Padding() & Window(0.1)).visible()
    assert choose("cpu", True, window, 4000).backend == "sdpa"
    assert choose("cuda", True, window, 4000).backend == "flex"
    assert choose("cuda", False, window, 100).backend == "sdpa"
    assert choose("cuda", True, None, 9000).backend == "sdpa"
    dense = long_scene(2500, Padding() & Segments() & Window(float("inf"))).visible()
    assert choose("cuda", True, dense, 4000).backend == "sdpa"
    assert "Window" in choose("cuda", True, window, 4000).why


def test_a_packed_row_needs_no_table_of_the_whole_row():
    made = {name: stream.packed() for name, stream in big().streams.items()}
    visible = Scene(made, Padding() & Segments() & Cut()).visible()
    values = [torch.randn(1, visible.shape[0], 2, 8) for _ in range(3)]
    attend(*values, visible, "sdpa")
    sees = visible.sees
    assert "table" not in visible.made
    assert torch.equal(sees, visible.dense.any(-1, keepdim=True))


def test_a_row_is_packed_or_not():
    made = big().streams
    mixed = {**made, "audio": made["audio"].packed()}
    with pytest.raises(ValueError, match="either every stream of a row is packed or none"):
        Scene(mixed, Everything()).tokens(NAMES)
    assert Packing.of((2, 0, 1)).ids.tolist() == [[0, 0, 2]]
    assert Packing.of((2, 0, 1)).places().tolist() == [[0, 1, 0]]


def test_the_laws_have_attention_computed_where_they_are_told(monkeypatch):
    mask = Padding() & (~Causal() | Cut(torch.tensor([True, False, True]), ("audio",))) & Window(0.1)
    scene, seen = replace(big(), mask=mask), []

    def elsewhere(query, key, value, visible):
        seen.append((visible, query, key, value))
        return torch.zeros(query.shape)

    values = scene.values(*scene.visible().shape)
    on_device(elsewhere)(*values, scene.visible())
    assert torch.equal(seen[0][0].dense.cpu(), scene.visible().dense)  # the same rule
    monkeypatch.setattr(cases, "DEVICE", "meta")
    for visible in (scene.visible(), Visible(scene.visible().dense, scene.visible().shape)):
        assert on_device(elsewhere)(*values, visible).device.type == "cpu"
        assert {part.device.type for part in (seen[-1][0].dense, *seen[-1][1:])} == {"meta"}
    on_device(elsewhere)(*values, scene.visible().dense)
    assert {part.device.type for part in seen[-1]} == {"meta"}
