"""FSDP2: every layer's weights, gradients, moments and average spread over the processes, gathered while it is computed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from nava_lab.training import saved


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a network's weights over a mesh, layer by layer (``network.blocks``), and what is around the layers as one more.

    Nothing stays gathered after a forward pass, not even the outermost part: what validates by averaged weights would
    otherwise leave them behind.
    """
    for block in network.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor on the CPU; of a sharded one every process must ask."""
    found = tensor.detach()
    return (found.full_tensor() if isinstance(found, DTensor) else found).cpu().contiguous()


def by_the_first(strategy: Strategy, work: Callable[[], None]) -> None:
    """Have the first process do something, and all wait for it, and raise what it raises."""
    met: Exception | None = None
    if strategy.is_global_zero:
        try:
            work()
        except Exception as error:  # whatever it is, the others wait to hear of it
            met = error
    met = strategy.broadcast(met)
    if met is not None:
        raise met


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, whose checkpoints are ours: atomic, and readable by any other strategy.

    Args:
        processes: how many share the weights, over all machines.
    """

    def __init__(self, processes: int):
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Every process writes its shards; the folder takes its name when the last one is done.

        Where one process cannot write, all say so alike, and what was written is removed: a full disk gets its room back.
        """
        import torch.distributed.checkpoint as dcp

        path = Path(self.broadcast(filepath))
        temporary = saved.unfinished(path)
        if self.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        self.barrier()
        rest, tensors = saved.parted(checkpoint)
        keyed = {"/".join(map(str, keys)): (keys, part) for keys, part in tensors.items()}
        places = {key: list(keys) for key, (keys, _) in keyed.items()}
        try:
            with saved.spoken(path):
                dcp.save({key: part for key, (_, part) in keyed.items()}, checkpoint_id=temporary)
            by_the_first(self, lambda: _named(temporary, path, {"rest": rest, "places": places}))
        except BaseException:
            if self.is_global_zero:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Each process its shards, of a sharded checkpoint or of a file that holds full tensors."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_file():
            rest, tensors = saved.parted(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
            like = dict(self._like(tensors))
            return saved.joined(rest, {keys: _placed(part, like.get(keys)) for keys, part in tensors.items()})
        import torch.distributed.checkpoint as dcp

        kept, shapes = saved.about(path), saved.described(path)
        places = {key: tuple(keys) for key, keys in kept["places"].items()}
        like = dict(self._like({places[key]: torch.empty(size, device="meta") for key, (size, _) in shapes.items()}))
        found = {}
        for key, (size, dtype) in shapes.items():
            one = like.get(places[key])
            found[key] = torch.empty(size, dtype=dtype) if one is None else torch.zeros_like(one, dtype=dtype)
        with saved.spoken(path):
            dcp.load(found, checkpoint_id=path)
        return saved.joined(kept["rest"], {places[key]: part for key, part in found.items()})

    def _like(self, tensors: Mapping[saved.Keys, Tensor]) -> Iterator[tuple[saved.Keys, DTensor]]:
        """The sharded parameter as whose shards each tensor of a checkpoint is to be read, where there is one."""
        assert self.lightning_module is not None
        named = dict(self.lightning_module.named_parameters())
        ordered = [[part for group in one.param_groups for part in group["params"]] for one in self.optimizers]
        for keys, tensor in tensors.items():
            one = None
            if keys[0] in ("state_dict", "current_model_state"):
                one = named.get(str(keys[1]))
            elif keys[0] == "optimizer_states":
                one = ordered[int(keys[1])][int(keys[3])]
            if isinstance(one, DTensor) and one.shape == tensor.shape:
                yield keys, one.detach()  # type: ignore[misc]


def _named(temporary: Path, path: Path, about: Mapping[str, Any]) -> None:
    """Complete a folder of shards with what is no tensor, and give it its name."""
    saved.write_whole(temporary / saved.ABOUT, lambda file: torch.save(dict(about), file))
    if path.exists():
        saved.remove(path)
    os.replace(temporary, path)
    saved.settle(path.parent)


def _placed(tensor: Tensor, like: DTensor | None) -> Tensor:
    """A full tensor that every process has, as shards of it; no process sends any."""
    if like is None:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
