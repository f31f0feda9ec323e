"""Lightning's loggers by name, all with the same metric names; those whose package is missing say what to install."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

MLFLOW_RUN = "mlflow_run"  # of a run's folder: which of MLflow's it is


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
        if not getattr(rank_zero_only, "rank", 0):  # Lightning would do it, and warn; ``recall`` writes it anew
            shutil.rmtree(folder / "csv", ignore_errors=True)
        return loggers.CSVLogger(folder, name="", version="csv")
    if kind == "wandb":
        return loggers.WandbLogger(project=project, name=folder.name, save_dir=folder, id=folder.name, resume="allow")
    return _mlflow(project, folder)


def _mlflow(project: str, folder: Path) -> Any:
    """MLflow's logger, going on with the run that ``mlflow_run`` in the folder names, if its store still has it."""
    from lightning.pytorch.loggers import MLFlowLogger

    # MLflow 3 refuses to keep runs in plain files; one database beside the runs is what its page is pointed at.
    told = os.environ.get("MLFLOW_TRACKING_URI", "")
    store = told or f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
    where = (folder.resolve() / "mlflow").as_uri()

    def made(number: str | None) -> tuple[Any, str | None]:
        logger = MLFlowLogger(project, run_name=folder.name, tracking_uri=store, artifact_location=where, run_id=number)
        begun = logger.run_id
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow leaves this run's store there, and the next may have another
        if told:
            os.environ["MLFLOW_TRACKING_URI"] = told
        return logger, begun

    kept = folder / MLFLOW_RUN
    try:
        logger, number = made(kept.read_text(encoding="utf-8").strip() if kept.exists() else None)
    except Exception:  # its kinds are another package's, and say that the store has no such run; if it has failed, it fails again
        if not kept.exists():
            raise
        logger, number = made(None)
    if number and not getattr(rank_zero_only, "rank", 0):
        kept.write_text(f"{number}\n", encoding="utf-8")
    return logger


def recall(logger: Any, lines: Iterable[Mapping[str, float]], every: int) -> None:
    """Tell a logger that begins anew with every process what Lightning told it before.

    Args:
        logger: of whatever kind; all but the CSV file go on by themselves.
        lines: of the metrics log.
        every: after how many steps Lightning logs.
    """
    from lightning.pytorch.loggers import CSVLogger

    if not isinstance(logger, CSVLogger):
        return
    for line in lines:
        step, values = int(line["step"]), {name: value for name, value in line.items() if name not in ("step", "lr")}
        if "lr" in line:
            logger.log_metrics({"lr": line["lr"]}, step)
        if "lr" not in line or step % every == 0:  # Lightning counts a step when it is over
            logger.log_metrics({"epoch": 0, **values}, step - 1)
    logger.save()


def finish_loggers(made: Iterable[Any]) -> None:
    """End what a logger would otherwise keep open: W&B hands an open run to the next training of the process."""
    for part in made:
        if type(part).__name__ == "WandbLogger":
            part.experiment.finish()
