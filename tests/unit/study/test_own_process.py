"""A run that needs several processes is a command of its own: how that ends is told apart."""

import signal
import subprocess
import sys
import time

import pytest

from nava_lab.study.multirun import in_own_process
from nava_lab.training.callbacks import Stopped
from nava_lab.training.ending import sigterm_ends
from nava_lab.training.settings import TERMINATED


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Stands in for ``python -m nava_lab train`` with a shell's program."""

    def stand_in(program):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{program}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return stand_in


def test_a_run_that_is_stopped_has_not_failed(command):
    command("trap 'exit 143' TERM; while :; do sleep 0.05; done")
    with pytest.raises(Stopped, match="nava train variant=unified was ended"):
        in_own_process(["variant=unified"], alive=lambda: False)


def test_a_run_that_somebody_else_asks_to_end_ends_this_process_too(command):
    command(f"exit {TERMINATED}")
    with pytest.raises(SystemExit) as ended:
        in_own_process([])
    assert ended.value.code == TERMINATED


def test_a_run_that_somebody_ends_before_it_listens_ends_this_process_too(command):
    command("kill -TERM $$")
    with pytest.raises(SystemExit) as ended:
        in_own_process([])
    assert ended.value.code == TERMINATED


def test_who_is_asked_to_end_while_a_run_goes_on_elsewhere_ends_it_first(command, tmp_path):
    command(f"trap 'touch {tmp_path}/saved; exit 143' TERM; kill -TERM $PPID; while :; do sleep 0.05; done")
    with pytest.raises(SystemExit) as ended, sigterm_ends():
        in_own_process([])
    assert ended.value.code == TERMINATED
    assert (tmp_path / "saved").exists()


def test_who_is_asked_to_end_while_a_run_begins_leaves_none_behind(command, tmp_path, monkeypatch):
    command(f"trap 'touch {tmp_path}/saved; exit 143' TERM; touch {tmp_path}/begun; while :; do sleep 0.05; done")
    begin = subprocess.Popen

    def asked_meanwhile(*what, **how):
        process = begin(*what, **how)
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", asked_meanwhile)
    with pytest.raises(SystemExit) as ended, sigterm_ends():
        in_own_process([])
    assert ended.value.code == TERMINATED
    assert (tmp_path / "saved").exists()


def test_a_run_that_fails_says_its_status_and_one_that_ends_its_folder(command):
    command("exit 2")
    with pytest.raises(RuntimeError, match="ended with status 2"):
        in_own_process(["seed=1"])
    command("echo told; echo runs/folder")
    assert in_own_process([]) == "runs/folder"
