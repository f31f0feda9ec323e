"""What may befall a training: numbers that are none, and how far an error came."""

from __future__ import annotations

import math
from collections.abc import Iterator

STEP = "steps trained: "


def not_finite(loss: float, step: int) -> str:
    """What is to be said of a loss that is none; empty for one that is."""
    return "" if math.isfinite(loss) else f"the loss is {loss} at step {step}"


def broken(step: int) -> str:
    """What is to be said of weights that are no numbers."""
    return f"weights are infinite or not a number at step {step}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__


def note_step(error: BaseException, step: int) -> None:
    """Tell an error, once, after how many steps of training it came."""
    if step_of(error) is None:
        error.add_note(f"{STEP}{step}")


def step_of(error: BaseException) -> int | None:
    """How many steps had been trained when an error came, as far as it, or what it came from, was told."""
    notes = [note for one in chain(error) for note in getattr(one, "__notes__", ()) if note.startswith(STEP)]
    return int(notes[0].removeprefix(STEP)) if notes else None
