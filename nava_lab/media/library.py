"""A folder of video files, each decoded once into a cache of small tensors and read from there window by window.

    FOLDER/any/depth/film.mp4 -> FOLDER/.nava-cache/<key>.safetensors    frames ``t h w 3`` uint8, bands ``n f`` float32

The key holds the file's relative path, size and time of change and the settings: a changed file is decoded again. A
folder that may not be written to (its permission bits count, even for root) has its cache in the user's cache folder.

Shape letters: t frames, h w pixels, n frames of bands, f bands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nava_lab.media.codecs import MelCodec
from nava_lab.media.decode import UnusableClip, read_clip

SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
CACHE = ".nava-cache"
FORMAT = "1"  # changes whenever decoding or the codecs give other tensors


@dataclass(frozen=True)
class Settings:
    """What decides how a file looks in the cache.

    Attributes:
        video_hz: pictures per second.
        size: pixels along an edge of the square picture.
        mel: the sound's codec.
    """

    video_hz: float
    size: int
    mel: MelCodec


@dataclass(frozen=True)
class Film:
    """A decoded file.

    Attributes:
        name: path relative to the folder, with forward slashes.
        size: bytes of the file.
        digest: hash of its bytes.
        steps: frames of picture and frames of bands.
        cache: where its tensors are.
    """

    name: str
    size: int
    digest: str
    steps: tuple[int, int]
    cache: Path

    def window(self, video: slice, audio: slice) -> tuple[UInt8[Tensor, "t h w 3"], Float[Tensor, "n f"]]:
        """Some frames and some bands; only these are read."""
        with safe_open(self.cache, "pt") as tensors:
            return tensors.get_slice("frames")[video], tensors.get_slice("bands")[audio]


@dataclass(frozen=True)
class Library:
    """The usable files of a folder, in order of their names, and those that are not, with reasons."""

    films: tuple[Film, ...]
    skipped: tuple[UnusableClip, ...]


def hashed(*parts: str) -> str:
    """64 hexadecimal digits of any texts, told apart by their borders."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=32).hexdigest()


def share(name: str) -> float:
    """A number in [0, 1) that depends on a film's name alone, the same on every machine and file system."""
    return int(hashed(unicodedata.normalize("NFC", name))[:13], 16) / 16**13


def video_files(folder: Path, unreadable: Callable[[OSError], object] | None = None) -> list[Path]:
    """Files with a video's suffix, at any depth, without hidden ones and what lies in hidden folders.

    ``unreadable`` is told of each folder that does not open.
    """
    found = []
    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = (name for name in names if not name.startswith("."))
        found += [Path(root, name) for name in shown if Path(name).suffix.lower() in SUFFIXES]
    return sorted(found)


def open_library(folder: Path, settings: Settings, least_s: float) -> Library:
    """Every film of ``folder``, decoding what the cache lacks; names the skipped ones on standard error.

    Args:
        folder: an existing folder.
        settings: how to decode.
        least_s: seconds below which a film is of no use.
    """
    console = Console(file=sys.stderr)
    films: list[Film] = []
    skipped: list[UnusableClip] = []
    files = video_files(folder, lambda error: skipped.append(UnusableClip(error.filename, f"unreadable ({error.strerror})")))
    for file in track(files, "reading clips", console=console, transient=True, disable=not console.is_terminal):
        try:
            film = _film(folder, file, settings)
            seconds = min(film.steps[0] / settings.video_hz, film.steps[1] / settings.mel.audio_hz)
            if seconds < least_s - 1e-6:
                raise UnusableClip(file, f"only {seconds:.3g} s of picture with sound; a window needs {least_s:g} s")
            films.append(film)
        except UnusableClip as problem:
            skipped.append(problem)
    for clip in skipped:
        _say(console, f"skipped {clip.path.relative_to(folder).as_posix()}: {clip.reason}")
    return Library(tuple(films), tuple(skipped))


def warn(text: str) -> None:
    """A line for the reader of the terminal."""
    _say(Console(file=sys.stderr), f"warning: {text}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _film(folder: Path, file: Path, settings: Settings) -> Film:
    name = file.relative_to(folder).as_posix()
    try:
        state = file.stat()
    except OSError as error:
        raise UnusableClip(file, f"unreadable ({error.strerror})") from error
    if not stat.S_ISREG(state.st_mode):
        raise UnusableClip(file, "not a regular file")
    how = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    key = hashed(FORMAT, os.fsencode(name).hex(), str(state.st_size), str(state.st_mtime_ns), how)[:32]
    for cache in _caches(folder):
        film = _cached(cache / f"{key}.safetensors", name)
        if film is not None:
            return film
    return _decoded(folder, file, name, key, settings)


def _caches(folder: Path) -> Iterator[Path]:
    """Where a folder's tensors may lie: beside the films, or in the user's cache folder."""
    yield folder / CACHE
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    yield Path(home) / "nava-lab" / "clips" / hashed(os.fsencode(folder.resolve()).hex())[:16]


def _cached(path: Path, name: str) -> Film | None:
    """What the cache holds under this path; None where that is nothing, or broken."""
    try:
        with safe_open(path, "pt") as tensors:
            about = tensors.metadata()
            steps = tensors.get_slice("frames").get_shape()[0], tensors.get_slice("bands").get_shape()[0]
            return Film(name, int(about["size"]), about["digest"], steps, path)
    except (OSError, SafetensorError):
        return None  # decoding again is the remedy


def _decoded(folder: Path, file: Path, name: str, key: str, settings: Settings) -> Film:
    with_digest = hashlib.blake2b(digest_size=16)
    try:
        with open(file, "rb") as data:
            while part := data.read(1 << 20):
                with_digest.update(part)
    except OSError as error:
        raise UnusableClip(file, f"unreadable ({error.strerror})") from error
    clip = read_clip(file, video_hz=settings.video_hz, size=settings.size, sample_rate=settings.mel.sample_rate)
    tensors = {
        "frames": torch.from_numpy(clip.frames),
        "bands": settings.mel.encode(torch.from_numpy(clip.sound)[None])[0],
    }
    about = {"name": name, "size": str(file.stat().st_size), "digest": with_digest.hexdigest()}
    path = _store(folder, f"{key}.safetensors", tensors, about)
    return Film(name, int(about["size"]), about["digest"], (len(tensors["frames"]), len(tensors["bands"])), path)


def _store(folder: Path, name: str, tensors: dict[str, Tensor], about: dict[str, str]) -> Path:
    """Write the tensors at once and completely into the first cache that takes them."""
    problems = []
    for cache in _caches(folder):
        draft = cache / f".{secrets.token_hex(8)}.tmp"
        try:
            if cache.parent == folder and not folder.stat().st_mode & 0o222:
                raise PermissionError(None, "not writable", str(folder))
            cache.mkdir(parents=True, exist_ok=True)
            save_file(tensors, draft, about)
            os.replace(draft, cache / name)
            return cache / name
        except (OSError, SafetensorError) as error:
            problems.append(f"{cache} ({error})")
            if draft.exists():
                draft.unlink()
    raise ValueError(f"no place for the cache of decoded clips: {', '.join(problems)}; set XDG_CACHE_HOME to one")
