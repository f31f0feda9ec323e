"""What the tests of several processes stand on: a heap that a library broke is told, where the work may be done twice."""

import faulthandler
import os
import resource

import pytest

from tests.ranks import needs_fork, together

pytestmark = needs_fork


def crash(words=b"malloc(): unaligned tcache chunk detected\n"):
    faulthandler.disable()  # the stacks of what crashes on purpose
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.write(2, words)
    os.abort()


def counted(folder, rank):
    """How often this process was begun."""
    (folder / f"{rank}-{len([*folder.glob(f'{rank}-*')])}").touch()
    return len([*folder.glob(f"{rank}-*")])


def test_a_broken_heap_is_told_and_tried_once_more(tmp_path):
    def work(rank):
        if counted(tmp_path, rank) == 1 and rank == 1:
            crash()

    with pytest.warns(UserWarning, match="a library broke a heap"):
        assert together(work, repeatable=True) == [0, 0]
    assert len([*tmp_path.iterdir()]) == 4


def test_one_that_breaks_again_is_broken(capfd):
    with pytest.warns(UserWarning, match="a library broke a heap"):
        assert together(lambda rank: crash(), repeatable=True) == [-6, -6]
    assert capfd.readouterr().err.count("unaligned tcache chunk") == 4


@pytest.mark.parametrize(("words", "repeatable"), [(b"malloc(): broken", False), (b"terminate called", True)])
def test_no_other_end_is_tried_again(tmp_path, words, repeatable):
    def work(rank):
        counted(tmp_path, rank)
        if rank == 1:
            crash(words)

    assert together(work, repeatable=repeatable) == [0, -6]
    assert len([*tmp_path.iterdir()]) == 2


def test_a_mistake_is_not_tried_again(tmp_path, capfd):
    def work(rank):
        counted(tmp_path, rank)
        assert rank == 0, "a mistake"

    assert together(work, repeatable=True) == [0, 1]
    assert len([*tmp_path.iterdir()]) == 2
    assert "a mistake" in capfd.readouterr().err
