"""The README's commands are real: each is run, in small."""

import json
import os
import re
import shlex
import subprocess
import sys

from nava_lab.cli import COMMANDS, main
from nava_lab.registry import PACKAGE
from tests.unit.worlds.test_clips import film

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


SMALL = ["experiment=smoke", "evaluation.previews=1", "output.progress=false", "logger=none"]
DONE_ELSEWHERE = {"test", "check", "bench", "study", "suite"}  # this suite itself; these have tests of their own
PRACTISED = ["flow.modality_given=0.2", "flow.first_step.video=0.2", "flow.continuation=0.2"]  # uses that sample is asked for


def test_every_command_runs(tmp_path, monkeypatch, capsys):
    """In order and in one folder, with small settings, and two values of each list; RUN and FOLDER are made up."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "FOLDER"
    folder.mkdir()
    for number in range(4):
        film(folder / f"{number}.mp4", seconds=6.0)
    ran = []
    for line in NAVA:
        name, *words = shlex.split(line.replace("./nava", "nava"))[1:]
        assert name in {*COMMANDS, *DONE_ELSEWHERE}, line
        if name in DONE_ELSEWHERE:
            continue
        words = [_two(word) if "=" in word else word for word in words]
        if "RUN" in words:
            runs = sorted(path.parent for path in tmp_path.glob("runs/*-pulse-s0-*/record.json") if not _cut(path))
            words = [str(runs.pop(0)) if word == "RUN" else word for word in words]
        if "FILE" in words:
            tokens = next(tmp_path.glob("runs/*/samples/tokens.safetensors"))
            words = [str(tokens) if word == "FILE" else word for word in words]
        if name in ("train", "demo"):
            words += [*SMALL, *(["world.size=16"] if "world=clips" in words else [])]
            words = [word for word in words if not word.startswith("budget.")]
            words += [] if "experiment=cut" in words else PRACTISED
            if any(word == "experiment=cut" for word in words):
                words.remove("experiment=smoke")
                words += [
                    "budget.parameters=300_000",
                    "training.steps=4",
                    "training.validations=1",
                    "training.validation_clips=8",
                    "training.batch_size=8",
                    "evaluation.clips=16",
                    "evaluation.steps=2",
                ]
        main([name, *words])
        ran.append(name)
    assert set(ran) == set(COMMANDS) - DONE_ELSEWHERE
    printed = capsys.readouterr().out
    assert "page:" in printed
    assert "sync_auc" in printed


def _cut(path):
    return json.loads(path.read_text())["evaluation"]["modalities_cut"]


def _two(word):
    key, value = word.split("=", 1)
    return f"{key}={','.join(value.split(',')[:2])}"


def test_the_readmes_variant_works_as_printed(tmp_path, monkeypatch):
    """The example, with the imports of the file it points to, passes through budget and forward."""
    example = re.search(r"```python\n(@variants.*?)```", README, re.S)
    assert example
    copied = (PACKAGE.parent / "variants" / "magihuman.py").read_text().split("@variants")[0]
    (tmp_path / "sandwich.py").write_text(copied + example[1])
    program = (
        "from nava_lab.config import load; from nava_lab.study.describe import description\n"
        "print([stage['layers'] for stage in description(load(['variant=sandwich', 'variant.outer=2']))['stages']])"
    )
    env = {**os.environ, "NAVA_VARIANTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[2, 2, 2]"


def test_help_lists_everything_and_imports_nothing_heavy():
    program = (
        "import sys; from nava_lab.cli import main; main(sys.argv[1:]); sys.exit(bool({'torch', 'hydra'} & set(sys.modules)))"
    )
    for words in (["--help"], ["train", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert {"align_then_fuse", "gaussian"} <= set(done.stdout.split())
        assert "budget.parameters" in done.stdout
