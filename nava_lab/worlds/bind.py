"""World ``bind``: several objects, one timbre each; whichever flashes, its own timbre must sound.

    time      0.0       0.5       1.0       1.5       2.0 s
    video     . . . R + . . . . . . G + . . . . R + . . .     which object flashes, and when, is latent
    audio     ......d\\..............h\\...........d\\.......    drum for red, horn for green
    text      "red drum green horn"                           each clip has its own map, and the text states it
              "red green"                                     permuted=false: one map for all, and the text names the objects only

A model may be in sync and yet give any object any timbre: binding kappa is 0 at chance (one in N) and 1 where the object
that flashes is always the one that sounds.
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


@worlds.register("bind")
@dataclass(frozen=True)
class BindWorld(Staged):
    """Objects that sound by a map.

    Attributes:
        objects: how many, 2 to 8.
        permuted: whether each clip has its own map from objects to timbres, stated in its text.
        density: mean events per second, those of all objects together.
    """

    objects: int = 2
    permuted: bool = True
    density: float = 1.5

    version = "bind-2"
    metrics = ("binding", "sync", "events", "loss", "legacy")
    headline = "binding_kappa"
    counts_kinds = "objects"
    LEVELS = levels(objects=(3, 2, 4), permuted=(False, True, True))  # a map that is read is harder than any that is learnt

    def __post_init__(self) -> None:
        if not 2 <= self.objects <= 8:
            raise ValueError(f"world.objects={self.objects} must lie between 2 and 8")
        super().__post_init__()

    @property
    def most(self) -> int:
        return self.counting(self.density).most

    @property
    def vocabulary(self) -> tuple[Sequence[str], int]:
        names = self.scene.timbre_names if self.permuted else []
        return [*self.scene.colours, *names], self.objects + len(names)

    def script(self, split: str, index: Tensor) -> Script:
        counts = self.counts(uniform(self.seed(split, "clip"), index, 1)[:, 0], self.density)
        which = (uniform(self.seed(split, "objects"), index, self.most) * self.objects).long()
        moments = self.moments(split, index, counts, self.most)
        sounds = torch.arange(self.objects, device=index.device).expand(len(index), -1)
        objects = self.tokenizer.spelled(self.scene.colours, sounds)
        words = objects
        if self.permuted:
            sounds = uniform(self.seed(split, "map"), index, self.objects).argsort(1)
            words = torch.stack((objects, self.tokenizer.spelled(self.scene.timbre_names, sounds)), -1).flatten(1)
        told = torch.ones_like(sounds, dtype=torch.bool)
        return Script(
            of_kind(moments, which),
            of_kind(moments, sounds.gather(1, which)),
            words,
            {"timbre_of": sounds, "video_told": told, "audio_told": told},
        )
