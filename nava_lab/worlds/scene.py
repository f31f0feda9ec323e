"""Objects and their sounds: colours, places, timbres, how to read them off a clip and how to make them heard.

Shape letters: k kinds, h w pixels, f bands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nava_lab.streams import onto

COLOURS = {
    "red": (1.0, 0.25, 0.2),
    "green": (0.2, 0.9, 0.3),
    "blue": (0.3, 0.45, 1.0),
    "yellow": (1.0, 0.85, 0.2),
    "purple": (0.75, 0.3, 0.95),
    "cyan": (0.2, 0.9, 0.95),
    "orange": (1.0, 0.55, 0.15),
    "white": (0.95, 0.95, 0.95),
}
TIMBRES = ("drum", "horn", "bell", "flute", "harp", "organ", "reed", "chime")  # words for timbres, low to high
SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Scene:
    """``kinds`` discs on a square picture, each with a timbre over ``bands``."""

    kinds: int
    size: int
    bands: int
    background: float = 0.08

    def __post_init__(self) -> None:
        if not 1 <= self.kinds <= len(COLOURS):
            raise ValueError(f"a scene has 1 to {len(COLOURS)} kinds, not {self.kinds}")
        if self.bands < self.kinds:
            raise ValueError(f"world.bands={self.bands} cannot tell {self.kinds} timbres apart")

    @property
    def colours(self) -> list[str]:
        return list(COLOURS)[: self.kinds]

    @property
    def timbre_names(self) -> list[str]:
        return list(TIMBRES)[: self.kinds]

    def pictures(self, device: torch.device | str = "cpu") -> Float[Tensor, "k h w 3"]:
        """Each object fully lit, on black; a soft disc in its own cell of a square grid."""
        cells = math.ceil(math.sqrt(self.kinds))
        cell = self.size / cells
        centre = torch.arange(self.size, dtype=torch.float32) + 0.5
        discs = []
        for kind in range(self.kinds):
            row, column = divmod(kind, cells)
            y, x = (row + 0.5) * cell, (column + 0.5) * cell
            distance = ((centre[:, None] - y) ** 2 + (centre[None, :] - x) ** 2).sqrt()
            disc = (0.5 + 0.45 * cell - distance).clamp(0, 1)
            discs.append(disc[..., None] * torch.tensor(list(COLOURS.values())[kind]))
        return onto(torch.stack(discs), device)

    def timbres(self, device: torch.device | str = "cpu") -> Float[Tensor, "k f"]:
        """Each object's band energies: bumps far enough apart that no two have a cosine above 0.5."""
        spacing = self.bands / self.kinds
        centres = (torch.arange(self.kinds) + 0.5) * spacing - 0.5
        bumps = torch.exp(-0.5 * ((torch.arange(self.bands)[None] - centres[:, None]) / (0.375 * spacing)) ** 2)
        return onto(bumps * (1.6 / bumps.norm(dim=-1, keepdim=True)), device)

    def picture_readers(self, device: torch.device | str) -> Float[Tensor, "k h w 3"]:
        """Linear readers of each object's brightness: the pseudo-inverse of all objects' pictures."""
        return torch.linalg.pinv(self.pictures(device).flatten(1)).T.reshape(self.kinds, self.size, self.size, 3)

    def timbre_readers(self, device: torch.device | str) -> Float[Tensor, "k f"]:
        """Linear readers of each timbre's loudness."""
        return torch.linalg.pinv(self.timbres(device)).T


def sonify(envelope: np.ndarray, hz: float) -> tuple[np.ndarray, int]:
    """Band energies ``t f`` as sound: one tone per band, log-spaced from 220 to 3520 Hz, following the band's envelope."""
    frames, bands = envelope.shape
    samples = round(frames / hz * SAMPLE_RATE)
    at = (np.arange(samples) + 0.5) / SAMPLE_RATE * hz - 0.5
    pitches = 220.0 * 16.0 ** (np.arange(bands) / max(1, bands - 1))
    tones = np.sin(2 * np.pi * pitches[:, None] * np.arange(samples) / SAMPLE_RATE)
    loudness = np.stack([np.interp(at, np.arange(frames), envelope[:, band]) for band in range(bands)])
    sound = (tones * loudness).sum(0)
    return (0.8 * np.tanh(sound / 2.5)).astype(np.float32), SAMPLE_RATE
