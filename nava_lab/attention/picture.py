"""Masks to look at: rows are queries, columns keys, and the modalities are named along both.

Shape letters: q queries, k keys.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from nava_lab.attention.masks import Mask
from nava_lab.attention.tokens import Tokens
from nava_lab.streams import Stream

SHADES = " ░▒▓█"


@dataclass(frozen=True)
class Picture:
    """Who sees whom among named modalities.

    Attributes:
        table: True where a query sees a key.
        lengths: tokens of each modality, in the order of the table.
        title: what is shown.
    """

    table: Bool[Tensor, "q k"]
    lengths: Mapping[str, int]
    title: str = ""

    @staticmethod
    def of(mask: Mask, streams: Mapping[str, Stream], sample: int = 0, title: str = "") -> Picture:
        """What ``mask`` allows between all tokens of one sample."""
        names = tuple(streams)
        tokens = Tokens.of(streams, names, names)
        table = mask.dense(tokens, tokens)
        if table is None:
            table = torch.ones((1, len(tokens), len(tokens)), dtype=torch.bool)
        return Picture(
            table[sample if table.shape[0] > 1 else 0].cpu(), {name: len(part) for name, part in streams.items()}, title
        )

    def text(self, columns: int = 60) -> str:
        """The picture in characters: blank where nothing is seen, full where everything is."""
        total = sum(self.lengths.values())
        cells = {name: min(count, max(1, round(count * columns / total))) for name, count in self.lengths.items() if count}
        # A character is twice as high as wide, so a row of the picture stands for two cells.
        rows = {name: max(1, -(-count // 2)) if total > columns // 2 else count for name, count in cells.items()}
        margin = max(map(len, cells)) + 1
        wide = {name: -(-len(name) // count) for name, count in cells.items()}  # a short modality's cells are drawn wider
        spans = {name: count * wide[name] for name, count in cells.items()}
        head = " " * margin + "│" + "│".join(name.center(width) for name, width in spans.items()) + "│"
        rule = "─" * margin + "┼" + "┼".join("─" * width for width in spans.values()) + "┤"
        lines = [self.title, head, rule] if self.title else [head, rule]
        for name, height in rows.items():
            for number, down in enumerate(self._cuts(name, height)):
                marks = {key: [self._shade(down, across) * wide[key] for across in self._cuts(key, cells[key])] for key in cells}
                shown = "│".join("".join(part) for part in marks.values())
                lines.append((name if number == 0 else "").ljust(margin) + "│" + shown + "│")
            lines.append(rule)
        return "\n".join(lines)

    def figure(self) -> Any:
        """The picture as a matplotlib figure, for notebooks."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        axes.imshow(self.table, cmap="Greys", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        ends = torch.tensor(list(self.lengths.values())).cumsum(0).tolist()
        middles = [end - length / 2 - 0.5 for end, length in zip(ends, self.lengths.values(), strict=True)]
        axes.set_xticks(middles, list(self.lengths))
        axes.set_yticks(middles, list(self.lengths), rotation=90, va="center")
        for end in ends[:-1]:
            axes.axvline(end - 0.5, color="tab:blue", linewidth=1)
            axes.axhline(end - 0.5, color="tab:blue", linewidth=1)
        axes.set(xlabel="is seen", ylabel="sees", title=self.title)
        return figure

    def _repr_png_(self) -> bytes:
        """How a notebook shows it."""
        written = io.BytesIO()
        self.figure().savefig(written, format="png", dpi=100)
        return written.getvalue()

    def _cuts(self, name: str, parts: int) -> list[slice]:
        """A modality's tokens in ``parts`` nearly equal runs."""
        start = 0
        for other, length in self.lengths.items():
            if other == name:
                edges = [start + length * part // parts for part in range(parts + 1)]
                return [slice(*pair) for pair in pairwise(edges)]
            start += length
        raise ValueError(f"the picture has no {name}; it has {', '.join(self.lengths)}")

    def _shade(self, down: slice, across: slice) -> str:
        seen = float(self.table[down, across].float().mean())
        return SHADES[0] if seen == 0 else SHADES[-1] if seen == 1 else SHADES[min(3, 1 + int(seen * 3))]


Pair = tuple[tuple[str, ...], tuple[str, ...]]  # rows of modalities: queries, keys


def join(pairs: Mapping[Pair, Tensor | None], lengths: Mapping[str, int], title: str) -> Picture:
    """One picture of several tables, each between a row of modalities and another; what none of them holds is not seen."""
    places, start = {}, 0
    for name, length in lengths.items():
        places[name] = torch.arange(start, start + length)
        start += length
    table = torch.zeros((start, start), dtype=torch.bool)
    for (queries, keys), part in pairs.items():
        down, across = (torch.cat([places[name] for name in order]) for order in (queries, keys))
        here = torch.ones((len(down), len(across)), dtype=torch.bool) if part is None else part
        table[down[:, None], across] |= here
    return Picture(table, dict(lengths), title)
