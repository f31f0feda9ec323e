"""What a new clip is given: a modality, a first frame or a beginning, from files or from the world's own clips.

A file is either a ``tokens.safetensors`` that ``nava sample`` wrote, or, where the world reads media, a media file.
"""

from __future__ import annotations

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
        seconds: how much of its end stands at the beginning of the new clips.
        true: a modality that is taken from the world's own clips; empty for none.
        split: the clips whose captions (and ``true`` modality) are taken.
    """

    files: Mapping[str, Path]
    first_steps: Mapping[str, Path]
    beginning: Path | None = None
    seconds: float = 0.5
    true: str = ""
    split: str = "test"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"--from {self.split} is not one of {', '.join(SPLITS)}")
        if self.beginning is not None and not self.seconds > 0:
            raise ValueError(f"--seconds {self.seconds:g} must be positive")

        twice = [name for name in self.whole if self.whole.count(name) > 1 or name in self.first_steps]
        if twice:
            raise ValueError(f"{twice[0]} is given twice: name one file (or --given) for it")

    @property
    def whole(self) -> list[str]:
        """Modalities that are given in full."""
        return [*self.files, *([self.true] if self.true else [])]


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
        for name, stream in batch.streams.items():
            places = batch.index.cpu()
            if name == wish.true:
                found[name] = Clean(stream.tokens)
            elif name in files:
                found[name] = Clean(_rows(files[name], places, stream))
            elif beginning:
                found[name] = _continued(_rows(beginning[name], places, stream), stream, wish.seconds)
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


def _continued(tokens: Tensor, stream: Stream, seconds: float) -> Clean:
    """The last ``seconds`` of the tokens at the beginning of a clip."""
    times = stream.positions[..., 0]
    steps = torch.unique(times[0])
    hop = float(steps[1] - steps[0]) if len(steps) > 1 else float("inf")
    kept = round(seconds / hop)
    if not 0 < kept < len(steps):
        raise ValueError(
            f"--seconds {seconds:g} must leave something to generate: between {hop:g} and {hop * (len(steps) - 1):g} s"
        )
    each = tokens.shape[1] // len(steps)
    moved = torch.roll(tokens, kept * each, 1)
    return Clean(moved, (times < steps[kept]).expand(len(tokens), -1))


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
