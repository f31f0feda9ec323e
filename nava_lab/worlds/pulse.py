"""World ``pulse``: one object flashes and sounds at the same moments; nothing but the other modality tells when.

    time      0.0       0.5       1.0       1.5       2.0 s
    video     . . . # + . . . . . . # + . . . . # + . . .     brightness of the object, one frame per 80 ms
    audio     ......|\\..............|\\...........|\\.......    energy in the object's bands, one frame per 20 ms
    text      "red disc"                                      the class only, never the time

The caption fixes colour, place and timbre; count, onsets and amplitudes are drawn per clip. So a model that generates the
two modalities without looking across gets each right and their timing wrong: sync is what the exchange is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.worlds.base import Events, levels
from nava_lab.worlds.staged import Script, Staged, of_kind


@worlds.register("pulse")
@dataclass(frozen=True)
class PulseWorld(Staged):
    """Flashes with sounds at latent moments; text names the class only.

    Attributes:
        density: mean events per second; a clip has 1 to ``2 density duration_s - 1`` of them, equally likely (from more than
            1 on where so many would not fit; up to the whole numbers about that, in shares of the clips, where it is none).
        classes: kinds of object, each with its colour, place and timbre (at most 8).
    """

    density: float = 1.5
    classes: int = 4

    version = "pulse-1"
    metrics = ("sync", "events", "loss", "legacy")
    headline = "sync_auc"
    given = ("audio", "video")
    LEVELS = levels(density=(0.75, 1.5, 3.0))

    @property
    def most(self) -> int:
        return self.counting(self.density).most

    @property
    def vocabulary(self) -> tuple[Sequence[str], int]:
        return [word for colour in self.scene.colours for word in (colour, "disc")], 2

    def truth(self, split: str, index: Tensor) -> Events:
        """The events of these clips; the same ones in picture and sound."""
        numbers = uniform(self.seed(split, "clip"), index, 2)
        counts = self.counts(numbers[:, 0], self.density)
        return of_kind(self.moments(split, index, counts, self.most), (numbers[:, 1] * self.classes).long())

    def script(self, split: str, index: Tensor) -> Script:
        events = self.truth(split, index)
        return Script(events, events, self.named(events.kind[:, 0]))

    def named(self, kind: Tensor) -> Tensor:
        """``b``: the class as words."""
        colour = self.tokenizer.spelled(self.scene.colours, kind)
        return torch.stack((colour, self.tokenizer.spelled(["disc"], torch.zeros_like(kind))), -1)
