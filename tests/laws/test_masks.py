"""The mask algebra against rules written out pair by pair in plain Python (laws 6, 12, 13)."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from nava_lab.attention import Causal, Cut, Everything, Padding, Spans, Window, WithoutText
from nava_lab.attention.masks import EDGE, Mask
from nava_lab.attention.tokens import Tokens
from nava_lab.streams import Stream, time_positions
from tests.laws.cases import Scene, scenes, seeds, streams


def facts(scene, order):
    """Every token of every sample as plain values."""
    rows = []
    for sample in range(scene.batch):
        row = []
        for name in order:
            stream = scene.streams[name]
            for place in range(len(stream)):
                seconds = float(stream.positions[0, place, 0])
                real = stream.valid is None or bool(stream.valid[sample, place])
                row.append((name, seconds, real, int(stream.span[sample, place])))
        rows.append(row)
    return rows


def text_or_same(q, k):
    return k[0] == "text" or q[0] == k[0]


SAMPLES = torch.tensor([True, False, True])
F32 = torch.tensor(0.1).item()
# A rule in plain Python beside the mask: (sample, query, key) -> may it see?
RULES = {
    "everything": (Everything(), lambda s, q, k: True),
    "padding": (Padding(), lambda s, q, k: k[2]),
    "causal": (Causal(), lambda s, q, k: k[1] <= q[1]),
    "cut": (Cut(SAMPLES), lambda s, q, k: text_or_same(q, k) or not SAMPLES[s]),
    "cut all": (Cut(), lambda s, q, k: text_or_same(q, k)),
    "cut one way": (
        Cut(SAMPLES, ("audio",)),
        lambda s, q, k: text_or_same(q, k) or not SAMPLES[s] or q[0] in ("video", "timbre"),
    ),
    "window": (Window(0.1), lambda s, q, k: "text" in (q[0], k[0]) or q[0] == k[0] or abs(q[1] - k[1]) <= F32 + EDGE),
    "without text": (WithoutText(), lambda s, q, k: k[0] != "text" or q[0] == "text"),
    "spans": (Spans("timbre"), lambda s, q, k: k[0] != "timbre" or k[3] < 0 or q[3] == k[3]),
    "marks": (Spans(), lambda s, q, k: k[0] != "text" or k[3] < 0 or q[3] == k[3]),
}


def says_what_the_rule_says(scene, mask, rule):
    """The table of a mask is its rule, pair by pair, at every length and batch."""
    table = mask.dense(scene.tokens(scene.queries), scene.tokens(scene.keys))
    for sample, (queries, keys) in enumerate(zip(facts(scene, scene.queries), facts(scene, scene.keys), strict=True)):
        expected = torch.tensor([[bool(rule(sample, q, k)) for k in keys] for q in queries])
        found = torch.ones_like(expected) if table is None else table[sample if table.shape[0] > 1 else 0]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", RULES)
@given(st.data())
def test_a_mask_is_its_rule(name, data):
    mask, rule = RULES[name]
    scene = data.draw(scenes(mask, batch=3))
    says_what_the_rule_says(scene, mask, rule)


class Mutant(Mask):
    def __init__(self, inner, change):
        self.inner, self.change = inner, change

    def dense(self, queries, keys):
        table = self.inner.dense(queries, keys)
        shape = (1, len(queries), len(keys))
        return self.change(torch.ones(shape, dtype=torch.bool) if table is None else table)


MUTANTS = {
    "dropped": torch.ones_like,
    "inverted": lambda table: ~table,
    "transposed": lambda table: table.mT,
    "off by one": lambda table: table.roll(1, -1),
    "of the next sample": lambda table: table.roll(1, 0),
}


# A symmetric rule transposed, or one that treats all samples alike, is itself.
ITSELF = {("window", "transposed"), *((rule, "of the next sample") for rule in ("causal", "cut all", "window", "without text"))}


def big(seed=0):
    """A scene in which every mutant of every rule differs from the rule."""
    from nava_lab.streams import Stream, time_positions

    chance = torch.Generator().manual_seed(seed)
    made = {}
    for name, length, seconds in (("video", 5, 0.08), ("audio", 7, 0.05), ("timbre", 3, 0.1), ("text", 3, 1.0)):
        valid = torch.rand(3, length, generator=chance) < 0.6
        span = torch.randint(-1, 2, (3, length), generator=chance)
        made[name] = Stream(torch.zeros(3, length, 1), time_positions(length, seconds), valid, None, span)
    return Scene(made, Everything())


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("name", [name for name in RULES if name != "everything"])
def test_a_mutant_of_every_rule_is_caught(name, mutant):
    mask, rule = RULES[name]
    scene = big()
    says_what_the_rule_says(scene, mask, rule)
    wrong = Mutant(mask, MUTANTS[mutant])
    if (name, mutant) in ITSELF:
        says_what_the_rule_says(scene, wrong, rule)
        return
    with pytest.raises(AssertionError):
        says_what_the_rule_says(scene, wrong, rule)


@given(scenes(batch=2), seeds)
def test_boolean_algebra(scene, seed):
    a, b = scene.mask, Window(0.1)

    def dense(mask):
        table = mask.dense(scene.tokens(scene.queries), scene.tokens(scene.keys))
        shape = (2, *(len(scene.tokens(order)) for order in (scene.queries, scene.keys)))
        return torch.ones(shape, dtype=torch.bool) if table is None else table.expand(shape)

    assert torch.equal(dense(a & b), dense(a) & dense(b))
    assert torch.equal(dense(a | b), dense(a) | dense(b))
    assert torch.equal(dense(~(a & b)), dense(~a | ~b))
    assert torch.equal(dense(~~a), dense(a))
    assert torch.equal(dense(a & Everything()), dense(a))
    assert (a | Everything()).dense(scene.tokens(scene.queries), scene.tokens(scene.keys)) is None
    assert not dense(~Everything()).any()


def windows_hold(window, made, small, large):
    """Law 12: symmetric, growing with its width, everything when infinite, and nobody blind where rates overlap."""

    def dense(seconds, queries, keys):
        from nava_lab.attention import Tokens

        names = tuple(made)
        return window(seconds).dense(Tokens.of(made, (queries,), names), Tokens.of(made, (keys,), names))

    forth, back = dense(small, "audio", "video"), dense(small, "video", "audio")
    assert torch.equal(forth, back.mT)
    assert not (forth & ~dense(large, "audio", "video")).any()
    assert dense(float("inf"), "audio", "video") is None
    audio, video = (made[name].positions[0, :, 0] for name in ("audio", "video"))
    spacing = max(float(part.diff().max()) if len(part) > 1 else 0.0 for part in (audio, video))
    inside = (audio >= video.min()) & (audio <= video.max())
    assert dense(spacing / 2 + 1e-6, "audio", "video")[0][inside].any(-1).all()


@given(streams(longest=9), st.floats(0, 0.5), st.floats(0, 0.5))
def test_windows_are_symmetric_and_grow(made, first, second):
    windows_hold(Window, made, *sorted((first, second)))


class OneSided(Window):
    """A mutant: only the past."""

    def allows(self, query, key):
        answer = super().allows(query, key)
        return (
            answer if isinstance(answer, bool) else answer & ((key.seconds <= query.seconds) | (key.modality == query.modality))
        )


class InSteps(Window):
    """A mutant: places in the row instead of seconds."""

    def dense(self, queries, keys):
        if self.seconds == float("inf"):
            return None
        return ((torch.arange(len(queries))[:, None] - torch.arange(len(keys))).abs() <= 1).unsqueeze(0)


class Shrinking(Window):
    """A mutant: the comparison the wrong way round."""

    def allows(self, query, key):
        return (query.seconds - key.seconds).abs() > self.seconds if self.seconds != float("inf") else True


@pytest.mark.parametrize("mutant", [OneSided, InSteps, Shrinking])
def test_a_wrong_window_is_caught(mutant):
    made = big().streams
    windows_hold(Window, made, 0.06, 0.2)
    with pytest.raises(AssertionError):
        windows_hold(mutant, made, 0.06, 0.2)


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match="negative"):
        Window(-1.0)


@given(scenes(batch=2))
def test_a_table_is_only_made_where_something_is_hidden(scene):
    assume(all(stream.valid is None for stream in scene.streams.values()))
    assert scene.visible(mask=Padding() & Window(float("inf"))) is None


@pytest.mark.parametrize(("video_s", "audio_s", "window"), [(0.12, 0.04, 0.2), (0.08, 0.04, 0.1), (0.08, 0.04, 0.3)])
def test_law_12_pairs_at_the_edge_of_a_window_are_seen_wherever_the_clip_begins(video_s, audio_s, window):
    """In float32, where hundreds of pairs lie exactly at the edge: a joint shift changes none, and none is left to rounding."""
    rows = [round(300 * video_s / rate) for rate in (video_s, audio_s)]
    places = [time_positions(count, rate) for count, rate in zip(rows, (video_s, audio_s), strict=True)]

    def table(shift):
        streams = {
            name: Stream(torch.zeros(1, place.shape[1], 1), place + torch.tensor([shift, 0.0, 0.0]))
            for name, place in zip(("video", "audio"), places, strict=True)
        }
        names = tuple(streams)
        return Window(window).dense(*(Tokens.of(streams, (name,), names) for name in names))[0]

    lags = [(torch.arange(count).double() + 0.5) * rate for count, rate in zip(rows, (video_s, audio_s), strict=True)]
    exact = (lags[0][:, None] - lags[1][None, :]).abs()
    assert ((exact - window).abs() < 1e-9).sum() > 500
    for shift in (0.0, 3.7, 11.3):
        assert table(shift).equal(exact <= window + 1e-9)
