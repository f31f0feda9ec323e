"""Codecs keep what they should: pixels exactly, sound up to its phase, silence as silence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nava_lab.media import codecs
from nava_lab.media.codecs import MelCodec, decode_pixels, encode_pixels, mel_bank

RATE = 16_000


def tone(hz: float, seconds: float = 1.0, level: float = 1.0) -> Tensor:
    return level * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE)) / RATE)


def noisy_melody() -> Tensor:
    """Tones that start and stop, over soft noise: something with attacks, pitch and breath."""
    sound = 0.01 * torch.randn(2 * RATE, generator=torch.Generator().manual_seed(0))
    for start, hz in ((0.2, 300), (0.7, 900), (1.1, 450), (1.5, 2500)):
        at = round(start * RATE)
        sound[at : at + RATE // 4] += tone(hz, 0.25, 0.4) * torch.linspace(1, 0, RATE // 4)
    return sound


def test_pixels_come_back() -> None:
    pixels = torch.arange(256).reshape(1, 16, 16) / 255
    values = encode_pixels(pixels)
    assert decode_pixels(values) == pytest.approx(pixels, abs=1e-6)
    assert torch.equal((decode_pixels(values) * 255).round(), torch.arange(256.0).reshape(1, 16, 16))
    assert decode_pixels(torch.tensor([-9.0, 9.0])).tolist() == [0.0, 1.0]


def test_mel_bank_counts_every_bin_once() -> None:
    bank = mel_bank(32, 513, RATE)
    peaks = bank.argmax(1)
    assert (peaks.diff() > 0).all()
    assert bank[:, peaks[0] + 1 : peaks[-1]].sum(0) == pytest.approx(1, abs=1e-5)
    assert htk_centre(16, 32) == pytest.approx(float(peaks[16]) * 8000 / 512, abs=8000 / 512)


def htk_centre(band: int, bands: int) -> float:
    """Centre of a band by the HTK formula, written down once more."""
    return 700 * (10 ** ((band + 1) * 2595 * math.log10(1 + 8000 / 700) / (bands + 1) / 2595) - 1)


def test_full_scale_tone_has_power_one_in_its_band() -> None:
    codec = MelCodec()
    energies = codec.energies(tone(1000)[None])[0, 10:-10]
    assert energies.sum(1) == pytest.approx(1.5 * 1024 / 960, abs=0.01)  # a Hann peak spreads over 1.5 bins of a window
    centres = torch.tensor([htk_centre(band, 32) for band in range(32)])
    assert energies.mean(0).argmax() == (centres - 1000).abs().argmin()


@pytest.mark.parametrize("at", [0.1, 0.5, 0.73])
def test_a_click_is_in_the_frame_of_its_time(at: float) -> None:
    sound = torch.zeros(1, RATE)
    sound[0, round(at * RATE)] = 1.0
    codec = MelCodec()
    assert codec.energies(sound)[0].sum(1).argmax() == int(at * codec.audio_hz)


@pytest.mark.parametrize("samples", [0, 1, 160, 319, 320, 481, 16_000, 16_001])
def test_frames_cover_the_sound(samples: int) -> None:
    codec = MelCodec()
    bands = codec.encode(torch.zeros(2, samples))
    assert bands.shape == (2, codec.frames(samples), 32)
    assert codec.frames(samples) == round(samples / 320 + 1e-9)
    assert codec.decode(bands).shape == (2, codec.frames(samples) * 320)


def test_long_sounds_are_transformed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, sound = MelCodec(), noisy_melody()[None]
    whole = codec.encode(sound)
    monkeypatch.setattr(codecs, "BLOCK", 7)
    assert codec.encode(sound) == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("codec", [MelCodec(), MelCodec(22_050, 75.0, 24), MelCodec(8000, 25.0, 16)], ids=str)
def test_griffin_lim_keeps_the_bands(codec: MelCodec) -> None:
    sound = noisy_melody()[: 2 * (codec.sample_rate // 2)][None]
    bands = codec.encode(sound)
    again = codec.encode(codec.decode(bands))[:, : bands.shape[1]]
    correlation = np.corrcoef(bands.flatten(), again.flatten())[0, 1]
    assert correlation > 0.97
    assert (again - bands).square().mean().sqrt() < 0.25
    loud = codec.energies(sound).sum(-1), codec.energies(codec.decode(bands)).sum(-1)[:, : bands.shape[1]]
    assert np.corrcoef(loud[0].flatten(), loud[1].flatten())[0, 1] > 0.97


def test_silence_stays_silent() -> None:
    codec = MelCodec()
    assert codec.decode(codec.encode(torch.zeros(1, RATE))).abs().max() < 1e-4
    assert codec.decode(torch.full((1, 50, 32), -50.0)).abs().max() == 0
    wild = codec.decode(torch.full((1, 50, 32), 50.0))
    assert wild.isfinite().all()


def test_decoding_is_a_function_of_the_values() -> None:
    codec = MelCodec()
    values = codec.encode(torch.stack((noisy_melody(), noisy_melody().flip(0))))
    both = codec.decode(values)
    assert torch.equal(both, codec.decode(values))
    assert codec.decode(values[1:])[0] == pytest.approx(both[1], abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 16_000, "audio_hz": 30.0}, "audio_hz=30"),
        ({"bands": 0}, "bands=0"),
        ({"bands": 400}, "bands=400 are too many"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelCodec(**settings)
