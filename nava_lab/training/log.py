"""The metrics log as data (no Lightning here, so that reports load fast)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOG = "metrics.jsonl"  # in a run's folder
LOG_EVERY = 10


def logged(step: int) -> bool:
    """Whether the log has a line of a step (the first is 1): between these a training does not wait for its device."""
    return step == 1 or step % LOG_EVERY == 0


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics log; a last line cut short by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_log(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Put other lines in a log's place; a kill leaves the old ones or the new."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
