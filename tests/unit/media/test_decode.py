"""Files of many kinds come back as pictures and sound on one clock; files that cannot say why."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from nava_lab.media.decode import Footage, UnusableClip, read_clip

RATE = 16_000
DEFAULT = av.stream.Disposition.default


def make(
    path: Path,
    *,
    video: str | None = "libx264",
    sound: str | None = "aac",
    fps: Fraction | int = 25,
    edges: tuple[int, int] = (64, 48),
    seconds: float = 2.0,
    rate: int = 44_100,
    layout: str = "stereo",
    event: float = 1.0,
    late: tuple[float, float] = (0.0, 0.0),
    times: list[float] | None = None,
    rotation: int = 0,
    picture: np.ndarray | None = None,
) -> Path:
    """A dark film with a white frame and a click at ``event`` seconds; its picture and its sound begin ``late``."""
    width, height = edges
    fps = Fraction(fps)
    with av.open(str(path), "w") as container:
        if video:
            track = container.add_stream(video, rate=fps, options={"g": "12"})
            track.width, track.height, track.pix_fmt = width, height, "yuv420p"
            if rotation:
                track.set_display_rotation(rotation)
            track.codec_context.time_base = Fraction(1, 90_000) if times else 1 / fps
            stamps = times or [float(number / fps) for number in range(int(seconds * fps))]
            lit = next((number for number, time in enumerate(stamps) if time >= event - 1e-9), -1)
        if sound:
            heard = container.add_stream(sound, rate=rate, layout=layout)
        if video:
            for number, time in enumerate(stamps):
                value = 255 if number == lit else 16
                pixels = np.full((height, width, 3), value, np.uint8) if picture is None else picture
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
                frame.time_base = track.codec_context.time_base
                frame.pts = round((time + late[0]) / frame.time_base)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
        if sound:
            samples = np.zeros((len(av.AudioLayout(layout).channels), round(seconds * rate)), np.float32)
            at = round(event * rate)
            wave = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(rate // 25) / rate)
            samples[:, at : at + len(wave)] = wave[: samples.shape[1] - at]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(late[1] * rate)
            container.mux(heard.encode(frame))
            container.mux(heard.encode(None))
    return path


def when(clip: Footage) -> tuple[float, float]:
    """Start of the brightest picture and of the first loud sample, in seconds."""
    light = clip.frames.mean((1, 2, 3))
    loud = np.abs(clip.sound)
    return float(light.argmax() / clip.frame_rate), float(np.flatnonzero(loud > 0.5 * loud.max())[0] / clip.sample_rate)


def read(path: Path, **changes: float) -> Footage:
    return read_clip(path, **{"video_hz": 25.0, "size": 32, "sample_rate": RATE} | changes)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"fps": 30}),
        ("a.mp4", {"fps": Fraction(24_000, 1001), "layout": "mono", "rate": 48_000, "edges": (96, 54)}),
        ("a.mp4", {"fps": Fraction(25, 2), "layout": "5.1", "edges": (48, 64)}),
        ("a.avi", {"video": "mpeg4", "sound": "libmp3lame"}),
        ("a.mov", {"video": "mpeg4", "sound": "pcm_s16le", "rate": 8000}),
        ("a.webm", {"video": "libvpx-vp9", "sound": "libopus", "rate": 48_000, "fps": 10}),
        ("a.mkv", {"sound": "flac", "fps": 60}),
        ("a.ts", {"video": "mpeg2video", "sound": "mp2"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())).replace("/", ":"),
)
@pytest.mark.parametrize("video_hz", [25.0, 12.5, 8.0])
def test_flash_and_click_stay_together_in_every_container(tmp_path: Path, name: str, settings: dict, video_hz: float) -> None:
    clip = read(make(tmp_path / name, event=1.2, **settings), video_hz=video_hz)
    flash, click = when(clip)
    frame = max(1 / video_hz, float(1 / Fraction(settings.get("fps", 25))))
    assert abs(flash - 1.2) <= frame + 1e-9
    unsaid = 0.03 if name in ("a.avi", "a.ts") else 0.0  # these containers do not tell of an encoder's delay
    assert abs(click - 1.2) < 0.006 + unsaid
    assert 2.0 - 0.75 / video_hz - 0.06 <= clip.seconds <= 2.1
    assert clip.frames.shape == (round(clip.seconds * video_hz), 32, 32, 3)
    assert len(clip.sound) == round(clip.seconds * RATE)
    assert 0.4 < np.abs(clip.sound).max() < 1.1


@pytest.mark.parametrize(("late", "event", "seconds"), [((0, 0.5), 0.7, 1.5), ((0.4, 0), 1.0, 1.6), ((0.4, 0.5), 0.9, 1.9)])
def test_start_times_are_honoured(tmp_path: Path, late: tuple[float, float], event: float, seconds: float) -> None:
    """An event at second 1 of each stream, whose streams begin late: the clip begins when both have."""
    clip = read(make(tmp_path / "late.mkv", late=late, sound="flac"))
    flash, click = when(clip)
    begin = max(late)
    assert flash == pytest.approx(late[0] + 1.0 - begin, abs=1 / 25 + 1e-6)
    assert click == pytest.approx(late[1] + 1.0 - begin, abs=0.006)
    assert clip.seconds == pytest.approx(min(late) + 2.0 - begin, abs=1 / 25 + 1e-6)


def test_start_times_in_mp4_edit_lists(tmp_path: Path) -> None:
    """AAC's 23 ms of priming stand before the sound, so the clip begins that much earlier; nothing shifts."""
    clip = read(make(tmp_path / "late.mp4", late=(0.0, 0.48)), video_hz=100.0)
    flash, click = when(clip)
    assert click - flash == pytest.approx(0.48, abs=0.011)
    assert clip.seconds == pytest.approx(2.0 - 0.48 + 0.023, abs=0.011)


