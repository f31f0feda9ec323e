"""A new world is one file: help, the contract tests and the suite find it, and no test must be told. In a copy of the checkout."""

import os
import shutil
import subprocess
import sys

from nava_lab.registry import PACKAGE

WORLD = '''
"""World ``toy_echo``: each flash is heard a tenth of a second late.

    time      0.0       0.5       1.0 s
    video     . . . # + . . . . . .
    audio     ........|\\\\...........
    text      "echo"
"""
from dataclasses import dataclass, replace

import torch

from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.worlds.base import levels
from nava_lab.worlds.staged import Script, Staged


@worlds.register("toy_echo")
@dataclass(frozen=True)
class ToyEcho(Staged):
    """Late sounds."""

    density: float = 1.0
    late_s: float = 0.1

    version = "toy_echo-1"
    metrics = ("binding", "loss")
    headline = "binding_kappa"
    LEVELS = levels(density=(0.75, 1.0, 1.5))
    kinds = 2

    @property
    def most(self):
        return self.counting(self.density).most

    @property
    def vocabulary(self):
        return ["echo"], 1

    def script(self, split, index):
        counts = self.counts(uniform(self.seed(split, "clip"), index, 1)[:, 0], self.density)
        which = (uniform(self.seed(split, "which"), index, self.most) * 2).long()
        seen = replace(self.moments(split, index, counts, self.most), kind=which)
        heard = replace(seen, seconds=seen.seconds + self.late_s)
        words = self.tokenizer.spelled(["echo"], torch.zeros_like(index)).unsqueeze(-1)
        return Script(seen, heard, words, {"timbre_of": torch.arange(2).expand(len(index), -1)})
'''


def test_a_world_takes_one_file(tmp_path):
    for part in ("nava_lab", "variants", "configs", "tests"):
        shutil.copytree(PACKAGE.parent / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    (tmp_path / "nava_lab" / "worlds" / "toy_echo.py").write_text(WORLD)

    def python(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=400,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    told = python("-m", "nava_lab", "train", "--help").stdout
    assert "toy_echo           Late sounds." in told
    assert "world.late_s=0.1" in told
    files = ("tests/contracts/test_worlds.py", "tests/golden/test_worlds.py")
    contracts = python("-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-rs", *files, "-k", "toy")
    assert contracts.returncode == 0, contracts.stdout
    assert contracts.stdout.count(".") >= 9
    assert "toy_echo is not one of the house's worlds" in contracts.stdout
    suite = python("-m", "nava_lab", "suite", "toy_echo", "--clips", "128")
    assert suite.returncode == 0, suite.stdout + suite.stderr
    assert "toy_echo             binding_kappa   1.00 [1.00, 1.00]" in suite.stdout
    assert "not as it should be: none" in suite.stdout
