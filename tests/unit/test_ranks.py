"""What the tests of several processes stand on: a library's crash is told and tried again, a mistake never."""

import faulthandler
import os
import resource

import pytest

from tests.ranks import needs_fork, together

pytestmark = needs_fork


def crash():
    faulthandler.disable()  # the stacks of what crashes on purpose
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def test_a_crash_is_told_and_tried_once_more(tmp_path):
    def work(rank):
        (tmp_path / f"{rank}-{len([*tmp_path.glob(f'{rank}-*')])}").touch()
        if rank == 1 and not (tmp_path / "1-1").exists():
            crash()

    with pytest.warns(UserWarning, match="a library has crashed"):
        assert together(work) == [0, 0]
    assert len([*tmp_path.iterdir()]) == 4


def test_a_crash_that_comes_again_is_one():
    with pytest.warns(UserWarning, match="a library has crashed"):
        assert together(lambda rank: crash()) == [-6, -6]


def test_a_mistake_is_not_tried_again(tmp_path, capfd):
    def work(rank):
        (tmp_path / f"{rank}-{len([*tmp_path.glob(f'{rank}-*')])}").touch()
        assert rank == 0, "a mistake"

    assert together(work) == [0, 1]
    assert len([*tmp_path.iterdir()]) == 2
    assert "a mistake" in capfd.readouterr().err