def test_varying_frame_rate_goes_by_presentation_time(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.08, 0.5, 0.52, 1.4, 1.44, 1.48, 1.9]
    clip = read(make(tmp_path / "varying.mkv", times=times, event=0.5, sound="flac"), video_hz=50.0)
    flash, click = when(clip)
    assert (flash, click) == (pytest.approx(0.5, abs=1e-6), pytest.approx(0.5, abs=0.006))
    assert (clip.frames.mean((1, 2, 3)) > 128).sum() == 1  # it stood for 20 ms


def test_pictures_are_means_over_their_time(tmp_path: Path) -> None:
    """One white frame of 1/25 s is a fifth of a picture of 1/5 s."""
    clip = read(make(tmp_path / "a.mkv", event=1.0, sound="flac"), video_hz=5.0)
    light = clip.frames.mean((1, 2, 3))
    assert light[5] == pytest.approx(16 + (255 - 16) / 5, abs=3)
    assert np.delete(light, 5) == pytest.approx(16, abs=3)


def test_the_largest_central_square_is_kept_and_area_averaged(tmp_path: Path) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 32:96] = (200, 60, 60)
    picture[::2, 64:96] = (20, 220, 20)
    picture[1::2, 64:96] = (20, 20, 220)
    clip = read(make(tmp_path / "a.mkv", edges=(128, 64), picture=picture, sound="flac"), size=16)
    left, right = clip.frames[:, :, :7].mean((0, 1, 2)), clip.frames[:, :, 9:].mean((0, 1, 2))
    assert left == pytest.approx((200, 60, 60), abs=12)
    assert right == pytest.approx((20, 120, 120), abs=25)


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_rotation_of_a_phone_is_undone(tmp_path: Path, rotation: int) -> None:
    picture = np.full((64, 64, 3), 16, np.uint8)
    picture[:16] = 240
    clip = read(make(tmp_path / "a.mp4", edges=(64, 64), picture=picture, rotation=rotation))
    upright = np.rot90(picture[::2, ::2], rotation // 90)  # counter-clockwise
    assert np.abs(clip.frames[3].astype(int) - upright).mean() < 8


def test_surround_is_mixed_without_its_subwoofer(tmp_path: Path) -> None:
    mono = read(make(tmp_path / "mono.mkv", sound="flac", layout="mono")).sound
    six = read(make(tmp_path / "six.mkv", sound="flac", layout="5.1")).sound
    assert six == pytest.approx(mono, abs=1e-3)  # the same wave in every channel


def test_of_several_streams_the_default_is_taken(tmp_path: Path) -> None:
    """Two pictures and two sounds, the second of each marked as default."""
    path = tmp_path / "many.mkv"
    with av.open(str(path), "w") as container:
        videos = []
        for edge in (32, 128):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = edge, edge, "yuv420p"
            stream.disposition = DEFAULT if edge == 128 else av.stream.Disposition(0)
            videos.append((stream, 255 if edge == 128 else 0))
        sounds = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        sounds[0].disposition, sounds[1].disposition = av.stream.Disposition(0), DEFAULT
        for number in range(50):
            for stream, value in videos:
                pixels = np.full((stream.height, stream.width, 3), value, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream, level in zip(sounds, (0.0, 0.5), strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, 2 * RATE), level, np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
            container.mux(stream.encode(frame))
        for stream in (*(stream for stream, _ in videos), *sounds):
            container.mux(stream.encode(None))
    clip = read(path)
    assert clip.frames.mean() > 240
    assert clip.sound.mean() == pytest.approx(0.5, abs=0.01)


def refusal(path: Path, **changes: float) -> str:
    with pytest.raises(UnusableClip) as caught:
        read(path, **changes)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_unusable_files_say_why(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a film, only its name says so\n" * 50)
    assert "not a video" in refusal(text)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert refusal(empty) == "empty file"
    assert "unreadable" in refusal(tmp_path / "missing.mp4")
    assert refusal(make(tmp_path / "silent.mp4", sound=None)) == "no sound track"
    assert refusal(make(tmp_path / "radio.mp4", video=None)) == "no picture track"
    assert "only 2 s" in refusal(make(tmp_path / "short.mp4"), least_s=2.5)
    apart = refusal(make(tmp_path / "apart.mkv", late=(0.0, 5.0), sound="flac"))
    assert "only 0 s of picture with sound" in apart


@pytest.mark.parametrize(
    ("name", "settings"), [("a.mp4", {}), ("a.mov", {"sound": "pcm_s16le", "video": "mpeg4"}), ("a.mkv", {})]
)
@pytest.mark.parametrize("kept", [0.5, 0.8])
def test_truncated_files_are_refused(tmp_path: Path, name: str, settings: dict, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    whole = make(tmp_path / name, seconds=4, picture=noise, **settings)
    for front in (False, True):
        cut = tmp_path / f"cut-{name}"
        data = (index_first(whole) if front else whole).read_bytes()
        cut.write_bytes(data[: int(len(data) * kept)])
        assert "truncated" in refusal(cut)


def index_first(path: Path) -> Path:
    """The same streams, with the index at the front, so that a cut file still opens."""
    moved = path.with_name(f"front-{path.name}")
    with av.open(str(path)) as old, av.open(str(moved), "w", options={"movflags": "faststart"}) as new:
        tracks = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                new.mux(packet)
    return moved


def test_unicode_names(tmp_path: Path) -> None:
    assert read(make(tmp_path / "фильм, 映画 é 🎬.mp4")).seconds == 2.0


def test_long_files_are_never_held_at_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame is made small as it is decoded: nothing else of it is kept."""
    from nava_lab.media import decode

    seen: list[tuple[int, ...]] = []
    show = decode._Box.show
    monkeypatch.setattr(decode._Box, "show", lambda box, picture, *span: seen.append(picture.shape) or show(box, picture, *span))
    read(make(tmp_path / "a.mp4", edges=(320, 240)), size=16)
    assert set(seen) == {(16, 16, 3)}
