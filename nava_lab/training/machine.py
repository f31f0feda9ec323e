"""What a training runs on: Lightning's strategy and surroundings for a number of devices, and how a layer is computed."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import nn
from torch.utils.checkpoint import checkpoint

from nava_lab.training.saved import Files
from nava_lab.training.settings import TERMINATED
from nava_lab.training.sharding import Sharded

GRAPHS = 64  # of one function; torch's own limit of 8 is soon reached, and then nothing more is compiled


@dataclass(frozen=True)
class Devices:
    """How many devices of what kind.

    Attributes:
        accelerator: "cpu" or "cuda".
        each: devices (on a CPU: processes) per machine.
        nodes: machines.
        strategy: "ddp" (each holds all weights), "fsdp" (each a shard), or another of Lightning's by name.
    """

    accelerator: str
    each: int
    nodes: int = 1
    strategy: str = "auto"

    @property
    def count(self) -> int:
        return self.each * self.nodes

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp"

    def lightning(self) -> Strategy | str:
        """Lightning's strategy.

        Some weights get no gradient in some architectures, or in some steps; DDP would wait for them for ever unless it looks
        which were used. That is a walk over the graph per step, and right whatever the architecture.
        """
        if self.strategy == "ddp":
            return DDPStrategy(find_unused_parameters=True)
        return Sharded(self.count) if self.sharded else self.strategy

    def plugins(self) -> list[Any]:
        """Surroundings and checkpoint files, as Lightning's trainer takes them."""
        return [part for part in (surroundings(), None if self.sharded else Files()) if part is not None]


def surroundings() -> ClusterEnvironment | None:
    """Who starts the processes: torchrun, SLURM, or (None: as Lightning finds) this one.

    Lightning is not asked to save for SLURM when time runs out: a run that gets SIGTERM saves itself (``Checkpoints``), and two
    sets of checkpoints would compete. A job of one task starts its further processes itself.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not SLURMEnvironment.detect():
        return None
    if int(os.environ["SLURM_NTASKS"]) == 1:
        return LightningEnvironment()
    try:
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:  # of a job's settings
        raise ValueError(str(error)) from None


def _by_lightning(found: ClusterEnvironment | None) -> bool:
    """Whether Lightning starts the processes; in those that it has started, its own surroundings say that somebody else does."""
    return found is None or isinstance(found, LightningEnvironment)


def meet(devices: Devices) -> None:
    """Join the processes that somebody else started, before any of them writes; Lightning goes on with the same group.

    Those that Lightning starts are started when the first has already prepared everything, and need not meet.
    """
    found = surroundings()
    if found is None or _by_lightning(found) or dist.is_initialized():
        return
    if found.world_size() != devices.count:
        raise ValueError(
            f"{found.world_size()} processes were started for trainer.devices={devices.each} on trainer.nodes={devices.nodes}: "
            "set both to what was started (and trainer=ddp or fsdp)"
        )
    if devices.count == 1:
        return
    os.environ.setdefault("MASTER_ADDR", found.main_address)
    os.environ.setdefault("MASTER_PORT", str(found.main_port))
    on_gpu = devices.accelerator == "cuda"
    if on_gpu:
        torch.cuda.set_device(found.local_rank())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, rank=found.global_rank(), world_size=found.world_size())


def wait_for_all() -> None:
    """Return when every process that has met is here."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def of_first(value: Any) -> Any:
    """What the first of the processes that have met holds, in each of them; of those that have not, each its own."""
    held = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(held)
    return held[0]


class Signals(_SignalConnector):
    """The signals that Lightning takes while it trains: all but SIGTERM, which stays with who listens for it (``Asked``).

    Lightning would broadcast in the midst of whatever the processes exchange, and end each of them where it happens to be.
    """

    @staticmethod
    def _register_signal(signum: Any, handlers: Any) -> None:
        if signum != signal.SIGTERM:
            _SignalConnector._register_signal(signum, handlers)


def end_together() -> NoReturn:
    """End this process as all of its training do now, because somebody asked for it (SIGTERM).

    What Lightning started beside the first process of a machine ends with 0: any other status of theirs is a crash to its
    observer, which then kills the first, within 5 s, before that has told its own.
    """
    found = surroundings()
    beside = _by_lightning(found) and int(os.environ.get("LOCAL_RANK", 0)) > 0
    raise SystemExit(0 if beside else TERMINATED)


def prepare_layers(network: nn.Module, compiled: bool, checkpointed: bool) -> None:
    """How each layer (``network.blocks``) is computed; outputs and gradients stay what they are.

    Args:
        network: changed in place; its parameters' names are not.
        compiled: by ``torch.compile``, all layers of one kind from one graph.
        checkpointed: keep a layer's inputs alone and compute the rest again in the backward pass.
    """
    if compiled:  # layers of different kinds share one function, and each kind is a graph with gradients and one without
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for block in network.blocks:  # type: ignore[union-attr]
        if compiled:
            block.forward = _Compiled(block.forward)
        if checkpointed:
            block.forward = _Again(block.forward)


class _Compiled:
    """A layer's forward pass as one graph.

    Layers share what they read of a forward pass (masks, rotary tables), and whoever asks first computes it. That is done
    before the graph is entered, or the first layer's would be another one than a later layer's, and than its own when it is
    computed again in the backward pass. What a layer asks is seen the first time that it meets these modalities.
    """

    def __init__(self, forward: Any):
        self.plain, self.compiled = forward, torch.compile(forward)
        self.asks: dict[tuple, dict[tuple, tuple]] = {}

    def __call__(self, x: Any, given: Any) -> Any:
        meets = (*x, given.text_visible)
        if meets not in self.asks:
            with torch.no_grad():
                self.plain(x, given)
            self.asks[meets] = given.known()
        given.recall(self.asks[meets])
        return self.compiled(x, given)


class _Again:
    """A layer's forward pass that is computed a second time in the backward pass instead of being remembered."""

    def __init__(self, forward: Any):
        self.forward = forward

    def __call__(self, *inputs: Any) -> Any:
        # Layers draw nothing at random, so no generator's state need be kept.
        return checkpoint(self.forward, *inputs, use_reentrant=False, preserve_rng_state=False)


def check_compiler(accelerator: str) -> None:
    """Refuse, before any work, to compile for a CPU without a C++ compiler."""
    wanted = os.environ.get("CXX", "g++")
    if accelerator == "cpu" and not any(map(shutil.which, (wanted, "clang++", "c++"))):
        raise ValueError("trainer.compile=true on a CPU needs a C++ compiler: apt-get install g++, or leave it off")


def leave() -> int:
    """End the process group, so that the first process may go on alone; returns this one's rank."""
    if not dist.is_initialized():
        return 0
    rank = dist.get_rank()
    with suppress(RuntimeError):  # a process of the group that is gone already
        dist.destroy_process_group()
    return rank
