"""``nava describe world=NAME``: samples of a world with their text and events, in the terminal and on a page that plays them."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import inspect
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, select_autoescape
from matplotlib.image import imsave
from rich.console import Console
from rich.text import Text

from nava_lab.media.write import write_mp4
from nava_lab.worlds.base import SPLITS, Clip, Mark, World

SHADES = " .:-=+*#%@"
COLUMNS = 64


@dataclass(frozen=True)
class Sample:
    """One clip of a world.

    Attributes:
        number: its index within the split.
        caption: what the text says.
        marks: what happens.
        clip: something to watch and hear; None for a world that shows nothing.
        values: mean magnitude of each modality's tokens, step by step in time; what is drawn where there is no clip.
    """

    number: int
    caption: str
    marks: Sequence[Mark]
    clip: Clip | None
    values: dict[str, np.ndarray]


def samples(world: World, split: str, count: int) -> list[Sample]:
    """The first ``count`` clips of a split."""
    if split not in SPLITS:
        raise ValueError(f"--from {split} is not one of {', '.join(SPLITS)}")
    if count < 1:
        raise ValueError(f"--count {count} must be at least 1")
    index = torch.arange(count)
    batch = world.batch(split, index)
    streams = {name: stream.tokens for name, stream in batch.streams.items()}
    grids = {name: spec.grid[0] * spec.grid[1] for name, spec in world.interface().modalities.items()}
    values = {name: tokens.abs().mean(-1).unflatten(1, (-1, grids[name])).mean(-1).numpy() for name, tokens in streams.items()}
    return [
        Sample(row, caption, marks, world.clip(streams, row), {name: part[row] for name, part in values.items()})
        for row, (caption, marks) in enumerate(zip(world.captions(split, index), world.marks(split, index), strict=True))
    ]


def seconds_of(world: World) -> float:
    """How long a clip lasts."""
    return max(spec.seconds * spec.tokens / (spec.grid[0] * spec.grid[1]) for spec in world.interface().modalities.values())


def drawing(world: World) -> str:
    """The sample on a time axis that the world's file draws, with what it says besides."""
    return inspect.cleandoc(importlib.import_module(type(world).__module__).__doc__ or "")


def print_samples(world: World, shown: Sequence[Sample], console: Console | None = None) -> None:
    """The world's own drawing, then each sample: text, brightness and loudness over time, and what happens when."""
    console = console or Console()
    console.print(Text(drawing(world)), soft_wrap=True)
    length = seconds_of(world)
    for sample in shown:
        console.print(Text(f'\nclip {sample.number}: "{sample.caption}"', style="bold"))
        for name, values in sample.values.items():
            console.print(Text(f"{name:8}|{shaded(values)}|"))
            marks = [mark for mark in sample.marks if mark.modality == name]
            if marks:
                console.print(Text(f"{'':8} {pointed(marks, length)}"), highlight=False)
                console.print(Text(f"{'':9}{', '.join(map(spelled, marks))}", style="dim"))


def shaded(values: np.ndarray) -> str:
    """A row of characters, the darker the larger the value."""
    low, high = float(values.min()), float(values.max())
    places = np.interp((np.arange(COLUMNS) + 0.5) / COLUMNS * len(values) - 0.5, np.arange(len(values)), values)
    steps = ((places - low) / max(high - low, 1e-9) * (len(SHADES) - 1)).round().astype(int)
    return "".join(SHADES[step] for step in steps)


def pointed(marks: Sequence[Mark], length: float) -> str:
    """A row with each mark's first letter where it begins, and a line to where it ends."""
    row = [" "] * COLUMNS
    for mark in marks:
        first = min(COLUMNS - 1, int(mark.seconds / length * COLUMNS))
        last = first if mark.until is None else min(COLUMNS - 1, int(mark.until / length * COLUMNS))
        row[first : last + 1] = "-" * (last + 1 - first)
        row[first] = mark.what[0]
    return "".join(row)


def spelled(mark: Mark) -> str:
    return f"{mark.what} {mark.seconds:.3f}" + ("" if mark.until is None else f" to {mark.until:.3f}")


def write_page(world: World, shown: Sequence[Sample], folder: Path, command: str) -> Path:
    """One HTML file with pictures and sound inside; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(("html", "j2")))
    length = seconds_of(world)
    text = environment.get_template("world.html.j2").render(
        name=world.name,
        version=world.version,
        drawing=drawing(world),
        command=command,
        settings={field.name: getattr(world, field.name) for field in dataclasses.fields(world)},
        modalities=list(world.interface().modalities),
        length=length,
        samples=[_rendered(sample, length) for sample in shown],
    )
    path = folder / "index.html"
    temporary = folder / ".index.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _rendered(sample: Sample, length: float) -> dict[str, object]:
    film = poster = ""
    if sample.clip is not None:
        buffer, frames = io.BytesIO(), sample.clip.frames
        brightest = frames[frames.reshape(len(frames), -1).sum(-1, dtype=np.int64).argmax()]
        imsave(buffer, brightest.repeat(16, 0).repeat(16, 1), format="png")
        poster = base64.b64encode(buffer.getvalue()).decode()
        with tempfile.TemporaryDirectory() as folder:
            clip = sample.clip
            path = write_mp4(
                Path(folder) / "clip.mp4",
                frames=clip.frames,
                frame_rate=clip.frame_rate,
                sound=clip.sound,
                sample_rate=clip.sample_rate,
            )
            film = base64.b64encode(path.read_bytes()).decode()
    traces = {}
    for name, values in sample.values.items():
        low, high = float(values.min()), float(values.max())
        heights = (values - low) / max(high - low, 1e-9)
        places = (np.arange(len(values)) + 0.5) / len(values)
        curve = [(0, 0), (0, heights[0]), *zip(places, heights, strict=True), (1, heights[-1]), (1, 0)]
        traces[name] = " ".join(f"{1000 * x:.1f},{38 - 32 * y:.1f}" for x, y in curve)
    marks = [
        {
            "modality": mark.modality,
            "what": mark.what,
            "label": spelled(mark),
            "x": 1000 * mark.seconds / length,
            "width": 0 if mark.until is None else 1000 * (mark.until - mark.seconds) / length,
        }
        for mark in sample.marks
    ]
    return {"number": sample.number, "caption": sample.caption, "film": film, "poster": poster, "traces": traces, "marks": marks}
