"""What notebooks start from: make a run, load runs as a data frame, load a model; ``from nava_lab import load_runs``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from nava_lab.config import Config
    from nava_lab.models.denoiser import Denoiser
    from nava_lab.report.compare import Comparison


def train(*overrides: str) -> Path:
    """What ``nava train KEY=VALUE ...`` does; returns the run's folder. A finished run is left alone."""
    from nava_lab.config import load
    from nava_lab.memory import keep_memory
    from nava_lab.study.run import run
    from nava_lab.training.quiet import quieten

    quieten()
    keep_memory()
    return run(load(overrides), tell=lambda message: None)


def load_runs(*folders: str | Path) -> pd.DataFrame:
    """Finished runs, one row each: runs' folders, folders of runs (``runs`` by default), or a study's folder.

    Scores are columns ``NAME``, ``NAME.low`` and ``NAME.high``, config keys columns of their own names
    (``variant.depth``). ``attrs["left_out"]`` names what was not finished.
    """
    from nava_lab.report.frame import load_runs as loaded

    return loaded(*folders)


def load_logs(*folders: str | Path) -> pd.DataFrame:
    """The metrics logs of finished runs, one row per logged step."""
    from nava_lab.report.frame import load_logs as loaded

    return loaded(*folders)


def load_config(run: str | Path | Mapping[str, Any]) -> Config:
    """A run's config as checked objects; ``run`` is its folder, or a row of ``load_runs``."""
    from nava_lab.config import from_file

    return from_file(_folder(run) / "config.yaml")


def load_model(run: str | Path | Mapping[str, Any]) -> Denoiser:
    """A run's model with its averaged weights, ready to be evaluated; ``run`` is its folder, or a row of ``load_runs``."""
    from nava_lab.study.run import load_model as loaded

    return loaded(_folder(run))[0]


def compare(*folders: str | Path) -> Comparison:
    """Runs, a folder of runs or a study, judged as ``nava compare`` does: verdict, contrasts, scores over seeds."""
    from nava_lab.report.compare import compare as compared

    return compared([Path(folder) for folder in folders])


def _folder(run: Any) -> Path:
    return Path(run if isinstance(run, str | Path) else run["folder"])
