"""Safetensors on disk, one file or shards with an index: names and shapes first, then one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
CONFIG = "config.json"


@dataclass(frozen=True)
class Tensors:
    """A checkpoint's tensors, none of them read.

    Attributes:
        path: the file, index or folder that was named.
        where: the file that holds each tensor.
        shapes: of each tensor.
        config: what the source says of itself: the header's ``config`` of a file (LTX-2), or the config.json beside it.
        config_at: where that was found; empty where it says nothing.
    """

    path: Path
    where: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    config: Mapping[str, Any] = field(default_factory=dict)
    config_at: str = ""

    @staticmethod
    def at(path: str | Path) -> Tensors:
        """Names and shapes of a file, of an index, or of a folder that holds one of them.

        Raises:
            ValueError: what is missing or no safetensors file, by name.
        """
        files = shards(Path(path))
        where: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        told = ""
        for file in files:
            try:
                with safe_open(file, "pt") as opened:
                    told = told or (opened.metadata() or {}).get("config", "")
                    for key in opened.keys():  # noqa: SIM118 - the reader is no mapping
                        where[key], shapes[key] = file, tuple(opened.get_slice(key).get_shape())
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is no safetensors file that can be read ({error}): fetch it again") from None
        return Tensors(Path(path), where, shapes, *_config(files[0], told))

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, shard by shard, one in memory at a time."""
        wanted: dict[Path, list[str]] = {}
        for key in dict.fromkeys(keys):
            wanted.setdefault(self.where[key], []).append(key)
        for file, names in wanted.items():
            with safe_open(file, "pt") as opened:
                for name in names:
                    yield name, opened.get_tensor(name)


def _config(file: Path, told: str) -> tuple[Mapping[str, Any], str]:
    """What a checkpoint says of itself, and where; nested as LTX-2's header has it, its transformer's part."""
    beside = file.parent / CONFIG
    if not told and not beside.is_file():
        return {}, ""
    where = f"the header of {file.name}" if told else str(beside)
    try:
        found = json.loads(told or beside.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{where} is no config of a model (a JSON mapping): mend it, or move the weights away from it")
    inner = found.get("transformer", found)
    return (inner if isinstance(inner, dict) else found), where


def shards(path: Path) -> list[Path]:
    """The files of a checkpoint."""
    if not path.exists():
        raise ValueError(f"{path} does not exist: name a {SUFFIX} file, its {INDEX} or the folder that holds them")
    if path.is_dir():
        indices, files = sorted(path.glob(f"*{INDEX}")), sorted(path.glob(f"*{SUFFIX}"))
        if len(indices) == 1:
            return shards(indices[0])
        if len(files) == 1:
            return files
        found = f"{len(indices)} indices and {len(files)} {SUFFIX} files"
        raise ValueError(f"{path} holds {found}: name the one {INDEX} or file that is meant")
    if path.name.endswith(INDEX):
        try:
            names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            raise ValueError(f"{path} is no index of shards (it has no weight_map)") from None
        missing = [name for name in names if not (path.parent / name).exists()]
        if missing:
            raise ValueError(f"{path} names {len(names)} shards, of which {', '.join(missing)} are missing beside it")
        return [path.parent / name for name in names]
    if path.suffix != SUFFIX:
        raise ValueError(f"{path} is no {SUFFIX} file: convert it, or name the {INDEX} of its shards")
    return [path]


def digest(path: str | Path) -> str:
    """What a checkpoint holds, as part of a run's identity: every byte of its shards, and the config beside them.

    A file is read once per process and state (size, times, inode): a study that starts many runs from it does not wait again.
    """
    files = shards(Path(path))
    beside = files[0].parent / CONFIG
    found = hashlib.sha256()
    for file in (*files, *([beside] if beside.is_file() else [])):
        state = file.stat()
        found.update(_hash(file, (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)))
    return found.hexdigest()[:12]


@lru_cache(256)
def _hash(file: Path, state: tuple[int, ...]) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
