"""What a term and a modifier of guidance are.

A *term* compares the conditional velocity with that of a null branch, the same call with something taken away:
``v = v_c + sum over terms (s - 1) (v_c - v_null)``, s being its scale, 1 exactly off (Ho & Salimans 2022, arXiv 2207.12598, with
several conditions as in Liu et al. 2022, arXiv 2206.01714). A *modifier* changes how that sum is made. An entry at its
defaults is off.

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nava_lab.flow.draws import Drawing
from nava_lab.streams import Stream, TextSpec

Encode = Callable[[Sequence[str]], Stream]
Scale = float | Mapping[str, float]


@dataclass(frozen=True)
class Call:
    """What a network is asked: noisy streams, their levels, text, and the samples whose modalities are cut apart."""

    streams: Mapping[str, Stream]
    levels: Mapping[str, Tensor]
    text: Stream
    cut: Bool[Tensor, " b"] | None


@dataclass(frozen=True)
class Told:
    """Text and cut of a call, and what they were made of, which is held so that its identity lasts."""

    text: Stream
    cut: Bool[Tensor, " b"] | None
    of: tuple[object, ...]


@dataclass(frozen=True)
class Moment:
    """Where a guided evaluation stands.

    Attributes:
        x: noisy tokens per modality.
        levels: each modality's level, as the schedule has it.
        counted: ``b n`` per modality, the tokens that sums and norms are taken over (neither padding nor clean); None for all.
        memory: kept from evaluation to evaluation of one sampling, and by nobody else.
        told: texts and cuts of null branches and of branches that share a call, of one sampling: they depend on no level.
    """

    x: Mapping[str, Tensor]
    levels: Mapping[str, float]
    counted: Mapping[str, Tensor | None]
    memory: dict[str, Tensor] = field(default_factory=dict)
    told: dict[tuple[object, ...], Told] = field(default_factory=dict)

    def inner(self, name: str, a: Tensor, b: Tensor) -> Float[Tensor, "b 1 1"]:
        """Each sample's inner product of two velocities of a modality, over its counted tokens."""
        product = torch.linalg.vecdot(a, b)
        counted = self.counted.get(name)
        return (product if counted is None else product.masked_fill(~counted, 0.0)).sum(-1).view(-1, 1, 1)

    def spread(self, name: str, a: Tensor) -> Float[Tensor, "b 1 1"]:
        """Each sample's standard deviation over its counted tokens and all channels."""
        counted = self.counted.get(name)
        size = self.size(name, a)
        kept = a if counted is None else a.masked_fill(~counted.unsqueeze(-1), 0.0)
        off = kept - kept.sum((1, 2), keepdim=True) / size  # torch.std takes ten times as long for the same
        if counted is not None:
            off = off.masked_fill_(~counted.unsqueeze(-1), 0.0)
        return torch.linalg.vector_norm(off, dim=(1, 2), keepdim=True) / size.sqrt()

    def size(self, name: str, a: Tensor) -> Float[Tensor, "b 1 1"]:
        """How many values of a modality's velocity count in each sample, at least 1."""
        counted = self.counted.get(name)
        tokens = a.new_full((a.shape[0],), a.shape[1]) if counted is None else counted.to(a.dtype).sum(1)
        return (tokens * a.shape[-1]).clamp(min=1).expand(a.shape[0]).view(-1, 1, 1)


@dataclass(frozen=True)
class Part:
    """Base of terms and modifiers: a value whose defaults mean off.

    Class attributes:
        example: settings under which it acts, for the laws.
    """

    name: ClassVar[str] = ""
    example: ClassVar[Mapping[str, object]] = {}

    @property
    def on(self) -> bool:
        """Whether it changes anything."""
        return self != type(self)()

    def untrained(self, drawing: Drawing, text: TextSpec) -> str:
        """Why a model trained by these draws, told this kind of text, has nothing for it, and the setting that would change that.

        Empty if it has.
        """
        return ""

    def check(self, encode: Encode | None) -> None:
        """Raise what is wrong with it in this world; ``encode`` turns captions into text, None where there are no words."""


@dataclass(frozen=True)
class Term(Part):
    """Base of the terms.

    Attributes:
        scale: one number, or one per modality (1 where not named); 1 is off.
    """

    scale: Scale = 1.0

    def __post_init__(self) -> None:
        values = self.scale.values() if isinstance(self.scale, Mapping) else [self.scale]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
                raise ValueError(f"evaluation.guidance.{self.name}: scale {value} must be a number, 1 being off")

    @property
    def on(self) -> bool:
        values = self.scale.values() if isinstance(self.scale, Mapping) else [self.scale]
        return any(value != 1 for value in values)

    def of(self, modality: str) -> float:
        """The scale of a modality."""
        return self.scale.get(modality, 1.0) if isinstance(self.scale, Mapping) else self.scale

    def null(self, call: Call, encode: Encode | None) -> Call:
        """The call with something of its text or cut taken away; streams and levels stay as they are, whatever the level.

        ``encode`` turns captions into text; None where a world has no words.
        """
        raise TypeError(f"{type(self).__name__} does not say its null branch")


@dataclass(frozen=True)
class Modifier(Part):
    """Base of the modifiers; each of its methods is one place where the sum of the terms can be changed."""

    def acts(self, level: float) -> bool:
        """Whether a modality is guided at this level."""
        return True

    def still(self, level: float) -> bool:
        """Whether a step that begins at this level is left out for a modality that is guided: it keeps its tokens."""
        return False

    def null(self, name: str, conditional: Tensor, null: Tensor, moment: Moment) -> Tensor:
        """What a null branch's velocity of a modality is taken for."""
        return null

    def direction(self, term: str, name: str, direction: Tensor, conditional: Tensor, moment: Moment) -> Tensor:
        """What a term's ``v_c - v_null`` of a modality is taken for."""
        return direction

    def guided(self, name: str, guided: Tensor, conditional: Tensor, moment: Moment) -> Tensor:
        """What the guided velocity of a modality is taken for."""
        return guided
