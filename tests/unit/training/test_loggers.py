"""Every logger gets the same metrics by the same names; those whose package is missing are skipped, saying so."""

import csv
import json
from importlib.util import find_spec

import pytest

from nava_lab.config import ConfigError, load
from nava_lab.study import fit
from nava_lab.study.fit import train
from nava_lab.study.run import prepared
from nava_lab.training import loggers
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
