"""A bug of each kind, planted where every block would meet it (what it is told of masks and positions): its law must notice."""

import contextlib
from dataclasses import replace
from unittest import mock

import pytest
import torch

from nava_lab.attention import Cut, Segments, Visible, Window
from nava_lab.attention.visible import Ruled
from nava_lab.blocks.base import Given
from nava_lab.layers.rotary import Clock
from nava_lab.models import denoiser
from nava_lab.streams import TEXT, Packing
from tests.laws.attention_laws import DEMANDS, LAWS
from tests.laws.subjects import every_subject, model_of, plain_case, reads_text


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
