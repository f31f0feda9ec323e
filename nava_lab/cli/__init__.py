"""The command line. Listing and help import nothing heavy; every mistake ends in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from nava_lab.cli.catalogue import catalogue
from nava_lab.memory import keep_memory
from nava_lab.registry import UnknownName, nearest
from nava_lab.training.ending import said, sigterm_ends
from nava_lab.training.quiet import quieten
from nava_lab.training.settings import TERMINATED

COMMANDS = sorted(file.stem for file in (Path(__file__).parent / "commands").glob("[a-z]*.py"))
FIRST = ("train", "describe", "sample", "score", "compare", "study", "bench")  # the order of the help; others follow by name
SETTABLE = ("train", "describe", "demo", "study")  # whose help lists every setting


def command(name: str) -> ModuleType:
    """The file of a command."""
    return import_module(f"nava_lab.cli.commands.{name}")


def usage() -> str:
    ordered = [name for name in FIRST if name in COMMANDS] + [name for name in COMMANDS if name not in FIRST]
    return (
        "nava: compare joint audio-video generators at equal parameters, compute and data\n\n"
        + "".join(command(name).USAGE for name in ordered)
        + "\n`nava train --help` lists what can be set. RUN is a run's folder.\n\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``nava``."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice on a setting that nobody here can change
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage() + catalogue(short=True))
        return
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from nava_lab import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        _fail(f"there is no command '{name}'; {nearest(name, COMMANDS)}")
    if any(part in ("-h", "--help") for part in rest):
        in_one_line(lambda: print(usage() + catalogue(short=name not in SETTABLE), flush=True))
    else:
        in_one_line(lambda: command(name).main(rest))


def in_one_line(call: Callable[[], int | None]) -> None:
    """A command, or a script of ``sweeps/``: a mistake ends in one line and an exit code, a bug in its traceback."""
    quieten()
    keep_memory()
    try:
        with sigterm_ends():
            code = call()
    except BrokenPipeError:  # whoever read the output (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (ValueError, UnknownName, OSError, FloatingPointError, SyntaxError, MemoryError) as error:
        if os.environ.get("NAVA_DEBUG"):
            raise
        _fail(str(error))
    except RuntimeError as error:
        from nava_lab.study.failures import RunFailed

        if not isinstance(error, RunFailed) or os.environ.get("NAVA_DEBUG"):  # any other is a bug, and wants its traceback
            raise
        _fail(str(error), 1)
    except KeyboardInterrupt as stopped:
        _fail(said(stopped, "stopped"), 130)
    except SystemExit as ended:
        if ended.code == TERMINATED:
            _fail(said(ended, "ended, as SIGTERM asks"), TERMINATED)
        raise
    if code:
        raise SystemExit(code)


def _fail(message: str, code: int = 2) -> None:
    print(f"nava: {message}", file=sys.stderr)
    raise SystemExit(code)
