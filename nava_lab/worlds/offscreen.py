"""World ``offscreen``: some sounds have no flash and some flashes no sound, and the text says how many of each.

    time      0.0       0.5       1.0       1.5       2.0 s
    video     . . . R + . . . . . . . . . B + . R + . . .     two flashes of red; blue is a silent distractor
    audio     ......|\\......|\\....................|\\.......    red's timbre three times, once off screen
    text      "red 2 seen 1 unseen blue 1 silent"             all that is known; the moments are latent

An exchange that ties every sound to a flash suppresses what is off screen or lights it up; one that ties every flash to a
sound gives the distractor a voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nava_lab.conditioning.text import closed_up
from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.worlds.base import levels
from nava_lab.worlds.staged import GAP, MARGIN, Script, Staged, of_kind, only


@worlds.register("offscreen")
@dataclass(frozen=True)
class OffscreenWorld(Staged):
    """Sounds of which some are off screen, among silent flashes of another object.

    Attributes:
        p_off: chance that a sounding event is off screen.
        distractors: most silent flashes of another object; a clip has 0 to so many, equally likely.
        density: mean sounding events per second.
        classes: kinds of object, 2 to 8.
    """

    p_off: float = 0.25
    distractors: int = 2
    density: float = 1.0
    classes: int = 4

    version = "offscreen-1"
    metrics = ("offscreen", "events", "loss")
    headline = "onscreen_auc"
    LEVELS = levels(p_off=(0.0, 0.25, 0.5))

    def __post_init__(self) -> None:
        if not 0 <= self.p_off < 1:
            raise ValueError(f"world.p_off={self.p_off} must lie in [0, 1)")
        if self.distractors < 0:
            raise ValueError(f"world.distractors={self.distractors} must not be negative")
        if self.classes < 2:
            raise ValueError(f"world.classes={self.classes}: a distractor needs a second class")
        room = max(0, int((self.duration_s - sum(MARGIN)) / GAP + 1e-9))  # beside one that sounds
        if self.distractors > room:
            raise ValueError(
                f"world.distractors={self.distractors} leave no room for a sound in {self.duration_s:g} s; at most {room}"
            )
        super().__post_init__()

    @property
    def most(self) -> int:
        return self.counting(self.density, self.distractors).most + self.distractors

    @property
    def vocabulary(self) -> tuple[Sequence[str], int]:
        return [*self.scene.colours, "seen", "unseen", "silent", *self._numbers], 1 + 2 + 2 + 3 * (self.distractors > 0)

    @property
    def _numbers(self) -> list[str]:
        return [str(number) for number in range(self.most + 1)]

    def script(self, split: str, index: Tensor) -> Script:
        numbers = uniform(self.seed(split, "clip"), index, 4)
        sounding = self.counts(numbers[:, 0], self.density, self.distractors)
        silent = (numbers[:, 1] * (self.distractors + 1)).long()
        kind = (numbers[:, 2] * self.classes).long()
        other = (kind + 1 + (numbers[:, 3] * (self.classes - 1)).long()) % self.classes
        every = self.moments(split, index, sounding + silent, self.most)
        # The silent ones are any of the events, drawn by rank, so that their moments are distributed as the others'.
        draws = uniform(self.seed(split, "roles"), index, 2 * self.most)
        rank = draws[:, : self.most].masked_fill(~every.real, 2.0).argsort(1).argsort(1)
        quiet = every.real & (rank < silent.unsqueeze(-1))
        loud = every.real & ~quiet
        off = loud & (draws[:, self.most :] < self.p_off)
        seen = only(of_kind(every, torch.where(quiet, other.unsqueeze(-1), kind.unsqueeze(-1))), ~off)
        heard = only(of_kind(every, kind), loud)
        words = self._words(kind, other, (loud & ~off).sum(1), off.sum(1), silent)
        return Script(seen, heard, words, {"kind": kind, "off": off.sum(1)})

    def _words(self, kind: Tensor, other: Tensor, on: Tensor, off: Tensor, silent: Tensor) -> Tensor:
        spelled, first = self.tokenizer.spelled, torch.zeros_like(kind)
        parts = [spelled(self.scene.colours, kind)]
        for word, count in (("seen", on), ("unseen", off)):
            parts += [spelled(self._numbers, count, count > 0), spelled([word], first, count > 0)]
        some = silent > 0
        parts += [
            spelled(self.scene.colours, other, some),
            spelled(self._numbers, silent, some),
            spelled(["silent"], first, some),
        ]
        return closed_up(torch.stack(parts, -1), self.tokenizer.length)
