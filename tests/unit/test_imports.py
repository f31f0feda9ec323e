"""A file imports only from floors below it, and the package never imports variants."""

import ast
from pathlib import Path

import pytest

from nava_lab.registry import PACKAGE

FLOORS = [
    "_torchvision_repair", "memory", "registry", "rng", "streams", "layers", "attention", "conditioning", "blocks", "models", "budget",
    "checkpoints", "media", "worlds", "flow", "training", "evaluation", "config", "study", "report", "api", "bench", "cli",
]  # fmt: skip
# The flow is blind to architecture and worlds; worlds know no model; training and the flow know no variant.
FORBIDDEN = {
    "flow": {"blocks", "models", "worlds", "budget"},
    "worlds": {"blocks", "models", "layers", "attention"},
    "training": {"blocks", "models"},
}


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "nava_lab":
                yield from (f"nava_lab.{alias.name}" for alias in node.names if alias.name in FLOORS)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in ("__init__", "__main__"):
        return
    for module in imports(file):
        assert module.split(".")[0] != "variants"
        if module.startswith("nava_lab."):
            other = module.split(".")[1]
            assert FLOORS.index(other) <= FLOORS.index(own), f"{file} imports {module}"
            assert other not in FORBIDDEN.get(own, ()), f"{file} imports {module}"
