"""Lightning's loggers by name, all with the same metric names; those whose package is missing say what to install."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What a logger needs.

    Attributes:
        package: what must be installed; empty for what comes with nava-lab.
        projects: whether its runs are kept under a project (of W&B) or an experiment (of MLflow).
    """

    package: str = ""
    projects: bool = False


KINDS = {
    "tensorboard": Kind(),
    "csv": Kind(),
    "wandb": Kind("wandb", projects=True),
    "mlflow": Kind("mlflow", projects=True),
    "none": Kind(),
}


def check_logger(kind: str, project: str) -> None:
    """Refuse, before any work, a logger that is unknown or not installed, and a project where none is kept."""
    if kind not in KINDS:
        raise ValueError(f"logger.kind={kind} is not one of {', '.join(KINDS)}")
    needed = KINDS[kind]
    if needed.package and find_spec(needed.package) is None:
        raise ValueError(f"logger={kind} needs a package that is not installed: pip install {needed.package}")
    if needed.projects and not project:
        raise ValueError(f"logger={kind} keeps its runs under a project: set logger.project")
    if project and not needed.projects:
        named = " and ".join(name for name, part in KINDS.items() if part.projects)
        raise ValueError(f"logger.project={project} does nothing under logger={kind}: only {named} have projects")


def make_logger(kind: str, project: str, folder: Path) -> Any:
    """A logger that writes into the run's folder; False for none.

    W&B writes to its service under ``project`` (``WANDB_MODE=offline`` keeps it in the folder), MLflow to
    ``MLFLOW_TRACKING_URI``, or to ``mlflow.db`` beside the runs.
    """
    check_logger(kind, project)
    if kind == "none":
        return False
    from lightning.pytorch import loggers

    if kind == "tensorboard":
        return loggers.TensorBoardLogger(folder, name="", version="tensorboard")
    if kind == "csv":
        return loggers.CSVLogger(folder, name="", version="csv")
    if kind == "wandb":
        return loggers.WandbLogger(project=project, name=folder.name, save_dir=folder, id=folder.name, resume="allow")
    # MLflow 3 refuses to keep runs in plain files; one database beside the runs is what its page is pointed at.
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
    where = (folder.resolve() / "mlflow").as_uri()
    return loggers.MLFlowLogger(project, run_name=folder.name, tracking_uri=store, artifact_location=where)


def finish_loggers(made: Iterable[Any]) -> None:
    """End what a logger would otherwise keep open: W&B hands an open run to the next training of the process."""
    for part in made:
        if type(part).__name__ == "WandbLogger":
            part.experiment.finish()
