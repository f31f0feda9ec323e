"""What a new clip is given: a modality, a first frame or a beginning, from files or from the world's own clips.

A file is either a ``tokens.safetensors`` that ``nava sample`` wrote, or, where the world reads media, a media file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nava_lab.flow.draws import first_step
from nava_lab.flow.sampling import Clean
from nava_lab.media.decode import UnusableClip
from nava_lab.streams import Batch, Stream
from nava_lab.worlds.base import SPLITS, World

TOKENS = ".safetensors"


@dataclass(frozen=True)
class Wish:
    """What is to be given.

    Attributes:
        files: a file per modality that is given whole.
        first_steps: a file per modality whose first step in time is given.
        beginning: a file whose end the new clips continue; empty for none.
        seconds: how much of its end stands at the beginning of the new clips; about half a second where None.
        true: a modality that is taken from the world's own clips; empty for none.
        split: the clips whose captions (and ``true`` modality) are taken.
        prompt: a caption for all, in place of theirs; empty for none.
        captions: take theirs although a file is given, of which they say nothing.
    """

    files: Mapping[str, Path]
    first_steps: Mapping[str, Path]
    beginning: Path | None = None
    seconds: float | None = None
    true: str = ""
    split: str = "test"
    prompt: str = ""
    captions: bool = False

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"--from {self.split} is not one of {', '.join(SPLITS)}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"--seconds {self.seconds:g} must be positive")

        twice = [name for name in self.whole if self.whole.count(name) > 1 or name in self.first_steps]
        if twice:
            raise ValueError(f"{twice[0]} is given twice: name one file (or --given) for it")

    @property
    def whole(self) -> list[str]:
        """Modalities that are given in full."""
        return [*self.files, *([self.true] if self.true else [])]

    @property
    def own(self) -> bool:
        """Whether a file is given, which the captions of the world's clips do not describe."""
        return bool(self.files or self.first_steps or self.beginning)


Giver = Callable[[Batch], dict[str, Clean]]


def giver(wish: Wish, world: World) -> Giver:
    """Reads every file once; the result says what the samples of a batch are given. Row i of a file serves clip i, around."""
    known = world.interface().modalities
    for name in (*wish.whole, *wish.first_steps):
        if name not in known:
            raise ValueError(f"world {world.name} has no modality {name}; it has {', '.join(known)}")
    if set(wish.whole) >= set(known):
        raise ValueError(f"{', '.join(known)} are all given: nothing is left to generate")
    files = {name: _tokens(world, path, [name])[name] for name, path in wish.files.items()}
    firsts = {name: _tokens(world, path, [name], still=True)[name] for name, path in wish.first_steps.items()}
    beginning = {} if wish.beginning is None else _tokens(world, wish.beginning, list(known), last=True)

    def give(batch: Batch) -> dict[str, Clean]:
        found: dict[str, Clean] = {}
        begun: Mapping[str, Clean] = {}
        if beginning:
            ends = {name: _rows(beginning[name], batch.index.cpu(), stream) for name, stream in batch.streams.items()}
            begun = _continued(ends, batch.streams, wish.seconds)
        for name, stream in batch.streams.items():
            places = batch.index.cpu()
            if name == wish.true:
                found[name] = Clean(stream.tokens)
            elif name in files:
                found[name] = Clean(_rows(files[name], places, stream))
            elif name in begun:
                found[name] = begun[name]
            if name in firsts:
                keep = first_step(stream).expand(len(batch), -1)
                first = _rows(firsts[name], places, stream)
                old = found.get(name)
                if old is not None and old.keep is not None:  # a beginning, whose first step the file replaces
                    first, keep = torch.where(keep.unsqueeze(-1), first, old.tokens), keep | old.keep
                found[name] = Clean(first, keep)
        return found

    return give


def _rows(tokens: Tensor, places: Tensor, stream: Stream) -> Tensor:
    return tokens[places % len(tokens)].to(stream.tokens)


