"""Written films play anywhere, keep sight and sound together, and appear whole or not at all."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from nava_lab.media import write
from nava_lab.media.decode import read_clip
from nava_lab.media.write import write_mp4


def scene(frames: int, rate: float, sample_rate: int, edges: tuple[int, int] = (16, 16)) -> dict:
    """A gradient with a flash, and a beep that starts with it, in the middle."""
    pictures = np.full((frames, *edges, 3), 40, np.uint8)
    pictures[..., 0] = np.linspace(0, 255, edges[1]).astype(np.uint8)
    pictures[frames // 2] = 230
    sound = np.zeros(round(frames / rate * sample_rate), np.float32)
    at = round(frames // 2 / rate * sample_rate)
    beep = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(sample_rate // 20) / sample_rate)
    sound[at : at + len(beep)] = beep[: len(sound) - at]
    return {"frames": pictures, "frame_rate": rate, "sound": sound, "sample_rate": sample_rate}


@pytest.mark.parametrize(
    ("frames", "rate", "sample_rate"),
    [(25, 12.5, 16_000), (16, 8.0, 16_000), (48, 24_000 / 1001, 44_100), (45, 30.0, 48_000), (20, 10.0, 20_000)],
)
def test_round_trip_keeps_pictures_sync_and_duration(tmp_path: Path, frames: int, rate: float, sample_rate: int) -> None:
    clip = scene(frames, rate, sample_rate)
    path = write_mp4(tmp_path / "clip.mp4", **clip)
    back = read_clip(path, video_hz=rate, size=16, sample_rate=sample_rate)
    assert back.frames.shape == clip["frames"].shape
    assert len(back.sound) == len(clip["sound"])
    assert np.abs(back.frames.astype(int) - clip["frames"]).max() < 16
    assert back.frames.mean((1, 2, 3)).argmax() == frames // 2
    first = np.flatnonzero(np.abs(back.sound) > 0.2)[0] - np.flatnonzero(np.abs(clip["sound"]) > 0.2)[0]
    assert abs(first) <= sample_rate / 1000
    assert np.corrcoef(back.sound, clip["sound"])[0, 1] > 0.98


def test_the_file_is_what_browsers_play(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "deep" / "er" / "clip.mp4", **scene(25, 12.5, 16_000))
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height, video.average_rate) == (256, 256, Fraction(25, 2))
        assert (audio.codec_context.name, audio.rate) == ("aac", 16_000)
        assert video.start_time == 0
        assert video.duration * video.time_base == audio.duration * audio.time_base == 2
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("edges", "scale", "expected"),
    [
        ((16, 16), None, (256, 256)),
        ((9, 15), None, (262, 436)),
        ((300, 200), None, (600, 400)),
        ((15, 15), 3, (46, 46)),
    ],
)
def test_small_pictures_are_enlarged_to_even_edges(
    tmp_path: Path, edges: tuple[int, int], scale: int | None, expected: tuple[int, int]
) -> None:
    path = write_mp4(tmp_path / "clip.mp4", **scene(4, 8.0, 16_000, edges), scale=scale)
    with av.open(str(path)) as container:
        assert (container.streams.video[0].height, container.streams.video[0].width) == expected


def test_enlarged_pixels_have_sharp_edges(tmp_path: Path) -> None:
    pictures = np.zeros((4, 16, 16, 3), np.uint8)
    pictures[:, ::2, ::2] = pictures[:, 1::2, 1::2] = 255
    path = write_mp4(tmp_path / "board.mp4", frames=pictures, frame_rate=8.0, sound=np.zeros(8000), sample_rate=16_000)
    back = read_clip(path, video_hz=8, size=256, sample_rate=16_000).frames
    assert np.abs(back.astype(int) - pictures.repeat(16, 1).repeat(16, 2)).mean() < 4


@pytest.mark.parametrize("samples", [0, 5000, 16_000, 90_000])
def test_sound_is_made_as_long_as_the_pictures(tmp_path: Path, samples: int) -> None:
    clip = scene(16, 8.0, 16_000) | {"sound": np.full(samples, 3.0)}
    path = write_mp4(tmp_path / "clip.mp4", **clip)
    with av.open(str(path)) as container:
        assert {float(stream.duration * stream.time_base) for stream in container.streams} == {2.0}


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mp4(tmp_path / "clip.mp4", **scene(8, 8.0, 16_000))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(write, "_picture", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_mp4(path, **scene(16, 8.0, 16_000))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((0, 16, 16, 3), np.uint8)}, "not empty"),
        ({"frames": np.zeros((4, 16, 16, 3), np.float32)}, "uint8|UInt8"),
        ({"frame_rate": 0.0}, "must be positive"),
        ({"scale": 0}, "must be positive"),
        ({"sound": np.full(16_000, np.nan)}, "finite"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        write_mp4(tmp_path / "clip.mp4", **(scene(8, 8.0, 16_000) | change))
    assert not any(tmp_path.iterdir())
