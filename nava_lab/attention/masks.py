"""Masks as values: each says which query token may attend to which key token, and they combine with ``&``, ``|``, ``~``.

A mask has one rule, ``allows``, between the facts of a query and of a key (``Tokens``: modality, seconds, sample, validity,
span), never index arithmetic, so it follows every change of length, rate and batch. Tables and block masks evaluate that
same rule, so no two forms of a mask can disagree. True means attend. Where a rule knows beforehand that it allows
everything, it answers plain ``True``, and no table is made.

A mask that needs no settings may be registered; ``attention.mask=NAME`` then holds in every layer of whatever variant.

Shape letters: b batch, q queries, k keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from nava_lab.attention.tokens import Tokens
from nava_lab.registry import masks
from nava_lab.streams import TEXT

Answer = Tensor | bool
EDGE = 1e-4  # seconds: far above float32's rounding of a clip's positions, far below the distance of any two tokens


def either(*answers: Answer) -> Answer:
    """Whether any of the answers allows it; plain where one of them is known to."""
    found: Answer = False
    for answer in answers:
        if answer is True:
            return True
        if answer is not False:
            found = answer if found is False else found | answer
    return found


def no(answer: Answer) -> Answer:
    """The contrary."""
    return not answer if isinstance(answer, bool) else ~answer


class Mask:
    """A rule between tokens."""

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        """Whether the query may see the key; elementwise over facts that broadcast against each other."""
        raise TypeError(f"{type(self).__name__} does not say what it allows")

    def leaves(self) -> Iterator[Mask]:
        """The rules that this one is made of."""
        yield self

    def dense(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "_ q k"] | None:
        """The table of a row of queries against a row of keys (b may be 1), or None where it allows everything."""
        table = self.table(queries, keys)
        return None if table is None else table.expand(-1, len(queries), len(keys))

    def table(self, queries: Tokens, keys: Tokens) -> Bool[Tensor, "_ _ _"] | None:
        """``dense`` before it is spread out: axes along which the answer does not change have length 1."""
        answer = self.allows(queries.down(), keys.across())
        if isinstance(answer, bool):
            return None if answer else torch.zeros((1, 1, 1), dtype=torch.bool, device=keys.modality.device)
        return answer

    def __and__(self, other: Mask) -> Mask:
        return _Both(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        return _Either(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> Mask:
        return _Not(self)


@masks.register("none")
@dataclass(frozen=True)
class Everything(Mask):
    """All pairs."""

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        return True


@dataclass(frozen=True)
class Padding(Mask):
    """Only real tokens are seen."""

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        return True if key.valid is None else key.valid


@dataclass(frozen=True)
class Segments(Mask):
    """Only tokens of the same sample are seen: what keeps samples apart that are packed into one row."""

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        if query.lengths is None and key.lengths is None:  # every line of the batch is one sample
            return True
        return query.sample == key.sample


@masks.register("causal")
@dataclass(frozen=True)
class Causal(Mask):
    """No token sees a later one, in seconds; tokens of the same moment see each other."""

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        return key.seconds <= query.seconds


@dataclass(frozen=True, eq=False)  # tensors have no plain answer to ==
class Cut(Mask):
    """Modalities that are cut off see themselves and the text, and text sees only text.

    Text must not look either: through it audio would reach video one layer later.

    Attributes:
        samples: ``b`` (or one per sample of a packed row), True where attention is cut; None cuts every sample.
        readers: the modalities that are cut off from all others; None for all of them. ``("audio",)`` is one way: video
            still reads audio, and audio reads no video.
    """

    samples: Bool[Tensor, " b"] | None = None
    readers: tuple[str, ...] | None = None

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        apart = either(query.same_modality(key), key.is_(TEXT))
        if self.readers is not None:
            apart = either(apart, no(either(query.is_(TEXT), *map(query.is_, self.readers))))
        if isinstance(apart, bool) and apart:
            return True
        return apart if self.samples is None else either(apart, ~self.samples[query.sample])


@dataclass(frozen=True)
class Window(Mask):
    """Between generated modalities, only tokens whose centres lie within ``seconds`` of each other, give or take ``EDGE``.

    At ordinary rates many pairs lie exactly at the edge; without the allowance rounding would choose among them, and choose
    otherwise when all positions shift.
    """

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"a window of {self.seconds} seconds: it must not be negative")

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        free = either(self.seconds == float("inf"), query.same_modality(key), key.is_(TEXT), query.is_(TEXT))
        if isinstance(free, bool) and free:
            return True
        return either(free, (query.seconds - key.seconds).abs() <= self.seconds + EDGE)


@dataclass(frozen=True)
class WithoutText(Mask):
    """Generated modalities do not see the text; the text goes on seeing them and itself."""

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        return either(no(key.is_(TEXT)), query.is_(TEXT))


@dataclass(frozen=True)
class Spans(Mask):
    """What stands for a span is seen only from there: the token that marks span k by the tokens labelled k, and by itself.

    Attributes:
        of: the modality whose labelled tokens are such marks: the text, where a reference timbre takes a mark's place.
    """

    of: str = TEXT

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        if key.span is None:
            return True
        own = False if query.span is None else query.span == key.span
        return either(no(key.is_(self.of)), key.span < 0, own)


@dataclass(frozen=True)
class _Both(Mask):
    left: Mask
    right: Mask

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        left, right = self.left.allows(query, key), self.right.allows(query, key)
        if isinstance(left, bool):
            return right if left else False
        if isinstance(right, bool):
            return left if right else False
        return left & right

    def leaves(self) -> Iterator[Mask]:
        yield from self.left.leaves()
        yield from self.right.leaves()


@dataclass(frozen=True)
class _Either(Mask):
    left: Mask
    right: Mask

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        return either(self.left.allows(query, key), self.right.allows(query, key))

    def leaves(self) -> Iterator[Mask]:
        yield from self.left.leaves()
        yield from self.right.leaves()


@dataclass(frozen=True)
class _Not(Mask):
    inner: Mask

    def allows(self, query: Tokens, key: Tokens) -> Answer:
        return no(self.inner.allows(query, key))

    def leaves(self) -> Iterator[Mask]:
        yield from self.inner.leaves()
