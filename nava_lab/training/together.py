"""What the processes of a training tell each other in every step, while none of them waits for its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor


def mean_of_all(value: Tensor) -> Tensor:
    """The mean over all processes, in the place of each one's own; queued on the device, for which Lightning's reduce waits."""
    dist.all_reduce(value)
    return value.div_(dist.get_world_size())


class Wishes:
    """What some process of a training wishes, known to all of them after the same step.

    Of several processes it is what one of them wished a step before: they ask each other over their CPUs and go on, and the
    answer has come by the time that they read it.

    Args:
        mine: what this process wishes now.
    """

    def __init__(self, mine: Callable[[], Sequence[bool]]):
        self.mine = mine
        self._group: dist.ProcessGroup | None = None
        self._asked: tuple[Tensor, dist.Work] | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """Before the first step, in every process."""
        if trainer.world_size == 1:
            return
        self._group = dist.new_group(backend="gloo")
        # Lightning asks in every step, and reads from the device, whether its own handler heard SIGTERM; ours is in its place.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self.ask()

    def ask(self) -> None:
        """Ask all processes what they wish; of each question the answer must be read (``known``) before the next is asked."""
        if self._group is not None:
            wished = torch.tensor(self.mine(), dtype=torch.int32)
            self._asked = wished, dist.all_reduce(wished, dist.ReduceOp.MAX, self._group, async_op=True)

    def known(self) -> list[bool]:
        """What some process wished when they asked; of one process alone, what it wishes now."""
        if self._asked is None:
            return list(self.mine())
        (wished, asked), self._asked = self._asked, None
        asked.wait()
        return [bool(one) for one in wished.numpy()]

    def end(self) -> None:
        """After the last step, in every process."""
        if self._group is not None:
            self.known()  # where a question is open: no step came after it
            dist.destroy_process_group(self._group)
            self._group = None
