"""A new solver and a new guidance term are one file each: help, config and every law find them. In a copy of the checkout."""

import os
import shutil
import subprocess
import sys

from nava_lab.registry import PACKAGE

SOLVER = '''
"""Ralston's method."""
from dataclasses import dataclass
from typing import ClassVar

from nava_lab.flow.solvers.base import OneStep, between, move
from nava_lab.registry import solvers


@solvers.register("toy_ralston")
@dataclass(frozen=True)
class ToyRalston(OneStep):
    """Order 2, the second evaluation at two thirds."""

    order: ClassVar[int] = 2

    def step(self, x, now, then, velocity):
        first, late = velocity(x, now), between(now, then, 2 / 3)
        second = velocity(move(x, first, now, late), late)
        return move(x, {name: 0.25 * v + 0.75 * second[name] for name, v in first.items()}, now, then)
'''
TERM = '''
"""Guidance away from hearing and reading nothing at once."""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nava_lab.conditioning.text import without_text
from nava_lab.flow.guidance.base import Scale, Term
from nava_lab.registry import guidance


@guidance.register("toy_alone")
@dataclass(frozen=True)
class ToyAlone(Term):
    """Away from neither caption nor other modality."""

    scale: Scale = 1.0

    example: ClassVar[Mapping[str, object]] = {"scale": 2.0}

    def null(self, call, encode):
        everyone = torch.ones(len(call.text.tokens), dtype=torch.bool, device=call.text.tokens.device)
        return replace(call, text=without_text(call.text, everyone), cut=everyone)

    def untrained(self, drawing, captions):
        trained = 0 < drawing.text_dropout < 1 and 0 < drawing.modality_dropout < 1
        return "" if trained else "never trained; train with flow.modality_dropout=0.2 and flow.text_dropout=0.1"
'''


def test_a_solver_and_a_term_take_one_file_each(tmp_path):
    for part in ("nava_lab", "variants", "configs", "tests"):
        shutil.copytree(PACKAGE.parent / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    (tmp_path / "nava_lab" / "flow" / "solvers" / "toy_ralston.py").write_text(SOLVER)
    (tmp_path / "nava_lab" / "flow" / "guidance" / "toy_alone.py").write_text(TERM)

    def python(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=400,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    told = python("-c", "from nava_lab.cli import main; main(['train', '--help'])").stdout
    assert "toy_ralston" in told
    assert "evaluation.guidance.toy_alone=1.0" in told
    laws = python(
        "-m", "pytest", "-p", "no:cacheprovider", "tests/laws/test_solvers.py", "tests/laws/test_guidance.py", "-k", "toy"
    )
    assert laws.returncode == 0, laws.stdout
    assert int(laws.stdout.split(" passed")[0].split()[-1]) >= 25
