"""``nava describe world=NAME``: what it prints, and a page whose clips play and sound where it says that something happens."""

import base64
import re

import av
import numpy as np
import pytest
import torch

from nava_lab.cli import main as nava
from nava_lab.registry import worlds
from nava_lab.report.world import pointed, samples, shaded
from nava_lab.worlds.base import Mark

PROCEDURAL = [name for name in worlds if not worlds.get(name).SHORTCUTS]


@pytest.mark.parametrize("name", PROCEDURAL)
def test_every_world_has_a_page_that_stands_alone(name, tmp_path, capsys):
    nava(["describe", f"world={name}", "--count", "1", "--from=test", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    world = worlds.get(name)()
    (caption,), (marks,) = world.captions("test", torch.arange(1)), world.marks("test", torch.arange(1))
    assert caption in " ".join(printed.split())
    assert caption in page
    assert "time      0.0" in printed or "time      0.00" in printed
    assert page.count("<line class=") == len(marks) + 2  # and where the clip is at, in each modality
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert not list(tmp_path.glob("*.mp4"))
    films = re.findall(r"data:video/mp4;base64,([^\"]+)", page)
    assert len(films) == (0 if name == "gaussian" else 1)
    for film in films:
        (tmp_path / "clip.mp4").write_bytes(base64.b64decode(film))
        with av.open(str(tmp_path / "clip.mp4")) as container:
            assert {stream.type for stream in container.streams} == {"video", "audio"}
            assert container.duration / 1e6 == pytest.approx(2.0, abs=0.1)


def test_a_person_hears_events_where_they_are():
    """In the sonified clip, the loudness rises most within a frame of each onset."""
    world = worlds.get("pulse")()
    for sample in samples(world, "test", 6):
        rate, hop = sample.clip.sample_rate, 0.02
        power = np.square(sample.clip.sound[: round(2.0 * rate)]).reshape(-1, round(hop * rate)).mean(1)
        rises = np.diff(np.sqrt(power), prepend=0)
        for mark in sample.marks:
            if mark.modality == "audio":
                near = slice(int(mark.seconds / hop) - 1, int(mark.seconds / hop) + 3)
                assert rises[near].max() > 0.02
        quiet = power[: int(sample.marks[0].seconds / hop) - 1]
        assert quiet.max(initial=0) < 1e-6


def test_rows_in_a_terminal():
    assert shaded(np.array([0.0, 0.0, 1.0, 1.0]))[:16].strip() == ""
    assert shaded(np.array([0.0, 0.0, 1.0, 1.0]))[-16:] == "@" * 16
    assert pointed([Mark("audio", "red", 1.0), Mark("audio", "blue", 0.0, 0.5)], 2.0).rstrip() == "b" + "-" * 16 + " " * 15 + "r"


def test_what_cannot_be_is_refused(capsys):
    for words, said in (
        (["--count=0"], "at least 1"),
        (["--from", "tset"], "is not one of"),
        (["world.densty=3"], "world.density"),
    ):
        with pytest.raises(SystemExit):
            nava(["describe", "world=pulse", *words])
        assert said in capsys.readouterr().err
