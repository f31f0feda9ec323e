"""The least loss that any model could have in a run, where its world knows it: the E of a scaling law."""

from __future__ import annotations

import torch

from nava_lab.config import Config
from nava_lab.evaluation.loss import Loss
from nava_lab.evaluation.protocol import batches
from nava_lab.rng import generators
from nava_lab.study.build import parts


@torch.no_grad()
def least_loss(config: Config) -> float | None:
    """The Bayes loss at the very noise levels that the run's loss is measured at; None where the world knows none.

    Averaged as the score ``loss`` is. Where attention between modalities is cut, it is that of models which see one modality.
    """
    bayes = getattr(config.world, "bayes_loss", None)
    if bayes is None:
        return None
    built, metric = parts(config), Loss(config.world)
    protocol = built.protocol
    for batch in batches(config.world, protocol.split, protocol.loss_clips, protocol.batch_size, "cpu"):
        draws = built.scoring(batch.streams, generators("evaluation", config.seed, batch.index.tolist()))
        cut = draws.cut is not None and bool(draws.cut.all())
        metric.update_losses(batch, bayes(draws.levels, joint=not cut), draws.levels)
    return metric.compute()["loss"].value
