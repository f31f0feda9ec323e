"""Laws of reference timbres, for every registered variant: what they reach, what hides them, what they are blind to."""

from dataclasses import replace
from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_lab.attention import Spans
from nava_lab.attention.masks import no
from nava_lab.blocks.base import Given
from nava_lab.conditioning.text import without_text
from nava_lab.conditioning.timbre import TimbreEncoder, with_references, without_references
from nava_lab.flow.draws import Drawing
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size
from nava_lab.registry import variants
from nava_lab.rng import generators
from nava_lab.streams import TEXT, References
from tests.conftest import INTERFACE, fitting
from tests.laws.cases import clips, fewer

PLACES = ("context", "added", "global")
every_variant = pytest.mark.parametrize("name", variants)
every_place = pytest.mark.parametrize("place", PLACES)


def told(place="context", references=3):
    return replace(INTERFACE, text=replace(INTERFACE.text, references=references, timbre=5, timbre_place=place))


@cache
def model_of(name, place="context", **options):
    torch.manual_seed(0)
    fields = {"depth": options.pop("depth", 2)}
    variant = variants.get(name)(**fields)
    model = Denoiser(variant, told(place), fitting(variant, Size(16, 24)), **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@st.composite
def spoken(draw, marks=None, **options):
    """Ragged clips whose captions mark spans in some words, with some of their references."""
    case = draw(clips(**options))
    chance = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    words = case.text.tokens.shape[1]
    places = torch.stack([torch.randperm(words, generator=chance) for _ in range(case.batch)])
    count = draw(st.integers(0, 3)) if marks is None else marks
    span = torch.where(places < count, places, -1)
    features = torch.randn(case.batch, 3, 5, generator=chance, dtype=torch.float64)
    valid = torch.rand(case.batch, 3, generator=chance) < 0.7
    streams = {
        key: replace(stream, span=torch.randint(-1, 3, stream.tokens.shape[:2], generator=chance))
        for key, stream in case.streams.items()
    }
    return replace(case, streams=streams, text=replace(case.text, span=span, references=References(features, valid)))


def seen(stream, values):
    return values if stream.valid is None else values[stream.valid]


def outputs(model, case):
    with torch.no_grad():
        return {key: seen(case.streams[key], part) for key, part in case(model).items()}


def equal(found, expected, bound=1e-9):
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=bound, rtol=bound)


def with_text(case, **changes):
    return replace(case, text=replace(case.text, **changes))


@every_variant
@every_place
def test_what_is_not_shown_reaches_nothing(name, place):
    """A reference that is not valid may hold anything, and hiding all of a sample's is having none."""

    @fewer
    @given(spoken())
    def holds(case):
        model, heard = model_of(name, place), case.text.references
        poison = heard.features.masked_fill(~heard.valid.unsqueeze(-1), float("nan"))
        equal(outputs(model, with_text(case, references=References(poison, heard.valid))), outputs(model, case))
        hidden = replace(case, text=without_references(case.text, torch.ones(case.batch, dtype=torch.bool)))
        equal(outputs(model, hidden), outputs(model, with_text(case, references=None)))

    holds()


@every_variant
@every_place
def test_samples_keep_their_own_and_packed_is_padded(name, place):
    @fewer
    @given(spoken(least=1))
    def holds(case):
        model = model_of(name, place)
        whole = case(model)
        for row in range(case.batch):
            alone = replace(case.row(row), text=case.text.rows(slice(row, row + 1)))
            equal(outputs(model, alone), {key: seen(alone.streams[key], part[row : row + 1]) for key, part in whole.items()})
        packed = case.packed()(model)
        equal(
            {key: seen(case.streams[key], case.streams[key].unpacked(part)) for key, part in packed.items()}, outputs(model, case)
        )

    holds()


@every_variant
@every_place
def test_a_reference_is_heard(name, place):
    """Something depends on it; in context only through the word that marks its span."""
    case = example_case()
    model = model_of(name, place)
    louder = References(case.text.references.features.flip(-1), case.text.references.valid)
    assert not torch.allclose(outputs(model, with_text(case, references=louder))["audio"], outputs(model, case)["audio"])
    bare = with_text(case, span=torch.full_like(case.text.span, -1))
    same = torch.allclose(
        outputs(model, with_text(bare, references=louder))["audio"], outputs(model, bare)["audio"], atol=1e-12, rtol=0
    )
    assert same == (place != "global")


