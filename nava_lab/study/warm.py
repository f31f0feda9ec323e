"""Starting a run from a published checkpoint: checked by names and shapes before any work, filled shard by shard."""

from __future__ import annotations

from collections.abc import Callable

from nava_lab.budget.solve import Solution
from nava_lab.checkpoints.convert import check_coverage, plan, warm_start
from nava_lab.checkpoints.files import Tensors, digest
from nava_lab.config import Config, ConfigError
from nava_lab.models.denoiser import Denoiser, on_meta
from nava_lab.study.build import interface


def check_start(config: Config, solution: Solution) -> None:
    """Refuse a checkpoint that does not fit this config's model, reading headers alone."""
    start = config.warm_start
    try:
        model = on_meta(config.variant, interface(config), solution.size)
        check_coverage(plan(model, Tensors.at(start.path), start.ends, start.differ)[1], start.path, start.coverage)
    except ValueError as error:
        raise ConfigError(f"warm_start: {error}") from None


def start_warm(config: Config, model: Denoiser, tell: Callable[[str], None]) -> None:
    """Fill a fresh model and say what became of the checkpoint."""
    start = config.warm_start
    try:
        found = digest(start.path)
        if found != start.digest:
            raise ValueError(f"{start.path} holds other weights ({found}) than this run was begun with ({start.digest})")
        for line in warm_start(model, start.path, start.coverage, start.ends, start.differ).lines():
            tell(line)
    except (ValueError, OSError) as error:
        raise ConfigError(f"warm_start: {error}") from None
