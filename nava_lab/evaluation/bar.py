"""How far a scoring is, on the screen."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import Progress, TaskID


def bar(shown: bool, name: str) -> Callable[[str, int, int], None] | None:
    """A rich bar for each part of a scoring, as ``evaluate`` tells it; None for none."""
    if not shown:
        return None
    shows = Progress(transient=True)
    tasks: dict[str, TaskID] = {}

    def advance(what: str, done: int, of: int) -> None:
        if what not in tasks:
            shows.start()
            tasks[what] = shows.add_task(f"{name}: {what}", total=of)
        shows.update(tasks[what], completed=done)
        if done >= of:
            shows.stop()

    return advance
