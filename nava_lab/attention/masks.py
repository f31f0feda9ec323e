"""Masks as values: each says which query token may attend to which key token, and they combine with ``&``, ``|``, ``~``.

A mask is described by what tokens are (modality, time, validity), never by index arithmetic, so it follows every change
of length, rate and batch. True means attend.

Shape letters: b batch, q queries, k keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nava_lab.streams import TEXT, Stream


@dataclass(frozen=True)
class Tokens:
    """What a mask may know of a row of tokens.

    Attributes:
        seconds: ``1 n`` or ``b n``, the tokens' centres.
        modality: ``n``, an index into ``names``.
        names: the modalities that the index counts through; the same tuple for queries and keys.
        valid: ``b n``, or None where all are real.
    """

    seconds: Float[Tensor, "_ n"]
    modality: Int[Tensor, " n"]
    names: tuple[str, ...]
    valid: Bool[Tensor, "b n"] | None

    @staticmethod
    def of(streams: Mapping[str, Stream], order: Sequence[str], names: tuple[str, ...]) -> Tokens:
        """The tokens of the streams in ``order``, one after the other."""
        parts = [streams[name] for name in order]
        batch = max(part.tokens.shape[0] for part in parts)
        seconds = [part.positions[..., 0] for part in parts]
        if any(part.shape[0] > 1 for part in seconds):
            seconds = [part.expand(batch, -1) for part in seconds]
        valid = None
        if any(part.valid is not None for part in parts):
            valid = torch.cat(
                [
                    part.valid if part.valid is not None else part.positions.new_ones((batch, len(part)), dtype=torch.bool)
                    for part in parts
                ],
                1,
            )
        device = parts[0].positions.device
        index = [torch.full((len(part),), names.index(name), device=device) for name, part in zip(order, parts, strict=True)]
        return Tokens(torch.cat(seconds, 1), torch.cat(index), names, valid)


class Mask:
    """A rule between tokens. ``dense`` gives ``b q k`` (b may be 1), or None where it allows everything."""

    def dense(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "_ q k"] | None:
        raise TypeError(f"{type(self).__name__} does not say what it allows")

    def __and__(self, other: Mask) -> Mask:
        return _Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return _Either(self, other)

    def __invert__(self) -> Mask:
        return _Not(self)


@dataclass(frozen=True)
class Everything(Mask):
    """All pairs."""

    def dense(self, queries: Tokens, keys: Tokens) -> None:
        return None


@dataclass(frozen=True)
class Padding(Mask):
    """Only real tokens are seen."""

    def dense(self, queries: Tokens, keys: Tokens) -> Tensor | None:
        if keys.valid is None:
            return None
        return keys.valid.unsqueeze(1).expand(-1, len(queries.modality), -1)


@dataclass(frozen=True)
class Cut(Mask):
    """No attention between modalities in the chosen samples: each sees itself and the text, and text sees only text.

    Text must not look either: through it audio would reach video one layer later.

    Attributes:
        samples: ``b``, True where attention is cut; None cuts every sample.
    """

    samples: Bool[Tensor, " b"] | None = None

    def dense(self, queries: Tokens, keys: Tokens) -> Tensor | None:
        names = torch.tensor([name == TEXT for name in keys.names], device=keys.modality.device)
        apart = (queries.modality[:, None] == keys.modality[None, :]) | names[keys.modality][None, :]
        if self.samples is None:
            return apart.unsqueeze(0)
        return apart.unsqueeze(0) | ~self.samples[:, None, None]


@dataclass(frozen=True)
class Window(Mask):
    """Between generated modalities, only tokens whose centres lie within ``seconds`` of each other."""

    seconds: float

    def dense(self, queries: Tokens, keys: Tokens) -> Tensor | None:
        if self.seconds == float("inf"):
            return None
        near = (queries.seconds.unsqueeze(-1) - keys.seconds.unsqueeze(-2)).abs() <= self.seconds
        text = torch.tensor([name == TEXT for name in keys.names], device=keys.modality.device)
        free = queries.modality[:, None] == keys.modality[None, :]
        free = free | text[keys.modality][None, :] | text[queries.modality][:, None]
        return near | free.unsqueeze(0)


@dataclass(frozen=True)
class _Both(Mask):
    left: Mask
    right: Mask

    def dense(self, queries: Tokens, keys: Tokens) -> Tensor | None:
        left, right = self.left.dense(queries, keys), self.right.dense(queries, keys)
        if left is None or right is None:
            return right if left is None else left
        return left & right


@dataclass(frozen=True)
class _Either(Mask):
    left: Mask
    right: Mask

    def dense(self, queries: Tokens, keys: Tokens) -> Tensor | None:
        left, right = self.left.dense(queries, keys), self.right.dense(queries, keys)
        return None if left is None or right is None else left | right


@dataclass(frozen=True)
class _Not(Mask):
    inner: Mask

    def dense(self, queries: Tokens, keys: Tokens) -> Tensor:
        inner = self.inner.dense(queries, keys)
        if inner is None:
            shape = (1, len(queries.modality), len(keys.modality))
            return torch.zeros(shape, dtype=torch.bool, device=keys.modality.device)
        return ~inner
