"""What flows through the house: token streams on one clock.

Shape letters: b batch, n tokens of a stream, c channels of a token, d model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

TEXT = "text"  # the one modality that is read but never generated


def onto(values: Tensor, device: torch.device | str) -> Tensor:
    """Values of the host on a device, without waiting for what that has still to do; values of a device stay on it.

    The way back is not this one: the host would read what is not there yet. A GPU's driver does wait when it has to fetch from
    memory that may be paged out.
    """
    if values.device.type != "cpu":
        return values.to(device)
    return (values.pin_memory() if torch.device(device).type == "cuda" else values).to(device, non_blocking=True)


@dataclass(frozen=True)
class Packing:
    """Which sample each token of a packed row belongs to; the samples follow one another.

    Attributes:
        ids: ``1 n``, the sample of each token.
        lengths: tokens of each sample; 0 for a sample that has none of this modality. Known to the host, so that attention
            can work sample by sample without asking the device.
    """

    ids: Int[Tensor, "1 n"]
    lengths: tuple[int, ...]

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Packing:
        counts = torch.tensor(lengths, device=device)
        ids = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=sum(lengths))
        return Packing(ids.unsqueeze(0), tuple(lengths))

    def places(self) -> Int[Tensor, "1 n"]:
        """Each token's place within its own sample."""
        starts = torch.tensor([0, *self.lengths[:-1]], device=self.ids.device).cumsum(0)
        return torch.arange(self.ids.shape[1], device=self.ids.device) - starts[self.ids]


@dataclass(frozen=True)
class References:
    """Reference timbres: the i-th is how the i-th marked span of a sample's caption is to sound.

    Attributes:
        features: ``b k f``, one embedding each.
        valid: ``b k``, False for a reference that a sample lacks or is not shown.
    """

    features: Float[Tensor, "b k f"]
    valid: Bool[Tensor, "b k"]

    def rows(self, select: Tensor | slice) -> References:
        """Those of some samples of the batch."""
        return References(self.features[select], self.valid[select])

    def to(self, device: torch.device | str) -> References:
        return References(onto(self.features, device), onto(self.valid, device))

    def hidden(self, samples: Bool[Tensor, " b"]) -> References:
        """The same, of which the chosen samples are shown none."""
        return References(self.features, self.valid & ~samples.unsqueeze(-1))


@dataclass(frozen=True)
class Stream:
    """The tokens of one modality.

    Attributes:
        tokens: ``b n c`` values, or ``b n`` integer ids (text before its encoder).
        positions: ``b n 3`` or ``1 n 3``: seconds at the token's centre, then row and column in patches.
        valid: ``b n``, False for padding and for a modality that a sample lacks; None where every token is real.
        packing: where the real tokens of several samples are packed into one row (b is 1), whose each one is.
        span: ``b n``, label of the speech span that a token lies in, or, of a text token, that it marks; -1 for none.
        references: what the marks of a text stream refer to; None where nothing is referred to.
        empty: of text as a frozen encoder's features, what that encoder makes of no caption, as a batch of one: it stands
            where a caption is dropped. None for word ids, which have a word for it.
    """

    tokens: Shaped[Tensor, "b n *c"]
    positions: Float[Tensor, "_ n 3"]
    valid: Bool[Tensor, "b n"] | None = None
    packing: Packing | None = None
    span: Int[Tensor, "b n"] | None = None
    references: References | None = None
    empty: Stream | None = None

    def __len__(self) -> int:
        return self.tokens.shape[1]

    def with_tokens(self, tokens: Tensor) -> Stream:
        """The same places with other values."""
        return replace(self, tokens=tokens)

    def real_tokens(self) -> Tensor:
        """Values with whatever stands in padding replaced by zeros, so that not even NaN gets in."""
        return self.tokens if self.valid is None else self.tokens.masked_fill(~self.valid.unsqueeze(-1), 0.0)

    def emptied(self) -> Stream:
        """The same with zeros for values in padding and finite places there: nothing that stands in it, NaN included, gets in."""
        if self.valid is None:
            return self
        tokens = self.real_tokens() if self.tokens.is_floating_point() else self.tokens
        real = self.valid if self.positions.shape[0] > 1 else self.valid.any(0, keepdim=True)
        return replace(self, tokens=tokens, positions=finite_in_padding(self.positions, real.unsqueeze(-1)))

    def rows(self, select: Tensor | slice) -> Stream:
        """Some samples of the batch."""
        positions = self.positions if self.positions.shape[0] == 1 else self.positions[select]
        valid, span = (None if part is None else part[select] for part in (self.valid, self.span))
        references = None if self.references is None else self.references.rows(select)
        return Stream(self.tokens[select], positions, valid, None, span, references, self.empty)

    def to(self, device: torch.device | str) -> Stream:
        valid, span = (None if part is None else onto(part, device) for part in (self.valid, self.span))
        packing = None if self.packing is None else Packing(onto(self.packing.ids, device), self.packing.lengths)
        references = None if self.references is None else self.references.to(device)
        empty = None if self.empty is None else self.empty.to(device)
        return Stream(onto(self.tokens, device), onto(self.positions, device), valid, packing, span, references, empty)

    def packed(self) -> Stream:
        """The real tokens of all samples, one sample after the other, in a batch of one row. Asks the device for lengths.

        References stay as they are, a row per sample.
        """
        batch, length = self.tokens.shape[:2]
        lengths = [length] * batch if self.valid is None else self.valid.sum(1).tolist()
        span = None if self.span is None else self.in_one_row(self.span)
        positions = self.in_one_row(self.positions.expand(batch, -1, -1))
        packing = Packing.of(lengths, self.tokens.device)
        return Stream(self.in_one_row(self.tokens), positions, None, packing, span, self.references)

    def in_one_row(self, values: Shaped[Tensor, "b n *c"]) -> Shaped[Tensor, "1 m *c"]:
        """Of something that each token has, what the real tokens have."""
        return (values.flatten(0, 1) if self.valid is None else values[self.valid]).unsqueeze(0)

    def unpacked(self, values: Float[Tensor, "1 m c"]) -> Float[Tensor, "b n c"]:
        """Values of ``self.packed()``'s tokens back in this stream's places, with zeros in padding."""
        batch, length = self.tokens.shape[:2]
        if self.valid is None:
            return values.reshape(batch, length, -1)
        return values.new_zeros(batch, length, values.shape[-1]).masked_scatter(self.valid.unsqueeze(-1), values)


