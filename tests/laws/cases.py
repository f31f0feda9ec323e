"""What the attention laws are tried on: rows of tokens with masks, and ragged batches for whole models."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace

import torch
from hypothesis import settings
from hypothesis import strategies as st

from nava_lab.attention import Causal, Cut, Everything, Mask, Padding, Segments, Spans, Tokens, Visible, Window, WithoutText
from nava_lab.attention.visible import Ruled
from nava_lab.conditioning.text import text_stream
from nava_lab.streams import Stream, time_positions
from tests.conftest import INTERFACE

NAMES = ("video", "audio", "timbre", "text")
DEVICE = os.environ.get(
    "NAVA_DEVICE", "cpu"
)  # where the laws of backends have attention computed: NAVA_DEVICE=cuda ./nava test ...
seeds = st.integers(0, 2**31)
# Laws of whole models cost more than laws of tables; both grow with the profile (NAVA_PROFILE=long).
fewer = settings(max_examples=max(3, settings().max_examples // 5))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Scene:
    """Tokens of a ragged batch, and a mask between a row of queries and a row of keys."""

    streams: dict[str, Stream]
    mask: Mask
    queries: tuple[str, ...] = NAMES
    keys: tuple[str, ...] = NAMES
    heads: tuple[int, int] = (2, 2)
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def batch(self) -> int:
        return next(iter(self.streams.values())).tokens.shape[0]

    def tokens(self, order, streams=None) -> Tokens:
        return Tokens.of(streams or self.streams, order, NAMES)

    def visible(self, streams=None, mask=None) -> Visible | None:
        return Visible.of(mask or self.mask, self.tokens(self.queries, streams), self.tokens(self.keys, streams))

    def values(self, queries: int, keys: int, batch: int | None = None, gradients: bool = True):
        """Random q, k, v."""
        made, batch = [], batch or self.batch
        for count, heads in ((queries, self.heads[0]), (keys, self.heads[1]), (keys, self.heads[1])):
            made.append(torch.randn(batch, count, heads, 8, generator=generator(self.seed + len(made)), dtype=self.dtype))
        return [part.requires_grad_() for part in made] if gradients else made


@st.composite
def streams(draw, batch=None, longest=6):
    """Ragged streams: lengths, rates, starts and validity of their own; a modality may be missing in some samples."""
    batch = batch or draw(st.integers(1, 3))
    chance = generator(draw(seeds))
    made = {}
    for name in NAMES:
        length = draw(st.integers(1, longest))
        seconds = draw(st.sampled_from([0.04, 0.05, 0.08, 0.1, 1 / 3]))
        real = torch.randint(0 if draw(st.booleans()) else 1, length + 1, (batch, 1), generator=chance)
        valid = draw(st.sampled_from([None, torch.arange(length) < real]))
        span = torch.randint(-1, 2, (batch, length), generator=chance)
        positions = time_positions(length, seconds) + (-3.0 if name == "text" else draw(st.sampled_from([0.0, 0.013])))
        made[name] = Stream(torch.zeros(batch, length, 1), positions, valid, None, span)
    return made


@st.composite
def masks(draw, batch):
    """Padding, with any of the other rules."""
    samples = torch.rand(batch, generator=generator(draw(seeds))) < 0.5
    leaves = [
        Window(draw(st.floats(0, 0.4))),
        Cut(samples),
        Cut(samples, ("audio",)),
        Cut(None, ("video",)),
        Causal(),
        WithoutText(),
        Spans(),
        Everything(),
        ~Causal() | Cut(),
    ]
    chosen = draw(st.lists(st.sampled_from(leaves), max_size=2))
    mask = Padding() & Segments()
    for leaf in chosen:
        mask = mask & leaf
    return mask


@st.composite
def scenes(draw, mask=None, dtypes=(torch.float32,), **options):
    made = draw(streams(**options))
    batch = made["video"].tokens.shape[0]
    rows = st.sampled_from([NAMES, ("video", "audio"), ("audio",), ("video", "audio", "text")])
    return Scene(
        made,
        mask or draw(masks(batch)),
        draw(rows),
        draw(rows),
        draw(st.sampled_from([(2, 2), (4, 2), (2, 1)])),
        draw(st.sampled_from(dtypes)),
        draw(st.integers(0, 999)),
    )


def there(mask: Mask) -> Mask:
    """The same rule with whatever tensors it holds on ``DEVICE``."""
    moved = {}
    for part in fields(mask):
        value = getattr(mask, part.name)
        moved[part.name] = there(value) if isinstance(value, Mask) else value.to(DEVICE) if torch.is_tensor(value) else value
    return type(mask)(**moved)


def on_device(function):
    """Attention computed on ``DEVICE`` of what lies here, forward and backward: laws speak of the CPU's tensors alone."""

    def moved(query, key, value, visible=None):
        if isinstance(visible, Ruled):
            rows = [tokens._each(lambda fact: fact.to(DEVICE)) for tokens in (visible.queries, visible.keys)]
            visible = Ruled(there(visible.mask), *rows, visible.clean)
        elif isinstance(visible, Visible):
            visible = Visible(None if visible.table is None else visible.table.to(DEVICE), visible.shape, visible.clean)
        elif visible is not None:
            visible = visible.to(DEVICE)
        return function(*(part.to(DEVICE) for part in (query, key, value)), visible).to(query.device)

    return moved


