"""A run's record: ``record.json``, written once everything is done. Its schema is ``record.schema.json`` beside this file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("record.schema.json")
NAME = "record.json"


class BadRecord(ValueError):
    """A record that cannot be read; the message names the file."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read(run: Path) -> dict[str, Any]:
    """A finished run's record; BadRecord says what is missing or of another version."""
    path = run / NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not run.is_dir():
            raise BadRecord(f"{run} does not exist") from None
        raise BadRecord(f"{path} is missing: the run is not finished; the command that began it continues it") from None
    except json.JSONDecodeError as error:
        raise BadRecord(f"{path} is not JSON ({error})") from None
    if record.get("schema") != SCHEMA_VERSION:
        raise BadRecord(f"{path} has schema {record.get('schema')}; this nava-lab reads {SCHEMA_VERSION}")
    return record
