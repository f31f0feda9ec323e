"""Processes of one training, forked from the test (which has everything imported) as torchrun or SLURM would start them."""

import os
import signal
import socket
import time
import traceback
import warnings

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

needs_fork = pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used CUDA cannot be forked")
CRASHES = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS}


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


def together(work, kind="torchrun", count=2, limit_s=90):
    """Run ``work(rank)`` in every process; returns their exit codes. One that hangs fails the test.

    Nothing of ours is native code, so a process that ends in a broken heap, or outside its memory, was ended by a library, as
    happened once under fsdp on CPUs (LOG.md). That says nothing of what is tested; it is told, and tried once more.
    """
    codes = _together(work, kind, count, limit_s)
    if CRASHES & {*codes}:
        warnings.warn(f"processes ended with {codes}: a library has crashed; tried once more", stacklevel=2)
        codes = _together(work, kind, count, limit_s)
    return codes


def _together(work, kind, count, limit_s):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            code = 1
            try:
                os.environ.update(environment(kind, rank, count, port))
                rank_zero_only.rank = rank
                work(rank)
                code = 0
            except SystemExit as error:
                code = int(error.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
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
    assert len(codes) == count, f"{count - len(codes)} of {count} processes hung for {limit_s} s"
    return [codes[child] for child in children]
