"""Law 11: one clock in seconds, asked of tables and of what the attentions of whole models make of them.

What blocks are told (``Given.rotary``) may be right and a block may still lose it: leave out its tables, or turn keys by
those of another moment. So the law of behaviour looks at logits. All content is made equal (ones leave every qk-norm), and
what is left of a logit is the two moments: it must depend on their difference in seconds alone, whoever asks whom.
"""

from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_lab.attention.projections import QKNorm
from nava_lab.blocks import cross_bridge, shared_query, sublayers
from nava_lab.blocks.base import Given
from nava_lab.blocks.cross_bridge import Cross
from nava_lab.blocks.shared_query import SharedQuery
from nava_lab.blocks.tower import Tower
from nava_lab.conditioning.text import text_stream
from nava_lab.layers.rotary import Clock, TimeClock, rotate
from nava_lab.models.variant import Size
from nava_lab.streams import TEXT, Stream, time_positions
from tests.conftest import lively
from tests.laws.cases import Clips
from tests.laws.subjects import SUBJECTS, Of, every_subject

LENGTHS = {"video": 5, "audio": 7, TEXT: 3}  # of any row the length tells who lies in it
STEPS = {"video": 0.1, "audio": 0.05}  # with every moment of the video among the audio's, or one step off its ends


def equal_moments():
    """Two streams of different rates with many equal differences of time, within each and between them."""
    first = {"video": 0.0, "audio": 0.05}
    made = {}
    for name, step in STEPS.items():
        positions = torch.zeros(1, LENGTHS[name], 3, dtype=torch.float64)
        positions[..., 0] = first[name] + step * torch.arange(LENGTHS[name])
        channels = {"video": 6, "audio": 4}[name]
        made[name] = Stream(
            torch.randn(1, LENGTHS[name], channels, generator=torch.Generator().manual_seed(1)).double(), positions
        )
    levels = dict.fromkeys(made, torch.tensor([0.5], dtype=torch.float64))
    return Clips(made, levels, text_stream(torch.tensor([[2, 3, 4]])))


def members(order, length):
    """Which modalities, in which order, a row of this length holds."""
    for count in range(2 ** len(order)):
        chosen = [name for place, name in enumerate(order) if count >> place & 1]
        if sum(LENGTHS[name] for name in chosen) == length:
            return chosen
    raise AssertionError(f"a row of {length} tokens holds no whole modalities")


def places(row):
    """Where each modality lies in a row."""
    lengths = [LENGTHS[name] for name in row]
    return dict(zip(row, torch.arange(sum(lengths)).split(lengths), strict=True))


