"""Latents that published systems read and write, for their published sizes: facts of their codecs, with their sources.

Every system is measured on one clip: 121 frames of 704 x 1280 pixels at 24 a second (5.04 s), which is a whole number of steps
and of patches for all of their codecs, and the sound of those seconds. It sets costs, not parameters.
"""

from __future__ import annotations

from nava_lab.streams import Interface, ModalitySpec, TextSpec

UMT5 = TextSpec(512, features=4096)

FRAMES, FPS = 121, 24
PIXELS = (704, 1280)


def video(channels: int, stride: int, pixels: int, context: int = 0) -> ModalitySpec:
    """The clip through a causal video codec: its first frame is a time step of its own.

    Args:
        channels: of a token: the codec's, times the pixels of its latents that one patch takes.
        stride: frames of every later time step.
        pixels: edge of a token in pixels: the codec's stride in space times the patch's edge.
        context: further channels of a token that are read and not generated.
    """
    steps, grid = 1 + (FRAMES - 1) // stride, (PIXELS[0] // pixels, PIXELS[1] // pixels)
    return ModalitySpec(channels, steps * grid[0] * grid[1], stride / FPS, grid, stride, context)


def wan22_video() -> ModalitySpec:
    """Wan2.2's codec, 4 x 16 x 16 with 48 channels, in patches of (1, 2, 2)."""
    return video(48 * 4, 4, 16 * 2)


def audio(channels: int, hz: float, stride: int = 1) -> ModalitySpec:
    """The clip's sound, one token per time step of an audio codec.

    Args:
        channels: of a token.
        hz: tokens per second.
        stride: frames of a causal codec in every token but the first, which holds one.
    """
    return ModalitySpec(channels, round(FRAMES / FPS * hz), 1 / hz, stride=stride)


def joint(seen: ModalitySpec, heard: ModalitySpec, text: TextSpec = UMT5) -> Interface:
    return Interface({"video": seen, "audio": heard}, text)
