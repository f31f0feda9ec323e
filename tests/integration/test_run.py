"""Whole runs: record, reuse, kill and continue, sample, score, compare, a newcomer's files."""

import json
import os
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import torch
from safetensors.torch import load_file

from nava_lab.registry import PACKAGE
from nava_lab.study.identity import code_fingerprint, variant_fingerprint
from nava_lab.study.record import SCHEMA
from nava_lab.study.run import _ours, state_of
from tests.commands import forked

ROOT = PACKAGE.parent
SMALL = ["budget.parameters=300_000", "training.batch_size=8", "training.validation_clips=16", "evaluation.clips=16",
         "evaluation.steps=2", "evaluation.loss_clips=16", "evaluation.previews=1", "output.progress=false"]  # fmt: skip


def nava(*arguments, cwd, check=True, env=None):
    """A command as a process; a new one where it has an environment of its own, or where no process can be forked."""
    if env is None and not torch.cuda.is_available():
        done = forked(arguments, cwd, cwd / "said")
    else:
        command = [sys.executable, "-c", "from nava_lab.cli import main; main()", *map(str, arguments)]
        own = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=own, timeout=400)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def only_run(root):
    runs = [path for path in (root / "runs").iterdir() if path.is_dir() and path.name != "compare"]
    assert len(runs) == 1
    return runs[0]


