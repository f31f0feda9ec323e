"""What processes wish they all know after the same step, one step later, and nobody is left waiting."""

import json
from types import SimpleNamespace

import torch
import torch.distributed as dist

from nava_lab.training.machine import Devices, leave, meet
from nava_lab.training.together import Wishes, mean_of_all
from tests.ranks import needs_fork, together


def trainer(processes):
    return SimpleNamespace(world_size=processes, fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()))


def walked(wishes, mine, steps):
    """What was known after each step; ``mine[step]`` is wished from its end on."""
    found = []
    for step in range(1, steps + 1):
        mine["now"] = mine.get(step, [False, False])
        found.append(wishes.known())
        if step < steps:
            wishes.ask()
    return found


def test_one_process_knows_its_wishes_at_once():
    mine = {2: [True, False], "now": [False, False]}
    wishes = Wishes(lambda: mine["now"])
    wishes.begin(trainer(1))
    assert walked(wishes, mine, 3) == [[False, False], [True, False], [False, False]]
    wishes.end()


@needs_fork
def test_all_processes_know_a_wish_after_the_next_step(tmp_path):
    """Of whichever of them; and what was wished before the first step after it."""

    def work(rank):
        meet(Devices("cpu", 3))
        before = dist.distributed_c10d._world.pg_map.copy()
        mine = {1: {2: [True, False], 5: [True, True]}, 2: {2: [True, False], 3: [False, True]}}.get(rank, {})
        mine["now"] = [False, rank == 0]
        wishes = Wishes(lambda: mine["now"])
        wishes.begin(trainer(3))
        (tmp_path / f"{rank}.json").write_text(json.dumps(walked(wishes, mine, 6)))
        wishes.end()
        assert dist.distributed_c10d._world.pg_map.keys() == before.keys()  # its group is gone
        leave()

    assert together(work, count=3) == [0, 0, 0]
    no = [False, False]
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [
            [False, True],
            no,
            [True, False],
            [False, True],
            no,
            [True, True],
        ]


@needs_fork
def test_a_question_that_no_step_came_after_holds_nobody(tmp_path):
    """As of a training that is continued at its end; nor one that is open when a process ends of an error."""

    def work(rank):
        meet(Devices("cpu", 2))
        for ends in (True, False):
            wishes = Wishes(lambda: [True])
            wishes.begin(trainer(2))
            if ends:
                wishes.end()
        assert mean_of_all(torch.tensor([float(rank), 3.0])).tolist() == [0.5, 3.0]
        leave()

    assert together(work, limit_s=30) == [0, 0]
