"""How a command ends that somebody ends, by SIGTERM or Ctrl-C, and what is then said (no Lightning here: commands start fast)."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nava_lab.training.settings import TERMINATED

SAID = "at the end: "


class Asked:
    """Whether SIGTERM came while it was listened for: for what must not be broken off, and ends when it can."""

    def __init__(self) -> None:
        self.yes = False

    def listen(self) -> None:
        """Also in a process that was begun (Lightning's ddp_spawn) by the one that listens."""
        _take(self._hear)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear SIGTERM, and leave it afterwards to who had it before."""
        with _taken(self._hear):
            yield

    def _hear(self, *_: Any) -> None:
        self.yes = True


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """SIGTERM ends what is being done as an error would: locks are let go, what runs beside is ended, the status is told."""
    with _taken(lambda *_: sys.exit(TERMINATED)):
        yield


@contextmanager
def _taken(handler: Callable[..., Any]) -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    _take(handler)
    try:
        yield
    finally:
        _take(before)


def _take(handler: Any) -> None:
    """Give SIGTERM to a handler; Python lets the main thread alone do so, and nobody put back what was not Python's."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def note_end(error: BaseException, words: str) -> None:
    """Tell Ctrl-C, or the end that SIGTERM asks for, what is to be said of it; who is nearest to the work has said it."""
    if not any(note.startswith(SAID) for note in getattr(error, "__notes__", ())):
        error.add_note(f"{SAID}{words}")


@contextmanager
def noted(words: str) -> Iterator[None]:
    """Whoever ends this is told so much, unless something within knows more."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ended:
        note_end(ended, words)
        raise


def said(error: BaseException, what: str) -> str:
    """How a command ended, and what was noted of it."""
    notes = [note.removeprefix(SAID) for note in getattr(error, "__notes__", ()) if note.startswith(SAID)]
    return "; ".join([what, *notes])
