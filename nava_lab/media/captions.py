"""What is said of video files: a text beside each (``film.mp4``, ``film.txt``), or one file for all.

captions.json    {"deep/film.mp4": "a dog barks at the door", ...}
captions.tsv     deep/film.mp4<TAB>a dog barks at the door
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SIDECAR = "sidecar"


def read_captions(folder: Path, source: str, films: Sequence[str]) -> dict[str, str]:
    """The caption of each film that has one.

    Args:
        folder: where the films are.
        source: "sidecar", or the path of a ``.json`` or ``.tsv`` file, relative to the folder or to where one is.
        films: their names, relative to the folder.

    Raises:
        ValueError: there is no such file, it cannot be read, or no film has a caption.
    """
    if source == SIDECAR:
        found = {name: (folder / name).with_suffix(".txt") for name in films}
        captions = {name: _text(path) for name, path in found.items() if path.is_file()}
        where = "a .txt file beside it"
    else:
        path = next((path for path in (folder / source, Path(source).expanduser()) if path.is_file()), None)
        if path is None:
            raise ValueError(f"clips.captions={source} is neither '{SIDECAR}' nor a .json or .tsv file in {folder} or here")
        captions = _table(path)
        where = f"a caption in {path}"
    captions = {name: " ".join(text.split()) for name, text in captions.items() if name in set(films)}
    if not any(captions.values()):
        raise ValueError(f"clips.captions={source}: no film has {where}; the first film is {films[0] if films else 'missing'}")
    return captions


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _table(path: Path) -> dict[str, str]:
    text = _text(path)
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error})") from None
        if not isinstance(found, dict) or not all(isinstance(caption, str) for caption in found.values()):
            raise ValueError(f'{path} must be one JSON object {{"film.mp4": "caption", ...}}')
        return found
    rows = [line.split("\t", 1) for line in text.splitlines() if line.strip()]
    short = next((row for row in rows if len(row) < 2), None)
    if short is not None:
        raise ValueError(f"{path}: the line {short[0]!r} has no tab between the film's name and its caption")
    return dict(rows)  # type: ignore[arg-type]