@dataclass(frozen=True)
class _Clock:
    """A modality's steps in time: how many, how long each, and how many tokens."""

    steps: int
    hop: float
    each: int

    @classmethod
    def of(cls, stream: Stream) -> _Clock:
        times = torch.unique(stream.positions[0, :, 0].double())
        hop = float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else math.inf
        return cls(len(times), hop, stream.positions.shape[1] // len(times))

    def index(self, seconds: float) -> int | None:
        """The step that begins at a moment; None where none does. Positions are float32, hence the tolerance."""
        place = seconds / self.hop
        return round(place) if abs(place - round(place)) < 1e-3 else None


def _continued(tokens: Mapping[str, Tensor], streams: Mapping[str, Stream], seconds: float | None) -> dict[str, Clean]:
    """The last ``seconds`` of a clip's tokens at the beginning of new ones; about half a second where None.

    All modalities are cut at one moment, where each begins a step: rounded for itself, sound would move against the picture.
    """
    clocks = {name: _Clock.of(stream) for name, stream in streams.items()}
    ends = [clock.steps * clock.hop for clock in clocks.values()]
    longest = max(clocks.values(), key=lambda clock: clock.hop)
    moments = [k * longest.hop for k in range(1, longest.steps + 1)] if longest.steps > 1 else []
    common = [moment for moment in moments if all(clock.index(moment) is not None for clock in clocks.values())]
    valid = [moment for moment in common if all(moment < end - 1e-3 * longest.hop for end in ends)]
    if not valid:
        hops = ", ".join(f"{name} {clock.hop:g} s" for name, clock in clocks.items())
        raise ValueError(f"--continue: no moment within a clip begins a step of every modality ({hops})")
    kept = min(valid, key=lambda moment: abs(moment - (0.5 if seconds is None else seconds)))
    if seconds is not None and abs(kept - seconds) > 1e-2 * longest.hop:
        nearest = sorted(sorted(valid, key=lambda moment: abs(moment - seconds))[:2])
        raise ValueError(
            f"--seconds {seconds:g} must be whole steps of every modality and leave something to generate: "
            f"{' or '.join(f'{moment:g}' for moment in nearest)}, say (from {valid[0]:g} to {valid[-1]:g})"
        )
    end = max(moment for moment in common if all(moment < end + 1e-3 * longest.hop for end in ends))
    found = {}
    for name, clock in clocks.items():
        count, start = round(kept / clock.hop), round((end - kept) / clock.hop)
        times = streams[name].positions[..., 0]
        moved = torch.roll(tokens[name], -start * clock.each, 1)
        found[name] = Clean(moved, (times < torch.unique(times[0])[count]).expand(len(moved), -1))
    return found


def _tokens(world: World, path: Path, names: Sequence[str], still: bool = False, last: bool = False) -> dict[str, Tensor]:
    """The named modalities of a file as tokens ``b n c`` of a whole clip; ValueError for one that does not fit."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    if path.suffix == TOKENS:
        try:
            found: Mapping[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a file of tokens ({error})") from None
    else:
        try:
            found = world.read(path, names, still=still, last=last)
        except UnusableClip as problem:
            raise ValueError(str(problem)) from None
    specs = world.interface().modalities
    for name in names:
        if name not in found:
            raise ValueError(f"{path} holds no {name}; it holds {', '.join(found) or 'nothing'}")
        want = (specs[name].tokens, specs[name].channels)
        if found[name].ndim != 3 or tuple(found[name].shape[1:]) != want or not len(found[name]):
            raise ValueError(f"{path}: {name} is {tuple(found[name].shape)}; this run's clips have {want[0]} tokens of {want[1]}")
        if not bool(torch.isfinite(found[name]).all()):
            raise ValueError(f"{path}: {name} holds NaN or infinity")
    return {name: found[name] for name in names}
