"""Silence about what a user of the command line cannot act on (no Lightning here, so that commands start fast)."""

from __future__ import annotations

import warnings


def quieten() -> None:
    """Silence advertisements and advice that a user of this command cannot act on."""
    import logging

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*Checkpoint directory .* exists.*",
        ".*infer the batch size.*",
        ".*IterableDataset.*",
        ".*Found .* module.* in eval mode.*",
        ".*Trying to infer.*",
        ".*IProgress not found.*",
        ".*torch.distributed is disabled, unavailable or uninitialized.*",
        ".*not yet implemented the batching rule for aten::_scaled_dot_product_flash_attention_for_cpu.*",  # nava bench seeds
        ".*FSDP2-wrapped module .* returned a view.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)
