"""Voices of speakers: which there are, which of them each split may use, and which may meet in a clip.

A voice is three formants of eight. Training, validation and test have different voices made of the same formants; voices of
one clip have a cosine of at most .5.

Shape letters: v voices, k voices of a clip, f bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nava_lab.rng import stable_seed
from nava_lab.worlds.scene import Scene

FORMANTS, EACH = 8, 3
SHARES = {"train": 32, "validation": 12, "test": 12}  # of the 56 voices
ALIKE = 0.5  # greatest cosine of two voices in a clip
LOUDNESS = 1.6  # norm of a voice at full amplitude, as that of a timbre


@dataclass(frozen=True)
class Voices:
    """All voices over ``bands``, met in groups of ``together``."""

    bands: int
    together: int

    def __post_init__(self) -> None:
        if self.bands < FORMANTS:
            raise ValueError(f"world.bands={self.bands} cannot tell voices apart; it takes {FORMANTS}")
        if not 1 <= self.together <= 4:
            raise ValueError(f"world.voices={self.together} must lie between 1 and 4")

    @cached_property
    def shapes(self) -> Float[Tensor, "v f"]:
        """Every voice's band energies."""
        formants = Scene(FORMANTS, 16, self.bands).timbres()
        sums = torch.stack([formants[list(chosen)].sum(0) for chosen in combinations(range(FORMANTS), EACH)])
        return sums * (LOUDNESS / sums.norm(dim=-1, keepdim=True))

    def of(self, split: str) -> list[int]:
        """The voices of a split."""
        order = sorted(range(len(self.shapes)), key=lambda number: stable_seed("voices", number))
        starts = dict(zip(SHARES, (0, SHARES["train"], SHARES["train"] + SHARES["validation"]), strict=True))
        return sorted(order[starts[split] : starts[split] + SHARES[split]])

    @cached_property
    def _groups(self) -> dict[str, Int[Tensor, "g k"]]:
        unit = self.shapes / LOUDNESS
        apart = unit @ unit.T <= ALIKE + 1e-6
        found = {}
        for split in SHARES:
            groups = torch.tensor(list(combinations(self.of(split), self.together)))
            fit = torch.ones(len(groups), dtype=torch.bool)
            for a, b in combinations(range(self.together), 2):
                fit &= apart[groups[:, a], groups[:, b]]
            found[split] = groups[fit]
        return found

    def groups(self, split: str) -> Int[Tensor, "g k"]:
        """The sets of a split's voices that may meet in a clip."""
        found = self._groups[split]
        if not len(found):
            raise ValueError(
                f"no {self.together} voices of {split} are far enough apart over {self.bands} bands: raise world.bands"
            )
        return found
