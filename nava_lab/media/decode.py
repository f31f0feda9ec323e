"""Video files as pictures and sound on one clock.

    file      |v0   |v1   |v2 |v3      |v4 ...       frames by presentation time, of any rate, also a varying one
    clip         |------|------|------|------        one picture per 1 / video_hz: the mean of what was shown meanwhile
    sound        |~~~~~~~~~~~~~~~~~~~~~~~~~~~        mono, from the moment when both streams have begun

A clip covers the time in which a file has both picture and sound. The mean over time (a box filter) never misses a
flash that is shorter than a picture lasts, and a file written at the rate it is read at comes back frame by frame.

Shape letters: t frames, h w pixels, s samples, k channels of a sound layout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation
from jaxtyping import Float32, UInt8

LAST_PICTURE = 0.75  # share of its time that the last picture must be there for
SLACK_S, SLACK = 0.5, 0.05  # seconds, share: so much may a stream fall short of its declared duration
PAUSE_S = 600.0  # seconds without a sample that are still taken for a pause
BACK_S = 1.0  # seconds that a timestamp may run back; a picture that does is left out
DRIFT_S = 0.05  # seconds that sound may be away from its timestamps before it is placed anew
MIX = {"FL": 1.0, "FR": 1.0, "FC": 1.0, "LFE": 0.0, "LFE2": 0.0}  # share of a channel in mono; others SURROUND
SURROUND = 0.5**0.5  # as in ITU-R BS.775


class UnusableClip(Exception):
    """A file that cannot serve as a clip, and why."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(str(path), reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Footage:
    """What a file shows and sounds like, from the moment when both have begun until one of them ends.

    Attributes:
        frames: ``t h w 3``, picture i is the mean of what was shown from ``i / frame_rate`` s for its time.
        frame_rate: pictures per second.
        sound: ``s`` mono samples, nominally in [-1, 1], exactly as long as the pictures.
        sample_rate: samples per second.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    frame_rate: float
    sound: Float32[np.ndarray, " s"]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.frame_rate


def read_clip(path: str | os.PathLike[str], *, video_hz: float, size: int, sample_rate: int, least_s: float = 0.0) -> Footage:
    """Read a video file; only its small pictures and its mono sound are ever held in memory.

    Args:
        path: a file that FFmpeg reads; of several streams of a kind the best (or default) one is taken.
        video_hz: pictures per second to return.
        size: pixels along an edge of the square pictures: the largest central square, area-averaged.
        sample_rate: samples per second to return.
        least_s: seconds that there must be.

    Raises:
        UnusableClip: not a video, truncated or broken, without picture or sound, or shorter than ``least_s``.
    """
    with _reasons(path):
        with _opened(path) as container:
            begin, sound = _read_sound(path, container, sample_rate)
        with _opened(path) as container:
            origin, frames = _read_frames(path, container, (begin, begin + len(sound) / sample_rate), video_hz, size)
    seconds = len(frames) / video_hz
    if not frames or seconds < least_s - 1e-6:
        raise UnusableClip(path, f"only {seconds:.3g} s of picture with sound; {max(least_s, 1 / video_hz):.3g} s needed")
    samples = round(seconds * sample_rate)
    sound = sound[max(0, round((origin - begin) * sample_rate)) :][:samples]
    return Footage(np.stack(frames), video_hz, np.pad(sound, (0, samples - len(sound))), sample_rate)


def read_pictures(path: str | os.PathLike[str], video_hz: float, size: int, least_s: float) -> UInt8[np.ndarray, "t h w 3"]:
    """The pictures of a file that need not have sound, as ``read_clip`` would give them; at least ``least_s`` seconds."""
    with _reasons(path), _opened(path) as container:
        _, frames = _read_frames(path, container, (-np.inf, np.inf), video_hz, size)
    if not frames or len(frames) / video_hz < least_s - 1e-6:
        raise UnusableClip(path, f"only {len(frames) / video_hz:.3g} s of picture; {least_s:.3g} s needed")
    return np.stack(frames)


def read_sound(path: str | os.PathLike[str], sample_rate: int, least_s: float) -> Float32[np.ndarray, " s"]:
    """The mono sound of a file that need not have pictures, as ``read_clip`` would give it; at least ``least_s`` seconds."""
    with _reasons(path), _opened(path) as container:
        _, sound = _read_sound(path, container, sample_rate)
    if len(sound) < round(least_s * sample_rate):
        raise UnusableClip(path, f"only {len(sound) / sample_rate:.3g} s of sound; {least_s:.3g} s needed")
    return sound


def read_still(path: str | os.PathLike[str], size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The first picture of an image or video file."""
    with _reasons(path), _opened(path) as container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            raise UnusableClip(path, "no picture")
        for frame in container.decode(stream):
            return _square(frame, size, float(stream.sample_aspect_ratio or 1))
    raise UnusableClip(path, "no picture")


