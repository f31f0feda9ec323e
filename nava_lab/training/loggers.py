"""Lightning's loggers by name; those whose package is missing say what to install."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import loggers

KINDS = ("tensorboard", "csv", "wandb", "mlflow", "none")


def make_logger(kind: str, project: str, folder: Path) -> Any:
    """A logger that writes into the run's folder (or to its service, under ``project``); False for none."""
    try:
        if kind == "tensorboard":
            return loggers.TensorBoardLogger(folder, name="", version="tensorboard")
        if kind == "csv":
            return loggers.CSVLogger(folder, name="", version="csv")
        if kind == "wandb":
            return loggers.WandbLogger(project=project, name=folder.name, save_dir=folder, id=folder.name, resume="allow")
        if kind == "mlflow":
            return loggers.MLFlowLogger(experiment_name=project, run_name=folder.name, save_dir=str(folder / "mlruns"))
    except ModuleNotFoundError as error:
        raise ValueError(f"logger={kind} needs a package that is not installed: pip install {kind} ({error})") from None
    if kind == "none":
        return False
    raise ValueError(f"logger.kind={kind} is not one of {', '.join(KINDS)}")
