"""``nava suite``: what true clips score on every world, and what chance scores; 1 where a score is not what it should be."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from nava_lab.config import load
from nava_lab.evaluation.floor import floors, turn_floors
from nava_lab.evaluation.suite import Row, exact_scores
from nava_lab.registry import nearest, worlds
from nava_lab.report.numbers import interval
from nava_lab.worlds.base import DIFFICULTIES

CLIPS = 256


def procedural() -> list[str]:
    """The worlds whose clips are known exactly; the others need files."""
    return [name for name in worlds if not worlds.get(name).SHORTCUTS]


def main(arguments: Sequence[str]) -> int:
    """Print a table, or with ``--json`` the rows."""
    if "--floor" in arguments:
        return _print_floor([part for part in arguments if part != "--floor"])
    names, difficulties, clips = _read(arguments)
    began, rows = time.monotonic(), []
    with one_thread():
        for name in names:
            for difficulty in difficulties:
                config = load([f"world={name}", f"difficulty={difficulty}"])
                rows += [(difficulty, row) for row in exact_scores(config.world, clips)]
    seconds = time.monotonic() - began
    if "--json" in arguments:
        print(json.dumps({"clips": clips, "seconds": round(seconds, 1), "rows": [_plain(*pair) for pair in rows]}, indent=2))
    else:
        print("\n".join(_lines(rows)))
        wrong = [f"{row.world} {row.score}{'' if row.defined else ' (not defined)'}" for _, row in rows if not row.holds]
        print(f"{clips} test clips, {seconds:.0f} s; not as it should be: {', '.join(wrong) or 'none'}")
    return int(not all(row.holds for _, row in rows))


@contextmanager
def one_thread() -> Iterator[None]:
    """Tensors as small as a world's gain nothing by several threads, and where other work goes on these wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _print_floor(arguments: Sequence[str]) -> int:
    """How far the decoders themselves are from the truth."""
    if arguments:
        raise ValueError(f"--floor stands alone, without {' '.join(arguments)}: the decoders are the same for every world")
    print(f"{'decoder of':10} noise   median   95th percentile   clips miscounted, boundaries missed")
    for row in [*floors(worlds.get("pulse")()), *turn_floors(worlds.get("speakers")())]:
        print(f"{row.modality:10} {row.sigma:5g} {row.median:6.1f} ms {row.tail:14.1f} ms   {row.miscounted:16.1%}")
    return 0


def _read(arguments: Sequence[str]) -> tuple[list[str], list[str], int]:
    """Worlds, difficulties and clips; ValueError for what is none of these."""
    known, names, difficulties, clips = procedural(), [], ["medium"], CLIPS
    queue = [part for part in arguments if part != "--json"]
    while queue:
        part = queue.pop(0)
        key, _, value = part.partition("=")
        if key in ("--difficulty", "--clips"):
            value = value or (queue.pop(0) if queue else "")
            if key == "--clips":
                if not value.isdigit() or int(value) < 2:
                    raise ValueError(f"--clips={value} must be a whole number of at least 2")
                clips = int(value)
                continue
            difficulties = list(DIFFICULTIES) if value == "all" else value.split(",")
            for difficulty in difficulties:
                if difficulty not in DIFFICULTIES:
                    raise ValueError(f"--difficulty={difficulty}: {nearest(difficulty, ['all', *DIFFICULTIES])}")
        elif part in known:
            names.append(part)
        else:
            raise ValueError(
                f"there is no procedural world {part}; {nearest(part, known)}; options: --difficulty, --clips, --json"
            )
    return names or known, difficulties, clips


def _plain(difficulty: str, row: Row) -> dict[str, object]:
    return {
        "world": row.world,
        "difficulty": difficulty,
        "given": row.given,
        "score": row.score,
        "truth": row.truth.to_json(),
        "chance": row.chance.to_json(),
        "expected": {"truth": row.expected[0], "chance": row.expected[1]},
        "holds": row.holds,
    }


def _lines(rows: Sequence[tuple[str, Row]]) -> list[str]:
    """A table that fits a narrow terminal."""
    several = len({difficulty for difficulty, _ in rows}) > 1
    lines = [f"{'':20} {'':15} {'true clips':17} {'at chance':19}  should be"]
    for difficulty, row in rows:
        label = row.world + (f" {difficulty}" if several else "") + (f", {row.given} given" if row.given else "")
        truth, chance = (interval(score.to_dict(), 2) for score in (row.truth, row.chance))
        one, nought = row.expected
        lines.append(f"{label:20} {row.score:15} {truth:17} {chance:19}  {one:g} | {nought:g}{'' if row.holds else '  NO'}")
    return lines