@every_variant
def test_references_and_marks_may_change_their_numbers_together(name):
    """The i-th reference belongs to the i-th mark: numbers are names.

    Who hears which is lost on a global mean, and on cross-attention to words that were overwritten whole.
    """
    case, order = example_case(), torch.tensor([2, 0, 1])
    place_of = order.argsort()
    heard = case.text.references
    moved = References(heard.features[:, order], heard.valid[:, order])
    renamed = torch.where(case.text.span >= 0, place_of[case.text.span], -1)
    for place in PLACES:
        model = model_of(name, place)
        own = outputs(model, case)
        equal(outputs(model, with_text(case, span=renamed, references=moved)), own)
        exchanged = outputs(model, with_text(case, references=moved))["audio"]
        blind = place == "global" or (place == "context" and not model.in_sequence)
        assert torch.allclose(exchanged, own["audio"], atol=1e-9, rtol=0) == blind
    # Where words are read as a bag, a timbre that has overwritten its word is bound to its span by the mask alone.
    model = model_of(name, timbre_in_span=True)
    bound = outputs(model, with_text(case, references=moved))["audio"]
    assert not torch.allclose(bound, outputs(model, case)["audio"], atol=1e-9, rtol=0)


@every_variant
def test_spans_beyond_the_references_hear_the_null_token(name):
    """Fewer references than spans, none at all, and references that are hidden are one and the same to those spans."""
    case = example_case()
    model, heard = model_of(name), case.text.references
    two = References(heard.features[:, :2], heard.valid[:, :2])
    hidden = References(heard.features, heard.valid & (torch.arange(3) < 2))
    equal(outputs(model, with_text(case, references=two)), outputs(model, with_text(case, references=hidden)))
    none = References(heard.features[:, :0], heard.valid[:, :0])
    equal(outputs(model, with_text(case, references=none)), outputs(model, with_text(case, references=None)))


def reached(model, case, number):
    """Which audio and video tokens have a derivative in what reference ``number`` holds."""
    leaf = case.text.references.features.clone().requires_grad_()
    out = with_text(case, references=References(leaf, case.text.references.valid))(model)
    found = {}
    for key, part in out.items():
        rows = []
        for token in range(part.shape[1]):
            grad = torch.autograd.grad(part[:, token].square().sum(), leaf, retain_graph=True, allow_unused=True)[0]
            rows.append(torch.zeros(len(leaf), dtype=torch.bool) if grad is None else grad[:, number].abs().amax(-1) > 0)
        found[key] = torch.stack(rows, 1)
    return found


@every_variant
def test_law_13_a_timbre_reaches_its_own_span_alone(name):
    """One layer, modalities cut apart, so that no token hears it from another one: exactly the tokens of the span, no other."""
    case = example_case(cut=torch.tensor([True, True]))
    for number in range(3):
        for key, hit in reached(model_of(name, timbre_in_span=True, depth=1), case, number).items():
            assert torch.equal(hit, case.streams[key].span == number)
        free = reached(model_of(name, depth=1), case, number)
        assert all(hit.all() for hit in free.values())


@every_variant
@pytest.mark.parametrize("bug", ["mask dropped", "span off by one", "inverted"])
def test_law_13_notices_a_planted_bug(name, bug):
    right = Spans.allows
    planted = {
        "mask dropped": lambda self, query, key: True,
        "span off by one": lambda self, query, key: right(
            self, replace(query, span=None if query.span is None else query.span - 1), key
        ),
        "inverted": lambda self, query, key: no(right(self, query, key)),
    }
    with mock.patch.object(Spans, "allows", planted[bug]), pytest.raises(AssertionError):
        test_law_13_a_timbre_reaches_its_own_span_alone(name)


@every_variant
def test_law_13_in_every_layer_no_block_asks_past_it(name):
    """At any depth: whatever row of text a block asks for, marks are seen from their spans alone."""
    case = example_case()
    asked = []
    right = Given.visible

    def watch(self, queries, keys):
        answer = right(self, queries, keys)
        asked.append((self.streams, queries, keys, answer))
        return answer

    with mock.patch.object(Given, "visible", watch):
        case(model_of(name, timbre_in_span=True))
    texts = [one for one in asked if TEXT in one[2]]
    assert texts
    for streams, queries, keys, answer in texts:
        span = {key: torch.cat([streams[part].span for part in row], 1) for key, row in (("q", queries), ("k", keys))}
        mark = torch.cat([torch.full_like(streams[part].span, part == TEXT, dtype=torch.bool) for part in keys], 1) & (
            span["k"] >= 0
        )
        foreign = mark.unsqueeze(1) & (span["q"].unsqueeze(2) != span["k"].unsqueeze(1))
        assert foreign.any()
        assert not answer.dense[foreign].any()


