"""World ``clock``: as ``pulse``, but the text says when: the control in which sync can be had without looking across.

    time      0.0       0.5       1.0       1.5       2.0 s
    video     . . . # + . . . . . . # + . . . . # + . . .     as in pulse: onsets lie anywhere within their bin
    audio     ......|\\..............|\\...........|\\.......
    text      "red disc at 0.2s 0.8s 1.3s"                    the beginning of each event's bin

Two modalities that read the text and never each other are apart by what a bin leaves open: with bins of 100 ms F1 is .36
at 20 ms, .64 at 40, .96 at 80. So where a cut of the exchange takes ``pulse`` to chance, ``clock`` must stay far from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nava_lab.conditioning.text import closed_up
from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.worlds.base import levels, positive
from nava_lab.worlds.staged import Script, Staged, of_kind


@worlds.register("clock")
@dataclass(frozen=True)
class ClockWorld(Staged):
    """Flashes with sounds at moments that the text states.

    Attributes:
        density: mean events per second, as in ``pulse``.
        classes: kinds of object (at most 8).
        bin_s: seconds of the bins in which the text gives the onsets.
    """

    density: float = 1.5
    classes: int = 4
    bin_s: float = 0.1

    version = "clock-1"
    metrics = ("sync", "events", "loss", "legacy")
    headline = "sync_auc"
    LEVELS = levels(density=(0.75, 1.5, 3.0))

    def __post_init__(self) -> None:
        positive(self, "bin_s")
        super().__post_init__()

    @property
    def most(self) -> int:
        return self.counting(self.density).most

    @property
    def bins(self) -> list[str]:
        """Words for the bins."""
        return [f"{number * self.bin_s:.6g}s" for number in range(math.ceil(self.duration_s / self.bin_s - 1e-6))]

    @property
    def vocabulary(self) -> tuple[Sequence[str], int]:
        return [*self.scene.colours, "disc", "at", *self.bins], 3 + self.most

    def script(self, split: str, index: Tensor) -> Script:
        numbers = uniform(self.seed(split, "clip"), index, 2)
        counts = self.counts(numbers[:, 0], self.density)
        events = of_kind(self.moments(split, index, counts, self.most), (numbers[:, 1] * self.classes).long())
        first = torch.zeros_like(events.kind[:, :1])
        spelled = self.tokenizer.spelled
        times = spelled(self.bins, (events.seconds / self.bin_s + 1e-9).long(), events.real)
        parts = (spelled(self.scene.colours, events.kind[:, :1]), spelled(["disc"], first), spelled(["at"], first), times)
        return Script(events, events, closed_up(torch.cat(parts, 1), self.tokenizer.length))
