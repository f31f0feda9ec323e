"""What a comparison says of records, without any training."""

import json
from pathlib import Path

import pytest
import yaml

from nava_lab.report.compare import compare
from nava_lab.report.page import write_page
from nava_lab.report.table import shown_columns


def run(root: Path, variant: str, seed: int, value: float, truth: float = 1.0, **settings: object) -> Path:
    folder = root / f"{variant}-{seed}-{len(list(root.iterdir()))}"
    folder.mkdir()
    config = {
        "variant": {"name": variant, "clock": {"hz": 12.5}, **settings},
        "world": {"name": "pulse"},
        "training": {"steps": 10, "batch_size": 4},
        "flow": {},
        "attention": {},
        "trainer": {},
        "seed": seed,
    }

    def score(number: float) -> dict[str, float]:
        return {"value": number, "low": number - 0.1, "high": number + 0.1, "n": 8}

    record = {
        "schema": 1,
        "name": folder.name,
        "variant": variant,
        "world": "pulse",
        "seed": seed,
        "identity": {"data": "1", "code": "2", "variant_code": "3"},
        "budget": {"kind": "parameters", "requested": 1000, "realised": 1001},
        "parameters": {"total": 1001, "active_per_token": 500.0, "groups": {}},
        "flops_per_sample": 10,
        "samples_seen": 40,
        "wall_time_s": 1.0,
        "evaluation": {"clips": 8},
        "headline": "sync_auc",
        "higher_is_better": True,
        "scores": {"sync_auc": score(value), "a_newcomers_score": score(0.5)},
        "truth": {"sync_auc": score(truth)},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_settings_of_one_variant_are_told_apart(tmp_path):
    found = compare([run(tmp_path, "b", 0, 0.5, align=0.25), run(tmp_path, "b", 0, 0.6, align=0.5), run(tmp_path, "a", 0, 0.1)])
    assert [part.label for part in found.runs] == ["b (align 0.5)", "b (align 0.25)", "a"]
    assert found.verdict.startswith("Exploratory: 1 seed per variant")


def test_seeds_are_put_together_and_the_best_mean_comes_first(tmp_path):
    values = {"a": (0.2, 0.4), "b": (0.1, 0.9)}
    found = compare([run(tmp_path, name, seed, value) for name, pair in values.items() for seed, value in enumerate(pair)])
    assert [(row.label, row.seeds) for row in found.over_seeds()] == [("b", 2), ("a", 2)]
    assert [row.mean for row in found.over_seeds()] == pytest.approx([0.5, 0.3])
    page = write_page(found, tmp_path / "page").read_text()
    assert "Over seeds" in page
    assert "true clips, decoded" in page
    assert "a_newcomers_score" in shown_columns(found)


def test_one_seed_is_no_mean_and_unequal_truths_are_not_shown(tmp_path):
    found = compare([run(tmp_path, "a", 0, 0.2), run(tmp_path, "b", 0, 0.3, truth=0.9)])
    assert found.over_seeds() == []
    assert found.truth() == {}