@dataclass(frozen=True)
class Clips:
    """A ragged batch for a whole model, in float64."""

    streams: dict[str, Stream]
    levels: dict[str, torch.Tensor]
    text: Stream
    cut: torch.Tensor | None = None
    options: dict = field(default_factory=dict)  # of the denoiser

    def __call__(self, model) -> dict[str, torch.Tensor]:
        return model(self.streams, self.levels, self.text, self.cut)

    @property
    def batch(self) -> int:
        return self.text.tokens.shape[0]

    def with_streams(self, change) -> Clips:
        return replace(self, streams={name: change(name, stream) for name, stream in self.streams.items()})

    def row(self, number: int) -> Clips:
        select = slice(number, number + 1)
        return Clips(
            {name: stream.rows(select) for name, stream in self.streams.items()},
            {name: level[select] for name, level in self.levels.items()},
            self.text.rows(select),
            None if self.cut is None else self.cut[select],
            self.options,
        )

    def packed(self) -> Clips:
        whole = self.with_streams(lambda name, stream: stream.packed())
        return replace(whole, text=self.text.packed())


@st.composite
def clips(draw, least=1, cut=None, batch=None, full=False, windows=(float("inf"), 0.06, 0.3), absent=False, rules=(None,)):
    """Clips of different durations, captions of different lengths; modalities and captions may be missing in some samples.

    ``least`` real tokens in every modality, and everywhere where ``full``; where ``absent``, a modality may be missing altogether. ``rules``: further masks of the denoiser, one of which it has.
    """
    batch = batch or draw(st.integers(1, 3))
    chance = generator(draw(seeds))
    made = {}
    for name, spec in INTERFACE.modalities.items():
        length = draw(st.integers(max(1, least), spec.tokens))
        real = torch.randint(least, length + 1, (batch, 1), generator=chance)
        values = torch.randn(batch, length, spec.channels, generator=chance, dtype=torch.float64)
        rate = draw(st.sampled_from([spec.seconds, 0.04, 0.1]))
        positions = time_positions(length, rate).double()
        if draw(st.booleans()):  # every sample begins at a moment of its own
            start = torch.rand(batch, 1, 1, generator=chance, dtype=torch.float64)
            positions = positions + start * torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        made[name] = Stream(values, positions, None if full else torch.arange(length) < real)
    if absent:
        made.pop(draw(st.sampled_from([*made, "none"])), None)
    levels = {name: torch.rand(batch, generator=chance, dtype=torch.float64) for name in made}
    if draw(st.booleans()):
        levels = dict.fromkeys(made, next(iter(levels.values())))
    ids = torch.randint(2, 9, (batch, INTERFACE.text.length), generator=chance)
    words = torch.randint(0 if not full else 1, INTERFACE.text.length + 1, (batch, 1), generator=chance)
    text = text_stream(ids.masked_fill(torch.arange(INTERFACE.text.length) >= words, 0))
    samples = torch.rand(batch, generator=chance) < 0.5 if draw(st.booleans()) else None
    rule = draw(st.sampled_from(rules))
    options = {} if rule is None else {"mask": rule}
    options |= {"window_s": draw(st.sampled_from(windows)), "cut_off": draw(st.sampled_from(["all", "audio"]))}
    return Clips(made, levels, text, samples if cut is None else cut, options)
