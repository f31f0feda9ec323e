"""Do the families learn, and only through what they are allowed to see? Minutes each: ``./nava test -m slow -n 1``."""

import json

import pytest

from nava_lab.config import load
from nava_lab.registry import variants
from nava_lab.study.run import run

pytestmark = pytest.mark.slow
FAMILIES = ["dual_tower", "unified", "align_then_fuse"]


def scores(tmp_path, *overrides):
    folder = run(load([*overrides, f"output.root={tmp_path}", "output.progress=false", "logger=none"]))
    return json.loads((folder / "record.json").read_text())["scores"]


@pytest.mark.parametrize("name", FAMILIES)
def test_pulse_is_learnt_and_cut_models_are_at_chance(name, tmp_path):
    assert name in variants.names()
    assert scores(tmp_path, f"variant={name}")["sync_auc"]["low"] > 0.3
    cut = scores(tmp_path, f"variant={name}", "experiment=cut")["sync_auc"]
    assert cut["low"] <= 0 <= cut["high"]


@pytest.mark.parametrize("name", FAMILIES)
def test_gaussian_use_is_above_one_half_and_nil_when_cut(name, tmp_path):
    assert scores(tmp_path, f"variant={name}", "world=gaussian")["cross_modal_use"]["low"] > 0.5
    cut = scores(tmp_path, f"variant={name}", "world=gaussian", "experiment=cut")["cross_modal_use"]["value"]
    assert -0.1 < cut < 0.05  # a model that cannot look is a little worse than the best that cannot
