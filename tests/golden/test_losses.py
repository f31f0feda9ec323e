"""Twenty steps of each family, step for step: whoever changes numbers changes this file too, and says why.

Regenerate with ``NAVA_GOLDEN=write ./nava test tests/golden``.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from nava_lab.config import load
from nava_lab.registry import variants
from nava_lab.rng import generators, stable_seed
from nava_lab.study.build import network, parts

GOLDEN = Path(__file__).with_name("losses.json")
NAMES = ["align_then_fuse", "dual_tower", "unified"]


def twenty_steps(name):
    config = load([f"variant={name}", "budget.parameters=300_000"])
    built = parts(config)
    torch.manual_seed(stable_seed("init", 0))
    model = network(config, built.solution)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(20):
        batch = config.world.batch("train", torch.arange(step * 8, step * 8 + 8))
        draws = built.drawing(batch.streams, generators("train", 0, batch.index.tolist()))
        loss = built.objective.total(built.objective.per_sample(model, batch, draws))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_losses(name):
    found = twenty_steps(name)
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("NAVA_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps({**kept, name: [round(loss, 6) for loss in found]}, indent=1) + "\n")
        return
    assert found == pytest.approx(kept[name], rel=2e-3)
    assert name in variants.names()
