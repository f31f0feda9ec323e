"""Processes of one training, forked from the test (which has everything imported) as torchrun or SLURM would start them."""

import os
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

needs_fork = pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used CUDA cannot be forked")
HEAP = (b"malloc(): ", b"free(): ", b"double free", b"corrupted ")  # how glibc says that a heap is broken


def environment(kind, rank, count, port):
    """What torchrun, or srun, tells a process: of one machine, or (``nodes``) of a machine each."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if kind == "torchrun":
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
        return common | {key: str(value) for key, value in own.items()} | {"TORCHELASTIC_RUN_ID": "test"}
    where = {"SLURM_LOCALID": 0, "SLURM_NODEID": rank} if kind == "nodes" else {"SLURM_LOCALID": rank, "SLURM_NODEID": 0}
    own = {"SLURM_PROCID": rank, "SLURM_NTASKS": count, "SLURM_JOB_ID": 4242, "SLURM_NODELIST": "127.0.0.1", **where}
    each = 1 if kind == "nodes" else count
    own |= {"SLURM_NTASKS_PER_NODE": each, "SLURM_STEP_NUM_TASKS": count}
    return common | {key: str(value) for key, value in own.items()} | {"SLURM_JOB_NAME": "nava"}


def together(work, kind="torchrun", count=2, limit_s=90, repeatable=False):
    """Run ``work(rank)`` in every process; returns their exit codes. One that hangs fails the test.

    ``repeatable`` work may be done twice, and is where a process ends with the words of a broken heap. Nothing of ours is native
    code, so a library broke it, as happened once under fsdp on CPUs (LOG.md). It is told. Any other end is the test's to judge.
    """
    with tempfile.TemporaryDirectory() as folder:
        codes, words = _together(work, kind, count, limit_s, Path(folder))
        aborted = [said for code, said in zip(codes, words, strict=True) if code == -signal.SIGABRT]
        if repeatable and any(mark in said for said in aborted for mark in HEAP):
            warnings.warn(f"a library broke a heap ({codes}): tried once more", stacklevel=2)
            codes, _ = _together(work, kind, count, limit_s, Path(folder))
    return codes


def _together(work, kind, count, limit_s, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            _be(rank, work, environment(kind, rank, count, port), folder / str(rank))
        children.append(child)
    codes, until = {}, time.monotonic() + limit_s
    while len(codes) < count and time.monotonic() < until:
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.02)
    for child in children:
        if child not in codes:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    words = [(folder / str(rank)).read_bytes() for rank in range(count)]
    for said in words:
        os.write(2, said)
    assert len(codes) == count, f"{count - len(codes)} of {count} processes hung for {limit_s} s"
    return [codes[child] for child in children], words


def _be(rank, work, variables, words):
    """Be one of the processes; what it says of errors goes to a file."""
    code = 1
    try:
        os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        os.environ.update(variables)
        rank_zero_only.rank = rank
        work(rank)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
