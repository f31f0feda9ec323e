"""Twenty steps of each family, step for step: whoever changes numbers changes this file too, and says why.

Regenerate with ``NAVA_GOLDEN=write ./nava test -n 0 tests/golden``.
"""

import json
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from nava_lab.config import load
from nava_lab.registry import variants
from nava_lab.rng import stable_seed
from nava_lab.study.build import network, parts
from nava_lab.training.data import WorldData
from nava_lab.training.module import GenerativeModule

GOLDEN = Path(__file__).with_name("losses.json")
NAMES = ["align_then_fuse", "dual_tower", "unified"]


class Kept(pl.Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def twenty_steps(name, tmp_path):
    settings = ["training.steps=20", "training.batch_size=8", "training.validations=0"]
    config = load([f"variant={name}", "budget.parameters=300_000", *settings])
    built, kept = parts(config), Kept()
    torch.manual_seed(stable_seed("init", config.seed))
    module = GenerativeModule(network(config, built.solution), built.objective, built.drawing, config.training, config.seed)
    trainer = pl.Trainer(
        max_steps=20, accelerator="cpu", callbacks=[kept], gradient_clip_val=config.training.clip_norm, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, WorldData(config.world, config.training, config.seed))
    return kept.losses


@pytest.mark.parametrize("name", NAMES)
def test_losses(name, tmp_path):
    assert name in variants.names()
    found = twenty_steps(name, tmp_path)
    assert len(found) == 20
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("NAVA_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps({**kept, name: [round(loss, 6) for loss in found]}, indent=1) + "\n")
        return
    assert found == pytest.approx(kept[name], rel=2e-3)
