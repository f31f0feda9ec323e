"""Latents that published systems read and write, for their published sizes: facts of their codecs, with their sources.

A full clip is five seconds of 720p-like video (45 x 80 patches of 32 pixels for the 16-fold codecs with patch 2), as far as a
source names no other; it sets costs, not parameters.
"""

from __future__ import annotations

from nava_lab.streams import Interface, ModalitySpec, TextSpec

UMT5 = TextSpec(512, features=4096)


def wan22_video(seconds: float = 5.0, grid: tuple[int, int] = (22, 40)) -> ModalitySpec:
    """Wan2.2's codec, 4 x 16 x 16 with 48 channels, in patches of (1, 2, 2), at 24 frames per second."""
    steps = round(seconds * 24 / 4)
    return ModalitySpec(48 * 4, steps * grid[0] * grid[1], 4 / 24, grid, stride=4)


def audio(channels: int, hz: float, seconds: float = 5.0) -> ModalitySpec:
    """One token per time step of an audio codec."""
    return ModalitySpec(channels, round(seconds * hz), 1 / hz)


def joint(video: ModalitySpec, sound: ModalitySpec, text: TextSpec = UMT5) -> Interface:
    return Interface({"video": video, "audio": sound}, text)
