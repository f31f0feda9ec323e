"""Something to look at and hear: an MP4 per clip and a picture of its decoded events on one time axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from nava_lab.media.write import write_mp4
from nava_lab.worlds.base import Clip, World

COLOURS = {"video": "#1f6fb4", "audio": "#d1592a"}


def write_previews(folder: Path, world: World, streams: Mapping[str, Tensor], captions: list[str], count: int) -> list[str]:
    """Write ``clip_0.mp4`` with ``clip_0.png`` and so on; returns the names, empty for a world that shows nothing."""
    streams = {name: part[:count].float().cpu() for name, part in streams.items()}
    available = len(next(iter(streams.values()), []))
    events = world.events(streams) if available else {}
    names = []
    for row in range(min(count, available)):
        clip = world.clip(streams, row)
        if clip is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        name = f"clip_{row}"
        write_mp4(
            folder / f"{name}.mp4",
            frames=clip.frames,
            frame_rate=clip.frame_rate,
            sound=clip.sound,
            sample_rate=clip.sample_rate,
        )
        _draw(folder / f"{name}.png", clip, {key: part.onsets(row) for key, part in events.items()}, captions[row])
        names.append(name)
    return names


def _draw(path: Path, clip: Clip, onsets: Mapping[str, np.ndarray], caption: str) -> None:
    """Frames, spectrogram and decoded onsets, one above the other."""
    length = len(clip.frames) / clip.frame_rate
    figure = Figure(figsize=(8, 3.6), layout="constrained")  # not pyplot's: a notebook keeps its own backend
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(1.2, 1.2, 0.9))
    shown = np.linspace(0, len(clip.frames) - 1, min(25, len(clip.frames))).round().astype(int)
    axes[0].imshow(np.concatenate(clip.frames[shown], 1), extent=(0, length, 0, 1), aspect="auto", interpolation="nearest")
    axes[0].set(yticks=[], ylabel="picture", title=caption)
    loud = bool(np.any(clip.sound))
    with np.errstate(divide="ignore"):  # moments of exact silence
        axes[1].specgram(
            clip.sound if loud else clip.sound + 1e-6,
            NFFT=512,
            noverlap=384,
            Fs=clip.sample_rate,
            cmap="magma",
            vmin=-110,
            vmax=-30,
        )
    axes[1].set(ylabel="sound (Hz)", ylim=(0, min(4000, clip.sample_rate / 2)))
    for height, name in enumerate(("audio", "video")):
        axes[2].plot(onsets.get(name, []), np.full(len(onsets.get(name, [])), height), "|", ms=16, mew=3, color=COLOURS[name])
    axes[2].set(yticks=(0, 1), yticklabels=("audio", "video"), ylim=(-0.7, 1.7), xlabel="seconds", xlim=(0, length))
    axes[2].grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
