"""What a world answers.

A world is a pure function of (version, split, index): asked for any indices of a split, on any device and in any order,
it renders the same clips, their captions and their events.

Shape letters: b batch, n tokens, c channels, k events (padded), t frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nava_lab.rng import stable_seed
from nava_lab.streams import Batch, Interface, Stream, onto

SPLITS = ("train", "validation", "test")
DIFFICULTIES = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Events:
    """Onsets of one modality, padded to the most of any clip.

    Attributes:
        seconds: ``b k`` onset times.
        kind: ``b k`` which object or timbre.
        amplitude: ``b k``.
        real: ``b k``, False for padding.
    """

    seconds: Float[Tensor, "b k"]
    kind: Int[Tensor, "b k"]
    amplitude: Float[Tensor, "b k"]
    real: Bool[Tensor, "b k"]

    def onsets(self, row: int) -> np.ndarray:
        """One clip's onsets in seconds, in order of time."""
        return np.sort(self.seconds[row][self.real[row]].cpu().numpy().astype(np.float64))

    def rows(self, select: Tensor) -> Events:
        """Some clips of the batch."""
        return Events(self.seconds[select], self.kind[select], self.amplitude[select], self.real[select])


@dataclass(frozen=True)
class Mark:
    """Something that happens in a clip, for people to read.

    Attributes:
        modality: where.
        what: in a word or two.
        seconds: when it begins.
        until: when it ends; None for an onset.
    """

    modality: str
    what: str
    seconds: float
    until: float | None = None


@dataclass(frozen=True)
class Clip:
    """Something to watch and hear.

    Attributes:
        frames: ``t h w 3`` uint8.
        frame_rate: frames per second.
        sound: mono samples in [-1, 1].
        sample_rate: samples per second.
    """

    frames: np.ndarray
    frame_rate: float
    sound: np.ndarray
    sample_rate: int


def levels(**fields: tuple[Any, Any, Any]) -> dict[str, dict[str, Any]]:
    """``LEVELS`` from each field's easy, medium and hard value."""
    return {level: {name: values[i] for name, values in fields.items()} for i, level in enumerate(DIFFICULTIES)}


@dataclass(frozen=True)
class World:
    """Base of all worlds: its fields are knobs, and each knob changes the data.

    Class attributes:
        version: changes whenever the generator's output does.
        metrics: registered metrics that this world's models are scored by.
        SHORTCUTS: further config keys by which a field may be set, such as ``{"clips.path": "path"}``.
        mastery: scores that must be as good as the headline for a level to count as mastered, where the headline does not see all
            that the levels make harder.
        climbs_with: settings without which a family cannot master any level, however long it trains; the ladder sets them for
            all.
        LEVELS: what ``difficulty=easy|medium|hard`` sets its fields to; every level names the same fields.
        given: modalities that the suite also tries given clean.
        paired: whether picture and sound of a true clip belong together beyond what the text says.
    """

    name: ClassVar[str] = ""
    version: ClassVar[str] = ""
    metrics: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[str] = ""
    mastery: ClassVar[tuple[str, ...]] = ()
    climbs_with: ClassVar[tuple[str, ...]] = ()
    SHORTCUTS: ClassVar[Mapping[str, str]] = {}
    LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    given: ClassVar[tuple[str, ...]] = ()
    paired: ClassVar[bool] = True

    def interface(self) -> Interface:
        """Shapes, rates and vocabulary."""
        raise TypeError(f"{type(self).__name__} does not say its interface")

    def batch(self, split: str, index: Int[Tensor, " b"]) -> Batch:
        """The clips of these indices, rendered on ``index``'s device."""
        raise TypeError(f"{type(self).__name__} does not render")

    def sent(self, split: str, index: Int[Tensor, " b"], device: torch.device) -> Batch:
        """The clips of these indices, rendered on a device that is not waited for; the batch's ``index`` stays on the host,
        where generators need it."""
        return dataclasses.replace(self.batch(split, onto(index, device)), index=index)

    def prepare(self) -> None:
        """Whatever must happen before the first batch; raises what is wrong with the config or the files."""

    def count(self, split: str) -> int | None:
        """How many different clips a split holds; None for as many as are asked for."""
        return None

    def data_version(self) -> str:
        """What identifies the data besides the config."""
        return self.version

    def events(self, streams: Mapping[str, Tensor]) -> dict[str, Events]:
        """Events decoded from token values, per modality; empty for a world that has none."""
        return {}

    def denoiser(self, joint: bool) -> Callable[..., Mapping[str, Tensor]] | None:
        """The network of least possible loss, whose outputs are velocities; None where nobody knows it.

        Args:
            joint: whether it may see the other modality.
        """
        return None

    @property
    def encode(self) -> Callable[[Sequence[str]], Stream] | None:
        """Captions to text, with marks where this world's own have them; None where it has no words."""
        return getattr(self, "tokenizer", None)

    def captions(self, split: str, index: Int[Tensor, " b"]) -> list[str]:
        """What the text says of these clips."""
        return [""] * len(index)

    def marks(self, split: str, index: Int[Tensor, " b"]) -> list[list[Mark]]:
        """What happens in these clips, in order of time; nothing for a world that knows of no events."""
        return [[] for _ in range(len(index))]

    def clip(self, streams: Mapping[str, Tensor], row: int) -> Clip | None:
        """One sample of a batch of token values as picture and sound; None for a world that shows nothing."""
        return None

    def read(self, path: Path, names: Sequence[str], still: bool = False, last: bool = False) -> Mapping[str, Tensor]:
        """The named modalities of a media file as tokens ``1 n c`` of one clip.

        Args:
            path: the file.
            names: which modalities.
            still: take the first picture, standing throughout.
            last: take the file's end, not its beginning.
        """
        raise ValueError(f"{path}: world {self.name} has no media files; give a tokens.safetensors that `nava sample` wrote")

    def seed(self, split: str, purpose: str) -> int:
        if split not in SPLITS:
            raise ValueError(f"split '{split}' is not one of {', '.join(SPLITS)}")
        return stable_seed(self.version, split, purpose)


def positive(world: World, *names: str) -> None:
    """Refuse a world whose named fields are not positive numbers."""
    for name in names:
        if not getattr(world, name) > 0:
            raise ValueError(f"world.{name}={getattr(world, name)} must be positive")


def whole(world: World, product: float, what: str) -> int:
    """``product`` as the whole number that it must be."""
    if abs(product - round(product)) > 1e-6 or round(product) < 1:
        fields = ", ".join(f"{field.name}={getattr(world, field.name)}" for field in dataclasses.fields(world))
        raise ValueError(f"{what} must be a whole number of at least 1, not {product:g} ({fields})")
    return round(product)