def without_clock(record):
    return {key: value for key, value in record.items() if key != "wall_time_s"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    nava("train", "variant=unified", "training.steps=24", *SMALL, cwd=root)
    return only_run(root)


def test_the_folder_holds_everything_and_the_record_fits_its_schema(finished):
    record = json.loads((finished / "record.json").read_text())
    jsonschema.validate(record, json.loads(SCHEMA.read_text()))
    assert record["steps"] == 24
    assert record["samples_seen"] == 24 * 8
    assert record["parameters"]["total"] == sum(part.numel() for part in load_file(finished / "model.safetensors").values())
    assert record["identity"]["config"] in finished.name
    assert {"sync_auc", "f1@80ms", "sync_error_ms", "count_error"} <= set(record["scores"])
    for name in ("config.yaml", "metrics.jsonl", "previews/clip_0.mp4", "previews/clip_0.png", "per_clip.json"):
        assert (finished / name).stat().st_size > 0
    assert list((finished / "checkpoints").glob("*.ckpt"))


def test_the_same_command_again_trains_nothing(finished):
    before = (finished / "record.json").stat().st_mtime_ns
    done = nava("train", "variant=unified", "training.steps=24", *SMALL, cwd=finished.parent.parent)
    assert "already finished" in done.stderr
    assert (finished / "record.json").stat().st_mtime_ns == before


def test_a_run_of_other_code_is_put_aside(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "runs" / finished.name)
    identity = tmp_path / "runs" / finished.name / "identity.json"
    identity.write_text(json.dumps({**json.loads(identity.read_text()), "code": "another"}))
    done = nava("train", "variant=unified", "training.steps=24", *SMALL, cwd=tmp_path)
    assert "made by other code" in done.stderr
    assert (tmp_path / "runs" / f"{finished.name}.code-another" / "record.json").exists()
    new, old = (json.loads((path / "record.json").read_text()) for path in (tmp_path / "runs" / finished.name, finished))
    assert without_clock(new) == without_clock(old)


def test_a_killed_training_ends_with_the_same_record_as_an_unbroken_one(finished, tmp_path):
    arguments = ["train", "variant=unified", "training.steps=24", *SMALL]
    command = [sys.executable, "-c", "from nava_lab.cli import main; main()", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoints/*.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = only_run(tmp_path)
    assert not (run / "model.safetensors").exists()
    newest = sorted((run / "checkpoints").glob("*.ckpt"))[-1]
    (run / "checkpoints" / "0000099.ckpt").write_bytes(newest.read_bytes()[:1000])  # as if torn while being written
    done = nava(*arguments, cwd=tmp_path)
    assert "0000099.ckpt cannot be read" in done.stderr
    assert "continuing from" in done.stderr
    assert not (run / "checkpoints" / "0000099.ckpt").exists()  # were it readable later, it would be continued from
    assert (run / "checkpoints" / "unread-0000099.ckpt").exists()
    for name in ("record.json", "metrics.jsonl"):
        broken, whole = (path / name for path in (run, finished))
        if name == "record.json":
            assert without_clock(json.loads(broken.read_text())) == without_clock(json.loads(whole.read_text()))
        else:
            assert broken.read_text() == whole.read_text()
    for name, part in load_file(run / "model.safetensors").items():
        assert part.equal(load_file(finished / "model.safetensors")[name])


def test_sample_and_score_work_from_a_run(finished, tmp_path):
    nava("sample", finished, "--count", 2, "--out", tmp_path / "new", cwd=tmp_path)
    assert (tmp_path / "new" / "clip_1.mp4").exists()
    record = json.loads((finished / "record.json").read_text())
    done = nava("score", finished, "evaluation.batch_size=5", cwd=tmp_path)
    score = record["scores"]["f1@80ms"]
    assert f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in done.stdout


def test_compare_writes_a_page_and_refuses_to_rank_unequal_runs(finished, tmp_path):
    nava("train", "variant=dual_tower", "training.steps=20", *SMALL, "training.batch_size=4", cwd=tmp_path)
    done = nava("compare", finished, only_run(tmp_path), "--out", tmp_path / "page", cwd=tmp_path)
    assert "Not ranked" in done.stdout
    assert "samples" in done.stdout
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("data:video/mp4") == 2
    assert "Not ranked" in page


def test_equal_runs_of_two_variants_are_ordered_without_a_verdict(finished, tmp_path):
    nava("train", "variant=dual_tower", "training.steps=24", *SMALL, cwd=tmp_path)
    done = nava("compare", finished, only_run(tmp_path), "--out", tmp_path / "page", cwd=tmp_path)
    assert "Exploratory: 1 seed per variant" in done.stdout
    assert "Not ranked" not in done.stdout


def test_multirun_checks_every_value_before_training(tmp_path):
    done = nava("train", "-m", "variant=unified,dual_towr", "training.steps=4", *SMALL, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "dual_tower" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_multirun_runs_every_value(tmp_path):
    nava("train", "-m", "world=gaussian", "variant=unified", "seed=0,1", "training.steps=4", *SMALL, cwd=tmp_path)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/record.json")]
    assert sorted(record["seed"] for record in records) == [0, 1]
    assert all("cross_modal_use" in record["scores"] for record in records)


def test_two_processes_train_what_one_does(tmp_path):
    """The same clips in the same steps, the gradients summed in another order; one log, one record, one set of previews.

    Some samples are given a modality, unequally many in the two shares of a batch.
    """
    both = {}
    for folder, machine in (("one", []), ("two", ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"])):
        (tmp_path / folder).mkdir()
        command = [sys.executable, "-m", "nava_lab", "train", "variant=unified", "training.steps=12"]
        command += ["flow.modality_given=0.7", *SMALL, *machine]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path / folder, capture_output=True, text=True, env=env, timeout=400)
        assert done.returncode == 0, done.stderr
        both[folder] = only_run(tmp_path / folder)
    one, two = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (both["one"], both["two"])
    )
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for mine, other in zip(one, two, strict=True):
        assert {key: pytest.approx(value, rel=1e-3) for key, value in mine.items()} == other
    records = [json.loads((path / "record.json").read_text()) for path in both.values()]
    assert records[0]["samples_seen"] == records[1]["samples_seen"] == 12 * 8
    assert records[0]["scores"].keys() == records[1]["scores"].keys()
    assert both["one"].name != both["two"].name  # the machine is part of a run's identity


def test_one_run_is_not_written_by_two_processes(finished):
    from filelock import FileLock

    with FileLock(finished.with_name(f".{finished.name}.lock")):
        done = nava("train", "variant=unified", "training.steps=24", *SMALL, cwd=finished.parent.parent, check=False)
    assert done.returncode == 2
    assert "being trained by another process" in done.stderr


TOY_BLOCK = '''
"""A block that only mixes within each token."""
from dataclasses import dataclass

from torch import nn

from nava_lab.blocks.base import Dims, Spans
from nava_lab.blocks.options import Traits
from nava_lab.blocks.sublayers import FeedForward, Modulation, Norms, SelfAttention
from nava_lab.registry import blocks


@blocks.register("toy_block")
@dataclass(frozen=True)
class ToyBlock:
    """Parallel attention and feed-forward."""

    def build(self, dims: Dims) -> nn.Module:
        return ToyModule(dims)


class ToyModule(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.norm = Norms(dims.names, dims, False, affine=True)
        self.modulation = Modulation(dims.names, dims, False, Traits())
        self.attention = SelfAttention(dims.names, dims, False, Traits())
        self.feed_forward = FeedForward(dims.names, dims, False, Traits())

    def forward(self, x, given):
        spans = Spans.of(x)
        row = spans.pack(x)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(given, spans)
        y = self.norm(row, spans)
        row = row + gate1 * self.attention(y * (1 + scale1) + shift1, spans, given)
        return spans.unpack(row + gate2 * self.feed_forward(y * (1 + scale2) + shift2, spans))
'''
TOY_VARIANT = '''
"""All layers of one toy block."""
from dataclasses import dataclass

from nava_lab.blocks.toy_block import ToyBlock
from nava_lab.models.variant import Stage, Variant
from nava_lab.registry import variants


@variants.register("toy_variant")
@dataclass(frozen=True)
class ToyVariant(Variant):
    """A newcomer's first idea."""

    text_place: str = "sequence"

    def stages(self):
        return [Stage(ToyBlock(), self.depth, "toys")]
'''


def test_a_newcomers_block_and_variant_take_one_file_each(tmp_path):
    """In a copy of the checkout, so that nothing here is touched: they appear in help, describe, contracts and report."""
    import shutil

    for part in ("nava_lab", "variants", "configs", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "nava_lab" / "blocks" / "toy_block.py").write_text(TOY_BLOCK)
    (tmp_path / "variants" / "toy_variant.py").write_text(TOY_VARIANT)
    env = {"PYTHONPATH": str(tmp_path)}
    assert "toy_variant        A newcomer's first idea." in nava("--help", cwd=tmp_path, env=env).stdout
    described = json.loads(nava("describe", "variant=toy_variant", "--json", cwd=tmp_path, env=env).stdout)
    assert described["stages"] == [{"label": "toys", "layers": 6, "block": "toy_block()", "text": True, "only": []}]
    assert abs(described["budget"]["realised"] / 1e6 - 1) <= 0.005
    contracts = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/contracts", "-k", "toy and not budgets_are_met"],
        cwd=tmp_path, env={**os.environ, **env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert contracts.returncode == 0, contracts.stdout
    assert int(contracts.stdout.split(" passed")[0].split()[-1]) >= 15
    nava("train", "variant=toy_variant", "training.steps=4", *SMALL, cwd=tmp_path, env=env)
    assert "toy_variant" in nava("compare", only_run(tmp_path), cwd=tmp_path, env=env).stdout


def test_a_run_of_another_pytorch_is_told_apart_and_put_aside(tmp_path):
    folder = tmp_path / "unified-pulse-s0-0123456789"
    folder.mkdir()
    now = {"code": code_fingerprint(), "variant_code": variant_fingerprint("unified"), "revision": "abc"}
    told = []
    for version, state in ((torch.__version__, "begun"), ("1.9", "missing")):
        (folder / "identity.json").write_text(json.dumps({**now, "torch": version}))
        assert state_of(folder) == state
        assert _ours(folder, {**now, "torch": torch.__version__}, told.append) == (state == "begun")
    assert "made by other code (revision abc, PyTorch 1.9)" in told[0]
    assert [path.name for path in tmp_path.iterdir()] == [f"{folder.name}.code-{now['code']}"]
