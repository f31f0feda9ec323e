"""Let torchvision import beside a PyTorch build it was not compiled for.

timm, torchmetrics and lightning import torchvision. Its compiled library only loads beside the very torch build it was
made for; next to another one (a CPU torch with the CUDA wheel of torchvision, say) the import dies with ``operator
torchvision::nms does not exist``, because Python code registers fake kernels for operators that were never declared.
Nothing here uses those operators, so declaring their schemas is enough. That must happen only where the library does
not load: a second declaration aborts the interpreter.

The repair is a finder on ``sys.meta_path`` that acts when somebody first imports torchvision, so it costs nothing and
imports no torch before then.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))


class _Finder(importlib.abc.MetaPathFinder):
    library: object = None  # the schema declarations live as long as this object

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torchvision")
        if spec is not None and spec.submodule_search_locations:
            self._declare_where_missing(Path(spec.submodule_search_locations[0]))
        return spec

    def _declare_where_missing(self, folder: Path) -> None:
        import torch

        compiled = next(folder.glob("_C.*"), None)
        try:
            if compiled is not None:
                torch.ops.load_library(str(compiled))
                return
        except OSError:
            compiled = None  # built for another torch: fall through to the declarations
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        type(self).library = library


def install() -> None:
    """Watch for the first import of torchvision; does nothing if it has happened already."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
