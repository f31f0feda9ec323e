"""World ``null``: picture and sound know nothing of each other beyond what the text says; whoever finds sync here has a leak.

    time      0.0       0.5       1.0       1.5       2.0 s
    video     . . . # + . . . . . . # + . . . . # + . . .     the flashes of one object
    audio     ..|\\.....................|\\................    its timbre, at moments and in a number of its own
    text      "red disc"                                      the class, which both share

A true clip scores chance, and so must every model; a metric, a mask or a pipeline under which one does not is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.worlds.base import levels
from nava_lab.worlds.staged import Script, Staged, of_kind


@worlds.register("null")
@dataclass(frozen=True)
class NullWorld(Staged):
    """Flashes, and sounds at other moments.

    Attributes:
        density: mean events per second, in either modality.
        classes: kinds of object (at most 8).
    """

    density: float = 1.5
    classes: int = 4

    version = "null-1"
    metrics = ("sync", "events", "loss", "legacy")
    headline = "sync_auc"
    paired = False
    LEVELS = levels(density=(0.75, 1.5, 3.0))

    @property
    def most(self) -> int:
        return self.counting(self.density).most

    @property
    def vocabulary(self) -> tuple[Sequence[str], int]:
        return [*self.scene.colours, "disc"], 2

    def script(self, split: str, index: Tensor) -> Script:
        numbers = uniform(self.seed(split, "clip"), index, 3)
        kind = (numbers[:, 2] * self.classes).long()
        seen, heard = (
            of_kind(self.moments(split, index, self.counts(numbers[:, i], self.density), self.most, what), kind)
            for i, what in enumerate(("video ", "audio "))
        )
        spelled = self.tokenizer.spelled
        words = torch.stack((spelled(self.scene.colours, kind), spelled(["disc"], torch.zeros_like(kind))), -1)
        return Script(seen, heard, words)
