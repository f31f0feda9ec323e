"""``nava train -m``: what is finished is left alone, what failed is told and retried on request, whoever launches."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from nava_lab.cli import main
from nava_lab.registry import PACKAGE
from nava_lab.study.multirun import PACKAGES

SMALL = ["world=gaussian", "variant=unified", "variant.depth=2", "experiment=smoke", "budget.parameters=60_000",
         "training.steps=4", "output.progress=false", "logger=none"]  # fmt: skip


def records(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")}


def test_finished_runs_are_left_alone_and_failed_ones_told_and_retried_on_request(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*more):
        try:
            main(["train", "-m", "training.lr=1e-3,1e30", *SMALL, *more])
        except SystemExit as error:
            return error.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    code, told = run()
    assert code == 2
    assert "1 of 2 runs failed" in told
    assert "the loss is" in told
    before = records(tmp_path)
    assert len(before) == 1
    failed = next(tmp_path.glob("runs/*/failed.json"))
    wrong = failed.stat().st_mtime_ns
    code, told = run()
    assert code == 2
    assert "1 finished before; 1 failed before: --retry-failed tries them again" in told
    assert failed.stat().st_mtime_ns == wrong
    code, told = run("--retry-failed")
    assert "1 failed before and tried again" in told
    assert failed.stat().st_mtime_ns > wrong
    assert records(tmp_path) == before


def test_a_launcher_that_is_not_installed_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(PACKAGES, "ray", ("no_such_package", "ray"))
    with pytest.raises(SystemExit):
        main(["train", "-m", "launcher=ray", *SMALL])
    assert "pip install 'nava-lab[ray]'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "-m", "launcher=joblb", *SMALL])
    assert "did you mean 'joblib'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "launcher=joblib", *SMALL])
    assert "does nothing for one run" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["joblib", *(pytest.param(name, marks=pytest.mark.slow) for name in ("local", "ray"))])
def test_every_launcher_runs_what_is_left(launcher, tmp_path, monkeypatch, capsys):
    package, extra = PACKAGES[launcher]
    if find_spec(package.split(".")[0]) is None or find_spec(package) is None:
        pytest.skip(f"not installed: pip install 'nava-lab[{extra}]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    main(["train", "-m", "seed=0,1", f"launcher={launcher}", *SMALL])
    assert len(records(tmp_path)) == 2
    assert {json.loads(path.read_text())["seed"] for path in tmp_path.glob("runs/*/record.json")} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_no_job_runs_twice_where_lightning_starts_the_command_again(strategy, tmp_path):
    """Two jobs on two processes each: the second process of a job must run that job alone, not the whole multirun."""
    machine = [f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2"]
    command = [sys.executable, "-m", "nava_lab", "train", "-m", "seed=0,1", *SMALL, *machine]
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 runs, all checked") == 1
    assert len(records(tmp_path)) == 2
    for path in tmp_path.glob("runs/*/metrics.jsonl"):
        lines = path.read_text().splitlines()
        assert len(lines) == len(set(lines))
