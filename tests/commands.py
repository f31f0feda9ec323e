"""``nava`` as a process of its own, without the seconds that a new one takes to import everything: a fork of the test's."""

import faulthandler
import os
import signal
import sys
import time
import traceback
from subprocess import CompletedProcess

import torch

from nava_lab.cli import main


def forked(words, cwd, out, limit_s=400):
    """Run ``nava WORDS`` in ``cwd``, with one thread and what it says kept in files of the folder ``out``.

    Needs a process that has not used CUDA (``tests.ranks.needs_fork``). One that hangs fails the test.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "out", out / "err"]
    child = os.fork()
    if not child:
        _be(list(map(str, words)), cwd, files)
    until = time.monotonic() + limit_s
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"nava {' '.join(map(str, words))} hung for {limit_s} s: {files[1].read_text()}")
        time.sleep(0.01)
    return CompletedProcess(words, os.waitstatus_to_exitcode(found[1]), *(file.read_text() for file in files))


def _be(words, cwd, files):
    """The child: to its end, and not one step into the test's."""
    code = 1
    try:
        faulthandler.enable(sys.__stderr__)
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.chdir(cwd)
        torch.set_num_threads(1)
        main(words)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
