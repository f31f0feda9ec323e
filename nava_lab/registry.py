"""Registries: a name in a config becomes a class, and a new file is all it takes to add one.

A registry owns one or more folders. Whatever a file of theirs decorates with ``@registry.register("name")`` is an entry.
Names, summaries and fields are read from the files' syntax, so listing them (``nava --help``) imports nothing heavy; a
file is imported when an entry of it is asked for.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

PACKAGE = Path(__file__).resolve().parent
VARIANTS_ENV = "NAVA_VARIANTS"


class UnknownName(KeyError):
    """A name that no entry has. The message lists the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


def nearest(name: str, known: list[str]) -> str:
    """A sentence that names the closest known names (or all of them, where none is close)."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(sorted(known))}"


@dataclass(frozen=True)
class Entry:
    """What the syntax of a file tells about one registered class, without importing it."""

    name: str
    summary: str  # first line of the docstring
    fields: tuple[tuple[str, str], ...]  # (field, default as written) of the class body
    file: Path
    class_name: str


class Registry(Generic[T]):
    """Classes by name, found in the folders that hold them.

    Args:
        kind: what an entry is, for messages ("variant", "world").
        folders: where the files lie; later folders may not repeat a name of earlier ones.
        variable: the name under which files import this registry (``variable.register``).
    """

    def __init__(self, kind: str, variable: str, folders: Callable[[], list[Path]]):
        self.kind = kind
        self.variable = variable
        self._folders = folders
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator that makes the class reachable as ``name``. A second class of that name is an error."""

        def add(cls: type) -> type:
            old = self._classes.get(name)
            if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{self.kind} '{name}' is registered twice: by {old.__module__} and {cls.__module__}")
            self._classes[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """The class called ``name``; UnknownName lists the nearest names."""
        if name not in self._classes:
            entry = self.entries.get(name)
            if entry is None:
                raise UnknownName(f"no {self.kind} is called '{name}'; {nearest(name, self.names())}")
            _import_file(entry.file)
        return self._classes[name]

    def names(self) -> list[str]:
        return sorted({*self.entries, *self._classes})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every entry of the folders, by name, read from syntax alone."""
        found: dict[str, Entry] = {}
        for folder in self._folders():
            for file in sorted(folder.glob("*.py")):
                for entry in self._read(file):
                    if entry.name in found:
                        other = found[entry.name].file
                        raise ValueError(f"{self.kind} '{entry.name}' is registered twice: in {other} and {file}")
                    found[entry.name] = entry
        return found

    def _read(self, file: Path) -> Iterator[Entry]:
        text = file.read_text(encoding="utf-8")
        if f"{self.variable}.register" not in text:
            return
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            raise SyntaxError(f"{file}, line {error.lineno}: {error.msg} (while listing every {self.kind})") from None
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            for mark in node.decorator_list:
                if (
                    isinstance(mark, ast.Call)
                    and ast.unparse(mark.func) == f"{self.variable}.register"
                    and mark.args
                    and isinstance(mark.args[0], ast.Constant)
                ):
                    summary = (ast.get_docstring(node) or "").strip().split("\n")[0]
                    yield Entry(str(mark.args[0].value), summary, _fields(node), file, node.name)


def _fields(node: ast.ClassDef) -> tuple[tuple[str, str], ...]:
    return tuple(
        (item.target.id, _default(item.value))
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not ast.unparse(item.annotation).startswith("ClassVar")
    )


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        value = next((part.value for part in value.keywords if part.arg in ("default", "default_factory")), None)
    return "required" if value is None else ast.unparse(value)


def _import_file(file: Path) -> None:
    """Import ``file`` under its package's dotted name, or under a private one where no package holds it."""
    # The package's own place first: in a folder that holds a checkout, its files have a second dotted name.
    for root in dict.fromkeys((PACKAGE.parent, *map(Path, filter(None, sys.path)))):
        if file.is_relative_to(root) and (file.parent / "__init__.py").exists():
            dotted = ".".join(file.relative_to(root).with_suffix("").parts)
            if importlib.util.find_spec(dotted.split(".")[0]) is not None:
                module = importlib.import_module(dotted)
                if module.__file__ and Path(module.__file__).resolve() == file.resolve():
                    return
    name = f"nava_discovered_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _inside(folder: str) -> Callable[[], list[Path]]:
    return lambda: [PACKAGE / folder]


def variant_folders() -> list[Path]:
    """The project's ``variants/``, the current folder's, and those that the environment variable NAVA_VARIANTS names."""
    named = [Path(part) for part in os.environ.get(VARIANTS_ENV, "").split(os.pathsep) if part]
    for folder in named:
        if not folder.is_dir():
            raise ValueError(f"{VARIANTS_ENV} names {folder}, which is no folder")
    folders = [PACKAGE.parent / "variants", Path.cwd() / "variants", *named]
    return list(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))


blocks: Registry = Registry("block", "blocks", _inside("blocks"))
bridges: Registry = Registry("bridge", "bridges", _inside("blocks"))
backends: Registry = Registry("attention backend", "backends", _inside("attention/backends"))
masks: Registry = Registry("mask", "masks", _inside("attention"))
variants: Registry = Registry("variant", "variants", variant_folders)
worlds: Registry = Registry("world", "worlds", _inside("worlds"))
level_laws: Registry = Registry("level law", "level_laws", _inside("flow"))
level_weights: Registry = Registry("level weight", "level_weights", _inside("flow"))
schedules: Registry = Registry("schedule", "schedules", _inside("flow"))
solvers: Registry = Registry("solver", "solvers", _inside("flow/solvers"))
guidance: Registry = Registry("guidance part", "guidance", _inside("flow/guidance"))
metrics: Registry = Registry("metric", "metrics", _inside("evaluation"))

ALL: tuple[Registry, ...] = (
    *(variants, worlds, blocks, bridges, backends, masks, solvers, schedules, guidance, level_laws, level_weights, metrics),
)