def example_case(cut=None):
    """Two full clips of three spans, whose captions mark one in every word."""
    found = []

    @given(spoken(marks=3, full=True, batch=2, least=5, cut=cut, windows=(float("inf"),)))
    def first(case):
        found.append(case)

    first()
    case = next(case for case in found if all(len(stream) >= 5 for stream in case.streams.values()))
    streams = {key: replace(stream, span=torch.arange(len(stream)).expand(2, -1) % 4 - 1) for key, stream in case.streams.items()}
    text = replace(case.text, tokens=torch.tensor([[2, 3, 4], [5, 6, 7]]), valid=torch.ones(2, 3, dtype=torch.bool))
    heard = References(case.text.references.features, torch.ones(2, 3, dtype=torch.bool))
    return replace(case, streams=streams, text=replace(text, references=heard))


def test_more_references_than_marked_spans_are_refused():
    case = example_case()
    one = replace(case.text, span=torch.where(case.text.span == 0, 0, -1), references=None)
    heard = case.text.references
    with pytest.raises(ValueError, match=r"sample 0 has a reference timbre 1, .* marks span 1 \(marked: 0\): leave .* or mark"):
        with_references(one, heard)
    hole = replace(case.text, span=torch.tensor([[0, -1, 2], [0, 1, 2]]), references=None)
    with pytest.raises(ValueError, match=r"sample 0 has a reference timbre 1, .* \(marked: 0, 2\)"):
        with_references(hole, heard)
    padded = replace(case.text, valid=torch.tensor([[True, True, True], [True, True, False]]), references=None)
    if bool((padded.span[1, 2] >= 0) & heard.valid[1, padded.span[1, 2]]):
        with pytest.raises(ValueError, match="sample 1 has a reference timbre"):
            with_references(padded, heard)
    fits = References(heard.features, heard.valid & (torch.arange(3) < 1))
    assert with_references(one, fits).references is fits
    with pytest.raises(ValueError, match="marked: none"):
        with_references(replace(one, span=None), fits)


def test_dropping_the_caption_drops_its_marks_and_hides_the_references():
    case = example_case()
    dropped = without_text(case.text, torch.tensor([True, False]))
    assert (dropped.span[0] == -1).all()
    assert torch.equal(dropped.span[1], case.text.span[1])
    assert torch.equal(dropped.references.valid, case.text.references.valid & torch.tensor([[False], [True]]))
    features = torch.zeros(2, 3, 4, dtype=torch.float64)
    empty = replace(case.text, tokens=features[:1], valid=torch.ones(1, 3, dtype=torch.bool), span=None, references=None)
    frozen = without_text(replace(case.text, tokens=features, empty=empty), torch.tensor([True, False]))
    assert torch.equal(frozen.references.valid, dropped.references.valid)


@every_variant
@every_place
def test_who_is_told_no_caption_is_told_no_timbre(name, place):
    """In every place alike, so that text guidance and ``flow.text_dropout`` are the same thing whichever is compared."""
    case, drop = example_case(), torch.tensor([True, False])
    model, heard = model_of(name, place), case.text.references
    louder = References(heard.features.flip(-1), heard.valid)
    with torch.no_grad():
        own, other = (
            replace(case, text=without_text(replace(case.text, references=part), drop))(model) for part in (heard, louder)
        )
    for key, part in own.items():
        assert torch.equal(part[0], other[key][0])
        assert not torch.allclose(part[1], other[key][1], atol=1e-9, rtol=0)


@every_variant
def test_a_global_timbre_that_outlives_its_caption_is_noticed(name):
    right = without_text

    def kept(text, samples):
        return replace(right(text, samples), references=text.references)

    with mock.patch(f"{__name__}.without_text", kept), pytest.raises(AssertionError):
        test_who_is_told_no_caption_is_told_no_timbre(name, "global")


def test_the_drop_rate_is_exact_at_batch_size_one_and_in_any_split():
    """Every clip's own generator decides: the same samples are dropped one by one and together, at the rate that is asked."""
    case = example_case().row(0)
    law = Drawing(timbre_dropout=0.3)
    alone = torch.cat([law(case.streams, generators("t", 0, [i])).drop_timbre for i in range(400)])
    assert abs(float(alone.float().mean()) - 0.3) < 0.06
    assert law(case.streams, generators("t", 0, [7])).rates()["timbre_dropped"] == float(alone[7])
    assert Drawing()(case.streams, generators("t", 0, [7])).drop_timbre is None
    plain = Drawing()(case.streams, generators("t", 0, [7]))
    drawn = law(case.streams, generators("t", 0, [7]))
    assert torch.equal(plain.noise["video"], drawn.noise["video"])  # other draws are as without it
    shown = drawn.shown(case.text).references.valid
    assert shown.any() == (not alone[7])


def test_the_encoder_is_navas():
    """10,042,752 parameters at 192 features and width 3072."""
    with torch.device("meta"):
        module = TimbreEncoder(192, 3072)
    assert sum(part.numel() for part in module.parameters()) == 10_042_752
