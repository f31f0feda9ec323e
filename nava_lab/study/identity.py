"""Who a run is: the hash of its whole resolved config and data version; and which code made it.

Only where a run is kept and shown, and how often it is saved on the way, is left out (``NOT_PART``): it cannot change a number.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nava_lab.registry import PACKAGE, variants

FLOORS = (
    *(
        "rng.py",
        "streams.py",
        "layers",
        "attention",
        "conditioning",
        "blocks",
        "models",
        "budget",
        "checkpoints",
        "media",
        "worlds",
        "flow",
    ),
    *("training", "evaluation", "study/build.py", "study/fit.py", "study/warm.py", "study/run.py", "study/seeds.py"),
)
NOT_PART = ("output", "logger", "training.checkpoints", "training.checkpoint_minutes")
MADE_BY = ("code", "variant_code", "torch")  # of an identity: what a run is made by, and must be made by to be gone on with


def canonical(config: Mapping[str, Any]) -> str:
    """A config as text that does not depend on the order of its keys."""
    return json.dumps(parts_of(config), sort_keys=True)


def parts_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config, or one of its groups (``prefix``: "training."), without what is no part of a run."""
    return {
        key: parts_of(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if f"{prefix}{key}" not in NOT_PART
    }


def run_hash(config: Mapping[str, Any], data_version: str) -> str:
    return hashlib.sha256(f"{canonical(config)}\n{data_version}".encode()).hexdigest()[:10]


def run_name(config: Mapping[str, Any], data_version: str) -> str:
    """``variant-world-s<seed>-<hash>``."""
    hashed = run_hash(config, data_version)
    return f"{config['variant']['name']}-{config['world']['name']}-s{config['seed']}-{hashed}"


@lru_cache(None)
def code_fingerprint() -> str:
    """A hash of the package's code that can change a run's numbers, blind to comments, docstrings and layout."""
    files: list[Path] = []
    for floor in FLOORS:
        files += [PACKAGE / floor] if floor.endswith(".py") else sorted((PACKAGE / floor).rglob("*.py"))
    return _hashed(files)


@lru_cache(None)
def variant_fingerprint(variant: str) -> str:
    """The same of the file that holds a variant."""
    entry = variants.entries.get(variant)
    return _hashed([entry.file] if entry else [])


def _hashed(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{_meaning(file)}".encode())
    return digest.hexdigest()[:12]


def _meaning(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def git_revision() -> str:
    """The checkout's commit, with a mark where files differ from it; "unknown" outside a checkout."""
    try:
        command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
