"""The README's commands are real: every command exists and every setting in it composes into a solvable run."""

import re
import shlex

import pytest

from nava_lab.cli import COMMANDS
from nava_lab.config import load
from nava_lab.registry import PACKAGE
from nava_lab.study.build import parts

README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```(?:sh|bash|console)\n(.*?)```", README, re.S)
LINES = [line.split("#")[0].strip() for block in CODE for line in block.splitlines() if line.split("#")[0].strip()]
NAVA = [line for line in LINES if re.match(r"(\./)?nava ", line)]


def test_the_first_block_is_two_commands_and_the_test_command_is_cis():
    first = [line.split("#")[0].strip() for line in CODE[0].splitlines() if line.strip()]
    assert first == ["./nava demo", "./nava test"]
    assert (PACKAGE.parent / ".ci" / "run").read_text().strip().endswith(f"exec {first[1]}")


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert all((PACKAGE.parent / link).exists() for link in links)


@pytest.mark.parametrize("line", NAVA)
def test_every_command_exists_and_its_settings_are_known(line):
    words = shlex.split(line)[1:]
    assert words[0] in {*COMMANDS, "test", "check"}
    overrides = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    if words[0] in ("train", "describe", "demo") and "FOLDER" not in line:
        singles = [re.sub(r"=range\(.*\)$", "=0", word) for word in overrides]
        singles = [f"{key}={value.split(',')[0]}" for key, value in (word.split("=", 1) for word in singles)]
        assert parts(load(singles)).solution