def finite_in_padding(values: Tensor, real: Bool[Tensor, "..."]) -> Tensor:
    """``values`` with 0 for what is not finite where nothing is real."""
    return torch.where(real | values.isfinite(), values, 0.0)


def joined(streams: Sequence[Stream]) -> Stream:
    """Padded streams of the same places, their samples one after another."""
    first = streams[0]
    if any(stream.packing is not None for stream in streams):
        raise ValueError("packed streams cannot be joined; join them padded and pack the result")
    same = first.positions.shape[0] == 1 and all(stream.positions.shape[0] == 1 for stream in streams)
    positions = first.positions
    if not same:
        positions = torch.cat([stream.positions.expand(len(stream.tokens), -1, -1) for stream in streams])
    valid = None
    if any(stream.valid is not None for stream in streams):
        full = [stream.tokens.new_ones(stream.tokens.shape[:2], dtype=torch.bool) for stream in streams]
        valid = torch.cat([one if stream.valid is None else stream.valid for stream, one in zip(streams, full, strict=True)])
    span = None
    if any(stream.span is not None for stream in streams):  # who labels nothing lies in no span
        none = [torch.full(stream.tokens.shape[:2], -1, device=stream.tokens.device) for stream in streams]
        span = torch.cat([one if stream.span is None else stream.span for stream, one in zip(streams, none, strict=True)])
    references = [stream.references for stream in streams if stream.references is not None]
    if references and len(references) < len(streams):
        raise ValueError("streams with and without references cannot be joined; hide those that are not to be seen")
    together = None
    if references:
        together = References(torch.cat([one.features for one in references]), torch.cat([one.valid for one in references]))
    return Stream(torch.cat([stream.tokens for stream in streams]), positions, valid, None, span, together)


@dataclass(frozen=True)
class ModalitySpec:
    """What a model must know of a generated modality before it sees data.

    Attributes:
        channels: values per token.
        tokens: tokens of a full-length clip (for costs; a batch may hold fewer).
        seconds: time between neighbouring tokens in time.
        grid: rows and columns of tokens per time step; (1, 1) for audio.
        stride: frames of a causal codec in a token after the first, which holds one; 1 where time steps are even.
        context: further values of a token that are read and not generated, after the channels (an image-to-video model's
            clean frame and mask).
    """

    channels: int
    tokens: int
    seconds: float
    grid: tuple[int, int] = (1, 1)
    stride: int = 1
    context: int = 0


@dataclass(frozen=True)
class TextSpec:
    """Text as a model meets it.

    Attributes:
        length: words of the longest caption.
        vocabulary: words of the tokenizer whose ids are read; 0 where a frozen encoder's features are.
        features: channels of those.
        references: most reference timbres of a sample.
        timbre: channels of a reference; 0 where there are none.
        timbre_place: where references enter: "context" overwrites the words that mark their spans, "added" adds to them, "global"
            adds a sample's mean reference to every generated token.
    """

    length: int
    vocabulary: int = 0
    features: int = 0
    references: int = 0
    timbre: int = 0
    timbre_place: str = "context"

    @property
    def says(self) -> bool:
        """Whether captions can differ: the first two words of every vocabulary are padding and silence."""
        return bool(self.features) or self.vocabulary > 2


@dataclass(frozen=True)
class Interface:
    """What a model reads and writes: the generated modalities and the text."""

    modalities: Mapping[str, ModalitySpec]
    text: TextSpec


@dataclass(frozen=True)
class Batch:
    """Clean clips as tokens.

    Attributes:
        streams: one per generated modality.
        text: captions as a stream of ids or features.
        index: ``b``, each clip's number within its split: the key of everything drawn for it. Training keeps it on the host.
        extra: what a world knows besides (events, say); never shown to a model.
    """

    streams: Mapping[str, Stream]
    text: Stream
    index: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, select: Tensor | slice) -> Batch:
        """Some of the clips."""
        return Batch(
            {name: stream.rows(select) for name, stream in self.streams.items()},
            self.text.rows(select),
            self.index[select],
            {name: value[select] for name, value in self.extra.items()},
        )

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            {name: stream.to(device) for name, stream in self.streams.items()},
            self.text.to(device),
            self.index.to(device),
            {name: value.to(device) for name, value in self.extra.items()},
        )


def time_positions(
    tokens: int, seconds: float, grid: tuple[int, int] = (1, 1), device: torch.device | str = "cpu"
) -> Float[Tensor, "1 n 3"]:
    """Positions of a regular stream: the token of time step i is centred at ``(i + 1/2) * seconds``."""
    steps = tokens // (grid[0] * grid[1])
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) * seconds
    t, y, x = torch.meshgrid(t, torch.arange(grid[0]).double(), torch.arange(grid[1]).double(), indexing="ij")
    return onto(torch.stack((t, y, x), -1).reshape(1, tokens, 3).float(), device)