def asked(model, case):
    """Of every attention in a forward pass over equal content: for each pair of generated modalities, logits by difference.

    Returns a list, one entry per call, of ``{(reader, read): (differences q k, logits h q k)}``.
    """
    right, calls = Given.attend, []

    def recorded(self, query, key, value, visible):
        order = [name for name in self.streams if name in LENGTHS]
        rows = [members(order, part.shape[1]) for part in (query, key)]
        heads = key.repeat_interleave(query.shape[2] // key.shape[2], 2)
        logits = torch.einsum("qhe,khe->hqk", query[0].double(), heads[0].double())
        found = {}
        parts = [places(row) for row in rows]
        for reader, down in parts[0].items():
            for read, across in parts[1].items():
                if TEXT not in (reader, read):
                    seconds = [self.streams[name].positions[0, :, 0] for name in (reader, read)]
                    found[reader, read] = (seconds[0][:, None] - seconds[1], logits[:, down][:, :, across])
        if found:
            calls.append(found)
        return right(self, query, key, value, visible)

    with mock.patch.object(QKNorm, "forward", lambda self, x: torch.ones_like(x)), mock.patch.object(Given, "attend", recorded):
        case(model)
    return calls


def says_it_tells_no_time(model):
    """Whether an exchange of the model declares that it has no positions."""
    return any(getattr(part, "rotary", True) is False for part in model.modules())


def moments_alone_decide(model, case):
    """Law 11, of behaviour: between equal contents a logit is one even function of the seconds between them, peaked at 0.

    One for all pairs of modalities within a call. Exchanges that say that they carry no time (``rotary=False``) are let be.
    """
    blind = says_it_tells_no_time(model)
    calls = asked(model, case)
    assert calls
    for pairs in calls:
        known: dict = {}
        for (reader, read), (differences, logits) in pairs.items():
            if blind and reader != read:
                continue
            for difference, column in zip(differences.flatten().tolist(), logits.flatten(1).unbind(1), strict=True):
                same = known.setdefault(round(abs(difference), 6), column)
                torch.testing.assert_close(column, same, atol=1e-5, rtol=0, msg=f"{reader} asks {read} over {difference:.2f} s")
        if known:
            others = torch.stack([column for difference, column in known.items() if difference])
            assert 0.0 in known
            assert (others < known[0.0] - 1e-3).all(), "the same moment does not stand out"


@cache
def in_seconds(subject):
    """The subject on the plain clock, so that one whose own clock counts tokens is asked about its blocks."""
    return lively(SUBJECTS[subject](clock=Clock()), Size(16, 24)).double()


@every_subject
def test_law_11_logits_between_equal_contents_tell_time_alone(subject):
    moments_alone_decide(in_seconds(subject), equal_moments())


def later(table, seconds=0.5):
    """Rotary tables as of a later moment."""
    at = torch.tensor([[[seconds, 0.0, 0.0]]], dtype=table[0].dtype)
    cos, sin = TimeClock().table(at, table[0].shape[-1])
    return table[0] * cos - table[1] * sin, table[1] * cos + table[0] * sin


def crossing(change):
    """A bug in how a dedicated cross-attention uses its tables: ``change(tables, queries)`` gives those that it turns by."""
    right = sublayers.CrossAttention.forward

    def wrong(self, x, source, given, visible, tables=None):
        return right(self, x, source, given, visible, None if tables is None else change(tables, x.shape[1]))

    return mock.patch.object(sublayers.CrossAttention, "forward", wrong)


def fusing(change):
    """The same in a bridge that shares the text's queries, which turns its queries, then its keys."""
    turned = []

    def wrong(x, table):
        turned.append(x.shape[1])
        is_key = len(turned) % 2 == 0
        return change(x, table, is_key, turned[-2] if is_key else x.shape[1])

    return mock.patch.object(shared_query, "rotate", wrong)


def in_rows(change):
    """A bug in self-attention over several modalities: audio's part of what is turned comes out otherwise."""

    def wrong(x, table):
        made = rotate(x, table)
        if x.shape[1] <= max(LENGTHS.values()):
            return made
        audio = places(members(list(LENGTHS), x.shape[1]))["audio"]
        return made.index_copy(1, audio, change(x, table)[:, audio])

    return mock.patch.object(sublayers, "rotate", wrong)


def _parts(kind):
    return lambda model: any(isinstance(part, kind) for part in model.modules())


def _mixes(model):
    """Whether one of its self-attentions has a row of several modalities."""
    return any(len(pairs) > 1 for pairs in asked(model, equal_moments()))


CROSSES, FUSES = _parts(cross_bridge.CrossBridge), _parts(shared_query._Fusion)
# What is planted in sublayers and bridges themselves, and which models have the part.
BROKEN = {
    "cross-attention without its tables": (CROSSES, lambda: crossing(lambda tables, queries: None)),
    "cross-attention of the video without its tables": (CROSSES, lambda: crossing(lambda tables, queries: None if queries == LENGTHS["video"] else tables)),
    "cross-attention of the audio without its tables": (CROSSES, lambda: crossing(lambda tables, queries: None if queries == LENGTHS["audio"] else tables)),
    "cross-attention with late keys": (CROSSES, lambda: crossing(lambda tables, queries: (tables[0], later(tables[1])))),
    "cross-attention by the queries' clock": (CROSSES, lambda: crossing(lambda tables, queries: (tables[0], tuple(part[:, :1].expand_as(part) for part in tables[1])))),
    "shared queries unturned": (FUSES, lambda: fusing(lambda x, table, is_key, queries: x)),
    "shared queries of the video unturned": (FUSES, lambda: fusing(lambda x, table, is_key, queries: x if queries == LENGTHS["video"] else rotate(x, table))),
    "shared queries with late keys": (FUSES, lambda: fusing(lambda x, table, is_key, queries: rotate(x, later(table) if is_key else table))),
    "audio late within the row": (_mixes, lambda: in_rows(lambda x, table: rotate(x, later(table)))),
    "audio unturned within the row": (_mixes, lambda: in_rows(lambda x, table: x)),
    "self-attention unturned": (lambda model: True, lambda: mock.patch.object(sublayers, "rotate", lambda x, table: x)),
}  # fmt: skip


@every_subject
def test_a_broken_clock_in_any_sublayer_is_noticed(subject):
    model, case = in_seconds(subject), equal_moments()
    missed = []
    for bug, (has, plant) in BROKEN.items():
        if has(model):
            with plant():
                try:
                    moments_alone_decide(model, case)
                except AssertionError:
                    continue
            missed.append(bug)
    assert not missed


def test_every_such_bug_has_a_subject():
    models = [in_seconds(subject) for subject in SUBJECTS]
    assert not [bug for bug, (has, _) in BROKEN.items() if not any(map(has, models))]


@pytest.mark.parametrize("bridge", [Cross, SharedQuery])
def test_an_exchange_without_time_is_let_be_where_it_says_so(bridge):
    model = lively(Of(depth=1, block=Tower(bridge=bridge(rotary=False))), Size(16, 24)).double()
    moments_alone_decide(model, equal_moments())
    with mock.patch(f"{__name__}.says_it_tells_no_time", return_value=False), pytest.raises(AssertionError):
        moments_alone_decide(model, equal_moments())


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
