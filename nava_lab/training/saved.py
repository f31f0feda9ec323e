"""Checkpoints on disk: a file, or, of a sharded training, a folder of shards. Each is there whole or not at all.

Both say the same in the same layout (Lightning's, by names and numbers of parameters), so that what one kind of machine wrote
another continues: ``whole`` reads either as full tensors, ``Sharded`` (``training/sharding.py``) either as shards.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

SUFFIX = ".ckpt"
ABOUT = "about.pt"  # of a folder: everything that is no tensor, and where the tensors belong
SHARD = ".distcp"
UNREAD = "unread-"  # what could not be read is kept by that name
FULL = (errno.ENOSPC, errno.EDQUOT)

Tell = Callable[[str], None]
Keys = tuple[str | int, ...]


class Files(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints here: whole or not at all, and sharded ones as one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_whole(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return whole(Path(path))


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file beside its place and move it there once it lies on the disk.

    A process that is killed at any moment leaves the file that was there before, or none. What is left of a write that failed
    is removed, so that a full disk gets its room back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        with temporary.open("wb") as file:
            try:
                write(file)
            except RuntimeError as error:
                if full_disk(error):
                    raise no_room(path) from error
                raise
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir():  # shards, of the same step, that could not be read
            remove(path)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    settle(path.parent)


def full_disk(error: BaseException) -> bool:
    """Whether a disk takes no more: as the system says it, or torch's writer of archives."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, RuntimeError) and "writ" in str(error) and "fail" in str(error)


def no_room(path: Path) -> OSError:
    return OSError(errno.ENOSPC, "writing failed, as on a full disk", str(path))


@contextmanager
def spoken(path: Path) -> Iterator[None]:
    """Say what went wrong with a sharded checkpoint as an error like any other, the same one in every process.

    torch gathers what every process met in an error that is none of Python's ``Exception``, which nobody would catch.

    Raises:
        OSError: with ENOSPC, where some process found the disk full.
        RuntimeError: from what the first process met.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        met = {rank: one for rank, (one, _) in sorted(error.failures.items())}
        rank, first = next(iter(met.items()))
        if any(map(full_disk, met.values())):
            raise no_room(path) from next(one for one in met.values() if full_disk(one))
        if not isinstance(first, Exception):  # Ctrl-C
            raise first from None
        raise RuntimeError(f"{path}: process {rank} met {type(first).__name__}: {first}") from first


def unfinished(path: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return path.with_name(f".{path.name}.tmp")


def settle(folder: Path) -> None:
    """Have the names in a folder, or what a file holds, outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Take a checkpoint away; a kill in the middle leaves nothing that looks like one."""
    gone = path.with_name(f".gone-{path.name}.tmp")
    if path.is_dir():
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Take away what killed writes left behind."""
    for left in folder.glob(f".*{SUFFIX}.tmp"):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def numbered(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first; readable or not."""
    return sorted(folder.glob(f"[0-9]*{SUFFIX}"), reverse=True)


def newest_checkpoint(folder: Path, tell: Tell) -> Path | None:
    """The newest checkpoint that can be read; unreadable ones are named through ``tell`` and passed over."""
    for path in numbered(folder):
        try:
            check(path)
        except Exception as error:  # whatever a torn file raises, the next older one may still serve
            tell(f"{path} cannot be read ({type(error).__name__}); trying an older one")
            continue
        return path
    return None


def readable(path: Path) -> Path | None:
    """A checkpoint, or None where it is not there or cannot be read."""
    try:
        check(path)
    except Exception:  # whatever a torn file raises
        return None
    return path


def give_up(folder: Path, step: int, tell: Tell) -> None:
    """Take the checkpoints that are newer than a step out of the way of a training that goes on from it.

    Its log is cut there, so one that is newer must not be continued from, also where it could not be read this once. What can be
    read is removed, for the training comes by there again; what cannot is kept under another name.
    """
    for path in numbered(folder):
        if int(path.stem) <= step:
            continue
        try:
            check(path)
        except Exception as error:  # whatever a torn file raises
            aside = path.with_name(f"{UNREAD}{path.name}")
            remove(aside)
            os.replace(path, aside)
            tell(f"{path} cannot be read ({type(error).__name__}): kept as {aside.name}; steps from {step} on are trained again")
            continue
        remove(path)
        tell(f"{path} is given up: the training goes on from step {step}, and comes by there again")


def check(path: Path) -> None:
    """Raise whatever a checkpoint that is not whole raises, without reading its tensors."""
    if path.is_file():
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return
    about(path)
    from torch.distributed.checkpoint import FileSystemReader

    for place in FileSystemReader(path).read_metadata().storage_data.values():
        if (path / place.relative_path).stat().st_size < place.offset + place.length:
            raise OSError(f"{path / place.relative_path} is cut short")


def about(path: Path) -> dict[str, Any]:
    """What a sharded checkpoint keeps besides its tensors: ``rest``, with holes, and ``places``, which tensor fills which."""
    found: dict[str, Any] = torch.load(path / ABOUT, map_location="cpu", weights_only=True)
    return found


def whole(path: Path) -> dict[str, Any]:
    """A checkpoint with full tensors on the CPU, be it a file or a folder of shards; needs no process group."""
    if path.is_file():
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return found
    import torch.distributed.checkpoint as dcp

    kept = about(path)
    tensors = {key: torch.empty(size, dtype=dtype) for key, (size, dtype) in described(path).items()}
    with spoken(path):
        dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return joined(kept["rest"], {tuple(kept["places"][key]): part for key, part in tensors.items()})


def described(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Full shape and type of every tensor of a sharded checkpoint."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    known = FileSystemReader(path).read_metadata().state_dict_metadata
    return {key: (part.size, part.properties.dtype) for key, part in known.items() if isinstance(part, TensorStorageMetadata)}


def parted(value: Any, keys: Keys = ()) -> tuple[Any, dict[Keys, Tensor]]:
    """Nested mappings and lists without their tensors, in whose places is None, and those tensors by their keys."""
    if isinstance(value, Tensor):
        return None, {keys: value}
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    split = {key: parted(part, (*keys, key)) for key, part in inside}
    tensors = {place: tensor for _, found in split.values() for place, tensor in found.items()}
    if not tensors:
        return value, {}
    rest = {key: part for key, (part, _) in split.items()}
    return (rest if isinstance(value, Mapping) else list(rest.values())), tensors


def joined(rest: Any, tensors: Mapping[Keys, Tensor]) -> Any:
    """The inverse of ``parted``; fills ``rest`` itself."""
    for keys, tensor in tensors.items():
        inner = rest
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = tensor
    return rest
