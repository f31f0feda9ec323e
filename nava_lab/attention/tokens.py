"""What a mask may know of tokens: whose they are, when, in which sample, real or padding, and in which labelled span.

Shape letters: b batch, n tokens of a row (of one or several modalities, one after the other).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nava_lab.streams import Stream

NO_SPAN = -1  # the span label of tokens that lie in none


@dataclass(frozen=True)
class Tokens:
    """Facts of tokens, elementwise: a rule reads the facts of queries and of keys, and broadcasting pairs them.

    A row of tokens has facts of shape ``b n`` (or ``1 n`` where all samples agree). ``down`` and ``across`` lay two rows out
    against each other; ``at`` picks single tokens. A rule is the same code for all three.

    Attributes:
        seconds: the tokens' centres.
        modality: an index into ``names``.
        sample: which sample of the batch a token belongs to.
        valid: False for padding; None where all are real.
        span: label of the speech span that a token lies in, or of the reference it is; None where nothing is labelled.
        names: the modalities that ``modality`` counts through, the same tuple for queries and keys.
        order: the modalities that lie in the row: what a rule may know beforehand, without asking any token.
        lengths: for a packed row, of each of its modalities the number of tokens of each sample; None where every line of
            the batch is one sample.
    """

    seconds: Float[Tensor, "..."]
    modality: Int[Tensor, "..."]
    sample: Int[Tensor, "..."]
    valid: Bool[Tensor, "..."] | None
    span: Int[Tensor, "..."] | None
    names: tuple[str, ...]
    order: tuple[str, ...]
    lengths: tuple[tuple[int, ...], ...] | None = None

    @staticmethod
    def of(streams: Mapping[str, Stream], order: Sequence[str], names: tuple[str, ...]) -> Tokens:
        """The tokens of the streams in ``order``, one after the other."""
        parts = [streams[name] for name in order]
        device = parts[0].positions.device
        batch = max(part.tokens.shape[0] for part in parts)
        packed = {part.packing is not None for part in parts if len(part)}
        if len(packed) > 1:
            raise ValueError(f"{', '.join(order)}: either every stream of a row is packed or none is")
        lengths = None
        sample = torch.arange(batch, device=device).unsqueeze(-1).expand(-1, sum(map(len, parts)))
        if packed == {True}:
            lengths = tuple(part.packing.lengths if part.packing is not None else () for part in parts)
            sample = torch.cat([part.packing.ids for part in parts if part.packing is not None], 1)
        index = [torch.full((1, len(part)), names.index(name), device=device) for name, part in zip(order, parts, strict=True)]
        return Tokens(
            _row([part.positions[..., 0] for part in parts], batch),
            torch.cat(index, 1),
            sample,
            _optional(parts, [part.valid for part in parts], True),
            _optional(parts, [part.span for part in parts], NO_SPAN),
            names,
            tuple(order),
            lengths,
        )

    def __len__(self) -> int:
        return self.modality.shape[-1]

    @property
    def facts(self) -> tuple[Tensor | None, ...]:
        return (self.seconds, self.modality, self.sample, self.valid, self.span)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        seconds, modality, sample = (change(fact) for fact in (self.seconds, self.modality, self.sample))
        valid, span = (None if fact is None else change(fact) for fact in (self.valid, self.span))
        return Tokens(seconds, modality, sample, valid, span, self.names, self.order, self.lengths)

    def slice(self, start: int, stop: int) -> Tokens:
        """Some places of the row."""
        return self._each(lambda fact: fact[:, start:stop])

    def down(self) -> Tokens:
        """As the queries of a table: ``b n 1``."""
        return self._each(lambda fact: fact.unsqueeze(-1))

    def across(self) -> Tokens:
        """As the keys of a table: ``b 1 n``."""
        return self._each(lambda fact: fact.unsqueeze(-2))

    def flat(self) -> Tokens:
        """Ready for ``at``: facts on which all lines of the batch agree lose their batch axis."""
        return self._each(lambda fact: fact.squeeze(0) if fact.shape[0] == 1 else fact.contiguous())

    def at(self, line: Tensor, place: Tensor) -> Tokens:
        """Single tokens of flat facts, by batch line and place in the row."""
        return self._each(lambda fact: fact[place] if fact.ndim == 1 else fact[line, place])

    def pick(self, places: Int[Tensor, "s m"]) -> Tokens:
        """Of a packed row, the tokens of some samples, a line each; the lines are no longer packed."""
        return replace(self._each(lambda fact: fact[0][places]), lengths=None)

    def is_(self, name: str) -> Tensor | bool:
        """Where the tokens are of the modality ``name``; a plain answer for a row of nothing else, or of none."""
        if name not in self.order:
            return False
        return self.modality == self.names.index(name) if len(set(self.order)) > 1 else True

    def same_modality(self, other: Tokens) -> Tensor | bool:
        """Where two tokens are of one modality; a plain answer for rows that settle it."""
        if len({*self.order, *other.order}) == 1:
            return True
        return self.modality == other.modality if set(self.order) & set(other.order) else False


def _row(parts: Sequence[Tensor], batch: int) -> Tensor:
    if any(part.shape[0] > 1 for part in parts):
        parts = [part.expand(batch, -1) for part in parts]
    return torch.cat(list(parts), 1)


def _optional(streams: Sequence[Stream], facts: Sequence[Tensor | None], default: bool | int) -> Tensor | None:
    """A fact that some streams have and others leave at its default; None where none has it."""
    if all(fact is None for fact in facts):
        return None
    filled = []
    for stream, fact in zip(streams, facts, strict=True):
        shape = (stream.tokens.shape[0], len(stream))
        filled.append(fact if fact is not None else torch.full(shape, default, device=stream.positions.device))
    return torch.cat(filled, 1)
