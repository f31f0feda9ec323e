"""How figures look, and how one drawing becomes SVG that takes a page's colours and PNG for everything else.

Colours are Okabe and Ito's, told apart by colour-blind eyes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.markers
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from nava_lab.report.numbers import short

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*<>"
INK, FAINT = "#010203", "#040506"  # stand-ins that become the page's own colours
LIGHT = {INK: "#1d2329", FAINT: "#d5dade"}
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.solid_capstyle": "round",
}
WIDE = (6.4, 3.7)
DPI = 140


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        name: its files' stem.
        title: what it shows.
        alt: the same for those who do not see it, with the numbers that matter.
        note: how to read it.
        svg: for a page: text takes the page's font, lines its colours.
        png: on white.
    """

    name: str
    title: str
    alt: str
    note: str
    svg: str
    png: bytes


def draw(name: str, title: str, alt: str, note: str, size: tuple[float, float], paint: Callable[[Any], None]) -> Figure:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        paint(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    with matplotlib.rc_context({**STYLE, **_replaced(STYLE, LIGHT), "figure.facecolor": "white", "savefig.facecolor": "white"}):
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        paint(figure)
        painted: list[Any] = figure.findobj(lambda part: hasattr(part, "get_color"))
        for artist in painted:
            if isinstance(artist.get_color(), str) and artist.get_color() in LIGHT:
                artist.set_color(LIGHT[artist.get_color()])
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=DPI)
    return Figure(name, title, alt, note, _inline(text.getvalue(), name), picture.getvalue())


def _replaced(style: Mapping[str, Any], colours: Mapping[str, str]) -> Any:
    return {key: colours[value] for key, value in style.items() if value in colours}


def _inline(svg: str, name: str) -> str:
    """An SVG for inside a page: no prologue, no size of its own, the page's font, names that are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    for mark in dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)):
        svg = re.sub(rf'(\bid="|href="#|url\(#){re.escape(mark)}(?=["\)])', rf"\g<1>{name}-{mark}", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return svg


def coloured(svg: str, colours: Mapping[str, str]) -> str:
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    return svg


def for_page(figure: Figure) -> str:
    """The SVG in a page's colours, hidden from readers aloud, who get the figure's ``alt``."""
    svg = coloured(figure.svg, {INK: "currentColor", FAINT: "var(--line)"})
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def write_figures(drawn: Sequence[Figure], folder: Path) -> None:
    for figure in drawn:
        (folder / f"{figure.name}.png").write_bytes(figure.png)
        (folder / f"{figure.name}.svg").write_text(coloured(figure.svg, LIGHT), encoding="utf-8")


def plain_ticks(axis: Axes) -> None:
    """A logarithmic cost axis with words for numbers, and some of them however short it is."""
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: short(value)))
    low, high = axis.get_xlim()
    ticks = np.geomspace(low, high, 6)[1:-1]
    axis.set_xticks([float(f"{tick:.2g}") for tick in ticks])
    axis.set_xticks([], minor=True)


def plain_decades(axis: Axis) -> None:
    """A logarithmic axis with ordinary numbers at 1, 2 and 5."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend(axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    once = dict(reversed(list(zip(names, handles, strict=True))))  # of marks that share a name, the first
    once = {name: once[name] for name in names}
    columns = 1 if max(map(len, once)) > 26 else min(3, len(once))
    axis.legend(once.values(), once.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)


def marker_path(marker: str) -> str:
    """A marker as an SVG path within 6 units of the origin, for a page's keys."""
    shape = matplotlib.markers.MarkerStyle(marker)
    path = shape.get_path().transformed(shape.get_transform())
    steps = []
    for points, code in path.iter_segments(curves=True):
        letter = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}[int(code)]
        numbers = " ".join(f"{10 * value * (-1 if place % 2 else 1):.2f}" for place, value in enumerate(points))
        steps.append("Z" if letter == "Z" else letter + numbers)
    return "".join(steps)
