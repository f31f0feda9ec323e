"""Every logger gets the same metrics by the same names; those whose package is missing are skipped, saying so."""

import csv
import json
from importlib.util import find_spec
from typing import ClassVar

import lightning.pytorch as pl
import pytest

from nava_lab.config import ConfigError, load
from nava_lab.study import fit
from nava_lab.study.fit import train
from nava_lab.study.run import prepared
from nava_lab.training import loggers
from nava_lab.training.callbacks import EndedEarly
from nava_lab.training.loggers import KINDS, check_logger, make_logger

INSTALLED = [name for name, kind in KINDS.items() if name != "none" and (not kind.package or find_spec(kind.package))]
SMALL = (
    "variant=unified",
    "variant.depth=1",
    "budget.parameters=null",
    "budget.width=16",
    "budget.hidden=16",
    "training.steps=20",
    "training.batch_size=2",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One short training that writes to every logger at once."""
    folder = tmp_path_factory.mktemp("run") / "unified-pulse-s0-0123456789"
    folder.mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")
    projects = {name: "a project" if KINDS[name].projects else "" for name in INSTALLED}
    patch.setattr(fit, "make_logger", lambda *_: [make_logger(name, projects[name], folder) for name in INSTALLED])
    config = load(
        [*SMALL, "training.validations=2", "training.validation_clips=4", "training.checkpoints=0", "output.progress=false"]
    )
    train(config, prepared(config), folder, lambda message: None)
    patch.undo()
    return folder


def logged(folder):
    """The names in ``metrics.jsonl``, which every logger must have."""
    return {name for line in (folder / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)} - {"step"}


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return set(events.Tags()["scalars"])


def csv_file(folder):
    with (folder / "csv" / "metrics.csv").open() as file:
        return set(next(csv.reader(file))) - {"step"}


def mlflow(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    (experiment,) = [part for part in client.search_experiments() if part.name == "a project"]
    (run,) = client.search_runs([experiment.experiment_id])
    return set(run.data.metrics)


def wandb(folder):
    """From the offline file: after seven bytes of header, records in LevelDB's log format, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, whole, names = path.read_bytes(), 7, b"", set()
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            names |= {item.key or ".".join(item.nested_key) for item in record.history.item}
            whole = b""
    return {name for name in names if not name.startswith("_")} - {"trainer/global_step"}


@pytest.mark.parametrize(
    ("name", "read"), [("tensorboard", tensorboard), ("csv", csv_file), ("mlflow", mlflow), ("wandb", wandb)]
)
def test_the_same_names_everywhere(trained, name, read):
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed: pip install {KINDS[name].package}")
    assert read(trained) == logged(trained) | {"epoch"}
    assert {"lr", "train/loss", "validation/loss"} <= logged(trained)


class EndAt(pl.Callback):
    """Ends a training as a kill does."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 17:
            raise EndedEarly


def continued(folder, kind):
    """A training that stops after its last checkpoint, at step 16, and one that goes on from there."""
    folder.mkdir()
    more = [f"logger={kind}", "training.validations=4", "training.validation_clips=4", "training.checkpoints=3"]
    config = load([*SMALL, *more, "output.progress=false"])
    with pytest.raises(EndedEarly):
        train(config, prepared(config), folder, lambda message: None, [EndAt()])
    told = []
    train(config, prepared(config), folder, told.append)
    assert any("continuing from" in line for line in told)


def test_the_csv_file_of_a_continued_run_is_an_unbroken_ones(tmp_path):
    """Lightning's logger would begin anew, without what was logged before."""
    continued(tmp_path / "broken", "csv")
    whole = tmp_path / "whole"
    whole.mkdir()
    config = load([*SMALL, "logger=csv", "training.validations=4", "training.validation_clips=4", "output.progress=false"])
    train(config, prepared(config), whole, lambda message: None)
    mine, other = ((folder / "csv" / "metrics.csv").read_text() for folder in (tmp_path / "broken", whole))
    assert len(mine.splitlines()) == 1 + 3 + 2 + 4  # a head, rates, losses, validations
    assert mine == other


class Store:
    """As much of MLflow's logger as says which run it writes to."""

    runs: ClassVar[list[str]] = []

    def __init__(self, project, run_name, tracking_uri, artifact_location, run_id):
        if run_id is not None and run_id not in self.runs:
            raise LookupError(f"Run {run_id} not found")
        self.run_id = run_id or f"run {len(self.runs)}"
        self.runs.append(self.run_id)


def test_a_continued_run_goes_on_with_its_run_of_mlflow(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", Store)
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    monkeypatch.setattr(Store, "runs", [])
    assert [make_logger("mlflow", "mine", tmp_path).run_id for _ in range(2)] == ["run 0", "run 0"]
    Store.runs[:] = ["of", "others"]  # another store, or one that has lost it
    assert [make_logger("mlflow", "mine", tmp_path).run_id for _ in range(2)] == ["run 2", "run 2"]


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed: pip install mlflow")
def test_mlflow_itself_keeps_one_run_of_a_continued_one(tmp_path):
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "unified-pulse-s0-0123456789"
    continued(folder, "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = [run for part in client.search_experiments() for run in client.search_runs([part.experiment_id])]
    assert [run.info.status for run in runs] == ["FINISHED"]
    steps = {metric.step for metric in client.get_metric_history(runs[0].info.run_id, "validation/loss")}
    assert steps == {4, 9, 14, 19}


def test_none_writes_nothing(tmp_path):
    assert make_logger("none", "", tmp_path) is False
    assert list(tmp_path.iterdir()) == []


def test_a_project_that_would_do_nothing_is_refused_before_any_work():
    with pytest.raises(ConfigError, match="does nothing under logger=tensorboard: only wandb and mlflow have projects"):
        prepared(load(["logger.project=mine"]))
    assert load([]).logger.project == ""
    assert load(["logger=mlflow"]).logger.project == "nava-lab"


@pytest.mark.parametrize("kind", [name for name, part in KINDS.items() if part.package])
def test_a_missing_package_is_named_before_any_work(kind, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"pip install {kind}"):
        prepared(load([f"logger={kind}"]))


def test_projects_are_needed_where_they_are_kept_and_kinds_are_known(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"set logger\.project"):
        check_logger("wandb", "")
    with pytest.raises(ValueError, match="is not one of"):
        check_logger("tensorbord", "")
