"""Whole studies in small: killed, continued, shared by two commands on PostgreSQL, pruned, with two objectives."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from nava_lab.cli import main
from nava_lab.registry import PACKAGE
from nava_lab.study.results import load_study
from tests.unit.study.databases import postgresql

STUDY = """# Does a study that is killed end like one that is not?
fixed:
  world: gaussian
  variant: align_then_fuse
  variant.depth: 2
  experiment: smoke
  budget.parameters: 60_000
  training.steps: {steps}
  logger: none
vary: {{variant.align_fraction: [0, 1]}}
seeds: {seeds}
metric: cross_modal_use
tuning:
  space: {{training.lr: {{low: 1e-3, high: 1e-2, log: true, steps: 2}}}}
  {tuning}
contrasts: {{against: {{variant.align_fraction: 0}}}}
"""


def write(folder, steps=6, seeds=2, tuning="sampler: grid"):
    file = folder / "question.yaml"
    file.write_text(STUDY.format(steps=steps, seeds=seeds, tuning=tuning))
    return file


STARTED = []


@pytest.fixture(autouse=True)
def _none_left():
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


def start(folder, *arguments):
    command = [sys.executable, "-m", "nava_lab", "study", "question.yaml", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    STARTED.append(subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    return STARTED[-1]


def ended(process):
    out, told = process.communicate(timeout=400)
    assert process.returncode == 0, out + told
    return out + told


def only_study(folder):
    found = list((folder / "runs" / "studies").glob("*/study.json"))
    assert len(found) == 1
    return load_study(found[0].parent)


def wait_for(condition, process, limit=400):
    limit = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def children(process):
    return [int(pid) for pid in open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()]


def trained(folder):
    """Validations and logged steps of every run, each of which a run that is trained once has once."""
    logs = [path.read_text().splitlines() for path in folder.glob("runs/*/metrics.jsonl")]
    return all(max(Counter(line for line in log).values()) == 1 for log in logs)


def test_a_study_whose_workers_and_command_are_killed_ends_whole(tmp_path, monkeypatch, capsys):
    """Killed: first one worker of two in the middle of a training, then everything at once."""
    file = write(tmp_path, steps=40, seeds=1, tuning="sampler: tpe\n  trials: 2")
    file.write_text(
        file.read_text().replace("{low: 1e-3, high: 1e-2, log: true, steps: 2}", "{values: [1e-3, 1e-2], closed: both}")
    )
    process = start(tmp_path, "--workers", 2)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/*.ckpt")), process)
    os.kill(children(process)[0], signal.SIGKILL)
    wait_for(lambda: len(list(tmp_path.glob("runs/*/record.json"))) >= 2, process)
    left = children(process)
    process.kill()
    process.wait()
    limit = time.monotonic() + 200
    while any(os.path.exists(f"/proc/{pid}") for pid in left):  # orphans end by themselves
        assert time.monotonic() < limit
        time.sleep(0.1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/record.json")}
    told = ended(start(tmp_path))
    result = only_study(tmp_path)
    assert result.counts() == {"finished": 6, "failed": 0, "running": 0, "pruned": 0, "missing": 0}
    assert result.complete
    assert len({run.folder for run in result.runs}) == 6  # TPE, which would try one of the two values twice
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert trained(tmp_path)
    assert "is at the" not in told  # nothing lies beyond either of the two values
    monkeypatch.chdir(tmp_path)
    main(["study", "question.yaml"])
    told = capsys.readouterr().err
    assert "6 finished before" in told
    assert "(0 s)" not in told  # nothing was taken up again


def test_two_commands_share_one_study_on_postgresql(tmp_path):
    write(tmp_path, seeds=1)
    with postgresql(tmp_path / "pg") as url:
        both = [start(tmp_path, "--storage", url) for _ in range(2)]
        told = [ended(process) for process in both]
    result = only_study(tmp_path)
    assert result.counts()["finished"] == 6
    shares = [sum(": " in line and line.startswith("[") for line in text.splitlines()) for text in told]
    assert sum(shares) == 6  # every run is told of by one of them
    assert all(shares)
    assert trained(tmp_path)


def test_failures_are_counted_pruned_trials_told_and_retried_on_request(tmp_path, monkeypatch, capsys):
    """In this process: a learning rate that breaks the training, and a pruner that ends what is worse than the others."""
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, 4, 1, "sampler: random\n  trials: 10\n  pruner: median\n  metric: validation/loss")
    broken = file.read_text().replace("high: 1e-2", "high: 1e+2").replace("vary: {variant.align_fraction: [0, 1]}", "vary: {}")
    file.write_text(broken.replace("contrasts: {against: {variant.align_fraction: 0}}", ""))
    status = 0
    try:
        main(["study", str(file)])
    except SystemExit as ended:
        status = ended.code
    result = only_study(tmp_path)
    assert status == (2 if result.counts()["failed"] else 0)
    counts = result.counts("tuning")
    assert counts["pruned"] > 0
    assert counts["pruned"] + counts["failed"] + counts["finished"] == 10
    choice = result.choices["all"]
    assert (choice.trials, choice.pruned, choice.failed) == (counts["finished"], counts["pruned"], counts["failed"])
    best = min(run.value for run in result.runs if run.state == "finished" and run.phase == "tuning")
    assert choice.value == best
    for run in result.runs:
        if run.state == "pruned":
            assert not (run.folder / "record.json").exists()
        elif run.phase == "tuning" and run.state == "finished":
            assert json.loads((run.folder / "record.json").read_text())["evaluation"]["split"] == "validation"
    confirmed = result.confirmations(result.points[0])
    assert [run.state for run in confirmed] == ["finished"]
    record = json.loads((confirmed[0].folder / "record.json").read_text())
    assert record["evaluation"]["split"] == "test"


def test_two_objectives_end_in_a_front_that_is_confirmed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, 4, 1)
    text = file.read_text()
    head, tail = text.split("tuning:")
    text = (
        head
        + "tuning:\n  space: {budget.parameters: [40_000, 50_000, 60_000, 70_000, 80_000]}\n  sampler: nsga2\n  trials: 5\n  front: 2\n"
    )
    text = text.replace("vary: {variant.align_fraction: [0, 1]}", "vary: {}").replace("  budget.parameters: 60_000\n", "")
    file.write_text(text)
    main(["study", str(file)])
    result = only_study(tmp_path)
    assert result.counts("tuning")["finished"] == 5
    assert len({run.folder for run in result.runs if run.phase == "tuning"}) == 5
    front = result.points
    assert 1 <= len(front) <= 2
    assert all(run.state == "finished" for point in front for run in result.confirmations(point))
    values = [(choice.value, choice.tuned["budget.parameters"]) for choice in result.choices.values()]
    assert values == sorted(values, key=lambda pair: pair[1])
    assert values == sorted(values)  # what costs more is better, or it would not be on the front
    assert tail


def test_a_mistake_in_one_point_stops_everything_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path)
    file.write_text(file.read_text().replace("[0, 1]", "[0, 2]").replace("metric: cross", "metric: cross"))
    with pytest.raises(SystemExit):
        main(["study", str(file)])
    assert "align_fraction=2: variant.align_fraction=2.0 must lie between 0 and 1" in capsys.readouterr().err
    file.write_text(file.read_text().replace("[0, 2]", "[0, 1]").replace("metric: cross_modal_use", "metric: sync_auc"))
    with pytest.raises(SystemExit):
        main(["study", str(file)])
    assert "world gaussian has no score sync_auc" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_plan_prints_every_run_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["study", str(write(tmp_path)), "--plan", "--workers", "2"])
    told = capsys.readouterr().out
    assert "Does a study that is killed end like one that is not?" in told
    rows = [line for line in told.splitlines() if line.startswith("│")]
    assert len(rows) == 8
    assert sum("trial 1" in row for row in rows) == 2
    assert all("59," in row or "60," in row for row in rows)  # parameters
    assert "time by 3 steps tried now" in told
    assert "8 runs, " in told
    assert "with 2 workers" in told
    assert "2 seeds: exploratory" in told
    assert not (tmp_path / "runs").exists()


def test_the_dashboard_opens_a_studys_journal(tmp_path):
    """Headless: the server's own answer about the studies it finds."""
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed: pip install 'nava-lab[dashboard]'")
    import threading
    import urllib.request
    from wsgiref.simple_server import make_server

    from optuna_dashboard import wsgi

    from nava_lab.study.ledger import Ledger, folder_of
    from nava_lab.study.spec import read_study
    from nava_lab.study.storage import open_storage

    study = read_study(write(tmp_path))
    folder = folder_of(tmp_path / "runs", study)
    ledger = Ledger(study, folder, str(folder / "journal.log"))
    task = ledger.next()
    task.claim.trial.suggest_float("training.lr", 1e-3, 1e-2, log=True)
    task.claim.finish([0.5])
    server = make_server("127.0.0.1", 0, wsgi(open_storage(str(folder / "journal.log"))))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/api/studies", timeout=30).read()
        names = [part["study_name"] for part in json.loads(answer)["study_summaries"]]
        assert any(name.startswith(f"{folder.name}/align_fraction=0 @") for name in names)
        assert f"{folder.name}/confirmation" in names
    finally:
        server.shutdown()
        thread.join()
