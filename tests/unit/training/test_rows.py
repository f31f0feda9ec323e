"""Which clips a step sees, and when a run is saved."""

import torch

from nava_lab.training.data import Indices, first_clip
from nava_lab.training.settings import Training


def test_devices_share_each_row_and_the_last_row_may_be_short():
    whole = list(Indices(100, 20, 8, 0, 1))
    assert torch.cat(whole).tolist() == list(range(100, 120))
    assert [len(row) for row in whole] == [8, 8, 4]
    halves = [list(Indices(100, 20, 8, rank, 2)) for rank in (0, 1)]
    assert [torch.cat(parts).tolist() for parts in zip(*halves, strict=True)] == [row.tolist() for row in whole]


def test_seeds_see_different_clips_and_one_seed_the_same():
    starts = [first_clip(seed) for seed in range(8)]
    assert starts == [first_clip(seed) for seed in range(8)]
    assert min(abs(a - b) for a in starts for b in starts if a != b) > 1e6


def test_checkpoints_are_as_many_as_asked_for_between_start_and_end_and_on_no_validation():
    for steps, checkpoints, validations in ((500, 1, 10), (400, 10, 10), (24, 10, 10), (20, 3, 0), (7, 2, 3)):
        training = Training(steps=steps, checkpoints=checkpoints, validations=validations)
        moments = training.saved_after()
        assert len(moments) == checkpoints
        assert 0 < min(moments) <= max(moments) < steps
        every = training.every(validations)
        assert not any(every > 1 and step % every == 0 for step in moments)