@contextmanager
def _reasons(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever the decoder says against a file, as UnusableClip."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UnusableClip(path, f"unreadable ({error.strerror})") from error
    except (av.error.FFmpegError, OSError) as error:
        raise UnusableClip(path, f"truncated, broken or not a video ({error.strerror or error})") from error


def _opened(path: str | os.PathLike[str]) -> InputContainer:
    if os.path.getsize(path) == 0:
        raise UnusableClip(path, "empty file")
    # Only the file itself is read: no address that a playlist in disguise may name.
    return av.open(os.fspath(path), metadata_errors="ignore", options={"protocol_whitelist": "file"})


def _declared_end(stream: av.stream.Stream) -> float | None:
    """When a stream ends by what the file says of it, in seconds."""
    if stream.duration is None or stream.time_base is None:
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _check_end(path: str | os.PathLike[str], what: str, end: float, declared: float | None) -> None:
    """Refuse a file that ends earlier than it declares, as a half-copied one does."""
    if declared is not None and declared - end > max(SLACK_S, SLACK * declared):
        raise UnusableClip(path, f"truncated: its {what} breaks off at {end:.3g} s of {declared:.3g} s")


# Sound


def _mono(layout: av.AudioLayout) -> Float32[np.ndarray, " k"]:
    """Weights that mix a layout's channels down: fronts fully, surrounds at -3 dB, no subwoofer, summing to 1."""
    weights = np.array([MIX.get(channel.name, SURROUND) for channel in layout.channels], np.float32)
    if not weights.any():
        weights[:] = 1.0
    return weights / weights.sum()


class _Mixer:
    """Decoded sound frames to mono pieces, each an unbroken stretch that starts at a known second."""

    def __init__(self, path: str | os.PathLike[str], sample_rate: int):
        self.path, self.sample_rate = path, sample_rate
        self.pieces: list[tuple[float, list[np.ndarray]]] = []
        self.resampler: AudioResampler | None = None
        self.form: tuple[str, str, int] | None = None
        self.due: float | None = None  # when the next frame should begin

    def take(self, frame: av.AudioFrame) -> None:
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        time = self.due or 0.0 if frame.time is None else frame.time
        if self.due is not None and not -BACK_S < time - self.due < PAUSE_S:
            raise UnusableClip(self.path, f"broken: its sound jumps from {self.due:.3g} s to {time:.3g} s")
        if self.due is None or form != self.form or abs(time - self.due) > DRIFT_S:
            self.flush()
            self.pieces.append((time, []))
            self.resampler = AudioResampler(format="fltp", rate=self.sample_rate)
            self.form, self.due = form, time
        assert self.resampler is not None
        assert self.due is not None
        self.due += frame.samples / frame.sample_rate
        frame.pts = None  # pieces are placed by their first sample; inside one, samples follow each other
        self._mix(self.resampler.resample(frame))

    def flush(self) -> None:
        if self.resampler is not None:
            self._mix(self.resampler.resample(None))

    def _mix(self, frames: list[av.AudioFrame]) -> None:
        self.pieces[-1][1].extend(_mono(frame.layout) @ frame.to_ndarray() for frame in frames)

    def sound(self) -> tuple[float, Float32[np.ndarray, " s"]]:
        """Start in seconds, and the pieces at their places; pauses are silence."""
        begin = self.pieces[0][0]
        placed = [(round((time - begin) * self.sample_rate), np.concatenate(parts)) for time, parts in self.pieces if parts]
        sound = np.zeros(max((at + len(part) for at, part in placed), default=0), np.float32)
        for at, part in placed:
            skip = max(0, -at)
            sound[at + skip : at + len(part)] = part[skip:]
        return begin, sound


def _read_sound(
    path: str | os.PathLike[str], container: InputContainer, sample_rate: int
) -> tuple[float, Float32[np.ndarray, " s"]]:
    """Start of the sound in seconds and its samples, without a codec's padding at either end."""
    stream = container.streams.best("audio")
    if not isinstance(stream, av.AudioStream):
        raise UnusableClip(path, "no sound track")
    if stream.codec_context is None:
        raise UnusableClip(path, "its sound is of a codec that this FFmpeg does not know")
    mixer = _Mixer(path, sample_rate)
    for frame in container.decode(stream):
        mixer.take(frame)
    mixer.flush()
    if not mixer.pieces:
        raise UnusableClip(path, "its sound track holds no samples")
    begin, sound = mixer.sound()
    end = _declared_end(stream)
    _check_end(path, "sound", begin + len(sound) / sample_rate, end)
    if end is not None:  # the last packet of a codec such as AAC is filled up with silence
        sound = sound[: max(0, round((end - begin) * sample_rate))]
    return begin, sound


# Pictures


class _Box:
    """Pictures shown for some time each, averaged over the equal steps of a clip."""

    def __init__(self, span: tuple[float, float], hz: float):
        self.origin, self.end, self.hz = *span, hz
        self.frames: list[np.ndarray] = []
        self.sum: np.ndarray | float = 0.0
        self.weight = 0.0

    def show(self, picture: UInt8[np.ndarray, "h w 3"], begin: float, end: float) -> None:
        """``picture`` stood from ``begin`` to ``end``."""
        begin, end = max(begin, self.origin), min(end, self.end)
        values = picture.astype(np.float32)
        while begin < end:
            edge = self.origin + (len(self.frames) + 1) / self.hz
            until = min(end, edge)
            self.sum = self.sum + values * (until - begin)
            self.weight += until - begin
            begin = until
            if until == edge:
                self.close()

    def close(self, least: float = 0.0) -> None:
        """End the current picture, if it has stood for the share ``least`` of its time."""
        if self.weight > least / self.hz:
            self.frames.append(np.rint(self.sum / self.weight).astype(np.uint8))
        self.sum, self.weight = 0.0, 0.0


def _read_frames(
    path: str | os.PathLike[str], container: InputContainer, heard: tuple[float, float], video_hz: float, size: int
) -> tuple[float, list[np.ndarray]]:
    """When picture and sound have both begun, and the pictures from then on."""
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.disposition & Disposition.attached_pic:
        raise UnusableClip(path, "no picture track")
    if stream.codec_context is None:
        raise UnusableClip(path, "its picture is of a codec that this FFmpeg does not know")
    usual = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    pixel_aspect = float(stream.sample_aspect_ratio or 1)
    box: _Box | None = None
    shown: tuple[np.ndarray, float] | None = None  # the picture that stands, and since when
    until = 0.0
    for frame in container.decode(stream):
        at = frame.time if frame.time is not None else until
        box = box or _Box((max(at, heard[0]), heard[1]), video_hz)
        if shown is not None:
            if at < shown[1] - BACK_S:
                raise UnusableClip(path, f"broken: its picture jumps from {shown[1]:.3g} s to {at:.3g} s")
            if at <= shown[1]:
                continue  # a repeated timestamp: the first picture of that moment stands
            box.show(*shown, at)
        shown = (_square(frame, size, pixel_aspect), at)
        until = at + (float(frame.duration * frame.time_base) if frame.duration and frame.time_base else usual)
        if at >= box.end and stream.duration is not None:
            break
    else:
        if box is None or shown is None:
            raise UnusableClip(path, "its picture track holds no frames")
        _check_end(path, "picture", until, _declared_end(stream))
        if stream.duration is None and container.duration:  # as in Matroska: only the longest stream's end is known
            whole = ((container.start_time or 0) + container.duration) / av.time_base
            _check_end(path, "content", max(until, heard[1]), whole)
        box.show(*shown, until)
    box.close(LAST_PICTURE)
    return box.origin, box.frames


def _square(frame: av.VideoFrame, size: int, pixel_aspect: float) -> UInt8[np.ndarray, "h w 3"]:
    """The largest central square of a frame as it is displayed, ``size`` pixels along an edge."""
    aspect = pixel_aspect * frame.width / frame.height
    height, width = max(size, round(size / aspect)), max(size, round(size * aspect))
    pixels = frame.reformat(width, height, "rgb24", interpolation=Interpolation.AREA).to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    return np.rot90(pixels[top : top + size, left : left + size], round(frame.rotation / 90))
