"""Safetensors on disk, one file or shards with an index: names and shapes first, then one tensor at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
SAMPLES, SAMPLE = 64, 65_536  # places of a file that its digest reads, and bytes at each


@dataclass(frozen=True)
class Tensors:
    """A checkpoint's tensors, none of them read.

    Attributes:
        path: the file, index or folder that was named.
        where: the file that holds each tensor.
        shapes: of each tensor.
    """

    path: Path
    where: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]

    @staticmethod
    def at(path: str | Path) -> Tensors:
        """Names and shapes of a file, of an index, or of a folder that holds one of them.

        Raises:
            ValueError: what is missing or no safetensors file, by name.
        """
        files = shards(Path(path))
        where: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                with safe_open(file, "pt") as opened:
                    for key in opened.keys():  # noqa: SIM118 - the reader is no mapping
                        where[key], shapes[key] = file, tuple(opened.get_slice(key).get_shape())
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is no safetensors file that can be read ({error}): fetch it again") from None
        return Tensors(Path(path), where, shapes)

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, shard by shard, one in memory at a time."""
        wanted: dict[Path, list[str]] = {}
        for key in dict.fromkeys(keys):
            wanted.setdefault(self.where[key], []).append(key)
        for file, names in wanted.items():
            with safe_open(file, "pt") as opened:
                for name in names:
                    yield name, opened.get_tensor(name)


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
    """What a checkpoint holds, as part of a run's identity: sizes, headers and bytes from 64 places of every shard."""
    found = hashlib.sha256()
    for file in shards(Path(path)):
        size = file.stat().st_size
        found.update(f"{size}\n".encode())
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
            found.update(opened.read(min(header, size)))
            for place in range(SAMPLES):
                opened.seek(max(0, size - SAMPLE) * place // (SAMPLES - 1))
                found.update(opened.read(SAMPLE))
    return found.hexdigest()[:12]
