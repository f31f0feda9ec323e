"""Pictures and sound as a file that browsers play: MP4 with H.264 (yuv420p) and AAC.

Shape letters: t frames, h w pixels, s samples.
"""

from __future__ import annotations

import math
import os
import secrets
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import OutputContainer
from av.video.reformatter import Colorspace, Interpolation
from jaxtyping import Float, UInt8

LEAST_EDGE = 256  # pixels of the shorter edge; below that a player's smoothing blurs what is to be seen
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # those that browsers play for certain
AAC_BITS = 128_000  # per second
H264 = {"crf": "16", "preset": "fast", "bf": "0"}  # no B-frames: the first picture has time 0 without an edit list
BT601, LIMITED_RANGE = 6, 1  # FFmpeg's numbers for SMPTE 170M and for brightness from 16 to 235


def write_mp4(
    path: str | os.PathLike[str],
    *,
    frames: UInt8[np.ndarray, "t h w 3"],
    frame_rate: float,
    sound: Float[np.ndarray, " s"],
    sample_rate: int,
    scale: int | None = None,
) -> Path:
    """Write a clip; the file appears at once and complete, or not at all.

    Args:
        path: where to; missing folders are made.
        frames: at least one picture.
        frame_rate: pictures per second, exact where it is a fraction such as 12.5 or 24000/1001.
        sound: mono samples in [-1, 1], cut beyond; made exactly as long as the pictures, with silence or by trimming.
        sample_rate: samples per second.
        scale: whole factor of enlargement, without smoothing; None takes the least that makes the shorter edge 256.

    Returns:
        The path.

    Raises:
        ValueError: no pictures, a rate or factor that is not positive, or sound that is not a number.
    """
    path = Path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"{path}: frames must be t h w 3 of uint8 and not empty, not {frames.shape} of {frames.dtype}")
    if not (frame_rate > 0 and sample_rate > 0) or (scale is not None and scale < 1):
        raise ValueError(f"{path}: {frame_rate=}, {sample_rate=} and {scale=} must be positive")
    if sound.ndim != 1 or not np.isfinite(sound).all():
        raise ValueError(f"{path}: sound must be one row of finite samples, not {sound.shape} with NaN or infinity")
    rate = Fraction(frame_rate).limit_denominator(1001)
    samples = round(len(frames) / rate * sample_rate)
    track = np.pad(sound[:samples], (0, max(0, samples - len(sound)))).clip(-1, 1).astype(np.float32)

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{secrets.token_hex(8)}.mp4")
    try:
        with av.open(str(draft), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            _encode(container, frames, rate, track, sample_rate, scale or math.ceil(LEAST_EDGE / min(frames.shape[1:3])))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _encode(
    container: OutputContainer,
    frames: UInt8[np.ndarray, "t h w 3"],
    rate: Fraction,
    sound: Float[np.ndarray, " s"],
    sample_rate: int,
    scale: int,
) -> None:
    height, width = (edge * scale for edge in frames.shape[1:3])
    video = container.add_stream("libx264", rate=rate, options=H264)
    video.width, video.height, video.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    context = video.codec_context
    context.color_primaries = context.color_trc = context.colorspace = BT601
    context.color_range = LIMITED_RANGE
    out_rate = sample_rate if sample_rate in AAC_RATES else 48_000
    audio = container.add_stream("aac", rate=out_rate, layout="mono", bit_rate=min(AAC_BITS, 6 * out_rate))

    # Sound goes second by second ahead of its pictures, so that a player finds both without seeking.
    resampler = AudioResampler(format="fltp", layout="mono", rate=out_rate)
    sent = 0
    for number, pixels in enumerate(frames):
        due = min(len(sound), math.ceil((number / rate + 1) * sample_rate))
        if due > sent and (due - sent >= sample_rate or due == len(sound) or number == 0):
            piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None, sent:due]), format="fltp", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = sample_rate, sent, Fraction(1, sample_rate)
            for ready in resampler.resample(piece):
                container.mux(audio.encode(ready))
            sent = due
        container.mux(video.encode(_picture(pixels, scale, number, rate)))
    for ready in resampler.resample(None):
        container.mux(audio.encode(ready))
    container.mux(audio.encode(None))
    container.mux(video.encode(None))


def _picture(pixels: UInt8[np.ndarray, "h w 3"], scale: int, number: int, rate: Fraction) -> av.VideoFrame:
    large = pixels.repeat(scale, 0).repeat(scale, 1)
    height, width = large.shape[:2]
    large = np.pad(large, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # yuv420p has even edges
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, interpolation=Interpolation.AREA)
    frame.pts, frame.time_base = number, 1 / rate
    return frame
