"""Fixed codecs between raw media and values of about unit variance that a model learns.

Nothing here is trained. Pictures only change scale. Sound becomes log-mel bands, a frame per ``1 / audio_hz`` seconds.
For the phase that this drops Griffin-Lim finds one that fits, well enough to hear what a model made.

Shape letters: b batch, s samples, t frames of bands, f bands, k bins of the spectrum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from nava_lab.rng import stable_seed, uniform

# Rounded from three real clips of equal weight (a title film, a street, a talking face): brightness .46 and .32, log
# power -9.6 and 2.9. Means of a single clip lie between .16 and .74 and between -10.7 and -8.2: something to learn.
PIXEL_MEAN, PIXEL_STD = 0.45, 0.3
# Natural logarithm of a band's power. FLOOR, 60 dB below a full-scale tone, is added first: silence is a number too.
FLOOR = 1e-6
LOG_MEL_MEAN, LOG_MEL_STD = -9.5, 3.0

INVERSE_STEPS = 200  # of the non-negative fit of a spectrum to its bands
TINY = 1e-20  # in place of a zero below a fraction
PHASE_STEPS, PHASE_MOMENTUM = 60, 0.99  # of Griffin-Lim; momentum as Perraudin, Balazs & Sondergaard (2013) advise
BLOCK = 4096  # frames transformed at once, so that an hour of sound needs no gigabytes


def encode_pixels(pixels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Brightness in [0, 1] to values of about unit variance."""
    return (pixels - PIXEL_MEAN) / PIXEL_STD


def decode_pixels(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The inverse of ``encode_pixels``, cut to [0, 1]."""
    return (values * PIXEL_STD + PIXEL_MEAN).clamp(0, 1)


def mel_bank(bands: int, bins: int, sample_rate: int) -> Float[Tensor, "f k"]:
    """Triangles of equal width on the mel scale ``2595 log10(1 + hz / 700)`` (O'Shaughnessy 1987; HTK Book, 5.4).

    Band i rises from the centre of band i - 1 and falls to that of band i + 1. Together they sum to one between the
    first centre and the last: every bin in between counts once.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    hz = torch.linspace(0, sample_rate / 2, bins, dtype=torch.float64)
    rise = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0).float()


@dataclass(frozen=True)
class MelCodec:
    """Mono sound to scaled log-mel bands and back.

    Frame i is centred at ``(i + 1/2) / audio_hz`` seconds and looks at a window of three frames (Hann).

    Attributes:
        sample_rate: samples per second; a multiple of ``audio_hz``.
        audio_hz: frames per second.
        bands: mel bands from 0 Hz to half the sample rate.
    """

    sample_rate: int = 16_000
    audio_hz: float = 50.0
    bands: int = 32

    def __post_init__(self) -> None:
        hop = self.sample_rate / self.audio_hz
        if abs(hop - round(hop)) > 1e-6 or hop < 2:
            raise ValueError(f"sample_rate={self.sample_rate} must be audio_hz={self.audio_hz:g} times 2, 3, ...")
        if self.bands < 1:
            raise ValueError(f"bands={self.bands} must be at least 1")
        if empty := int((self.bank.sum(1) == 0).sum()):
            raise ValueError(f"bands={self.bands} are too many: {empty} hold none of a spectrum's {self.bins} bins")

    @property
    def hop(self) -> int:
        return round(self.sample_rate / self.audio_hz)

    @property
    def window(self) -> Float[Tensor, " w"]:
        """Three hops, scaled so that a full-scale tone has power 1."""
        window = torch.hann_window(3 * self.hop)
        return window * 2 / window.sum()

    @property
    def fft(self) -> int:
        return 2 ** math.ceil(math.log2(3 * self.hop))

    @property
    def bins(self) -> int:
        return self.fft // 2 + 1

    @cached_property
    def bank(self) -> Float[Tensor, "f k"]:
        return mel_bank(self.bands, self.bins, self.sample_rate)

    def frames(self, samples: int) -> int:
        """Frames of a sound of that many samples; a last incomplete one counts from half its length."""
        return (samples + self.hop // 2) // self.hop

    def energies(self, sound: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        """Power in each band; sound beyond the ends is silence."""
        frames = self.frames(sound.shape[-1])
        before = self.fft // 2 - self.hop // 2
        padded = F.pad(sound, (before, max(0, (frames - 1) * self.hop + self.fft - before - sound.shape[-1])))
        parts = []
        for first in range(0, frames, BLOCK):
            last = min(first + BLOCK, frames)
            part = padded[..., first * self.hop : (last - 1) * self.hop + self.fft]
            power = self._stft(part, center=False).abs() ** 2
            parts.append(torch.einsum("fk,bkt->btf", self.bank.to(sound.device), power))
        return torch.cat(parts, 1) if parts else sound.new_zeros(len(sound), 0, self.bands)

    def encode(self, sound: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        """Samples in [-1, 1] to bands of about unit variance."""
        return ((self.energies(sound) + FLOOR).log() - LOG_MEL_MEAN) / LOG_MEL_STD

    def decode(self, values: Float[Tensor, "b t f"]) -> Float[Tensor, "b s"]:
        """Bands back to a sound that has them: a non-negative fit of the spectrum, its phase by Griffin-Lim.

        The same values give the same sound, in any batch (to rounding).
        """
        # A tone at full scale has log power 0: what lies far above it (an unfinished model's output) is cut off.
        logs = (values.float() * LOG_MEL_STD + LOG_MEL_MEAN).clamp(max=3.0)
        energies = (logs.exp() - FLOOR).clamp(min=0)
        return self._phased(self._spread(energies).sqrt())

    def _stft(self, sound: Float[Tensor, "b s"], center: bool) -> Complex[Tensor, "b k t"]:
        window = self.window.to(sound.device)
        return torch.stft(
            sound, self.fft, self.hop, 3 * self.hop, window, center=center, pad_mode="constant", return_complex=True
        )

    def _spread(self, energies: Float[Tensor, "b t f"]) -> Float[Tensor, "b k t"]:
        """A power spectrum ``p >= 0`` with ``bank p = energies``, by multiplicative updates (Lee & Seung 2001, eq. 5).

        These descend the Kullback-Leibler divergence, which fits soft bands beside loud ones as well; least squares
        (eq. 4) leaves 3 to 60 times the error of the logarithms. They start from the bank's transpose, which spreads a
        band over its triangle: of the spectra that fit, a smooth one.
        """
        bank, wanted = self.bank.to(energies.device), energies.mT
        power = torch.einsum("fk,bft->bkt", bank / bank.sum(1, keepdim=True), wanted)
        weight = bank.sum(0).clamp(min=TINY).unsqueeze(-1)
        for _ in range(INVERSE_STEPS):
            have = torch.einsum("fk,bkt->bft", bank, power)
            power = power * torch.einsum("fk,bft->bkt", bank, wanted / have.clamp(min=TINY)) / weight
        return power

    def _phased(self, magnitude: Float[Tensor, "b k t"]) -> Float[Tensor, "b s"]:
        """A sound with this spectrogram (Griffin & Lim 1984, with momentum), begun from fixed phases.

        The transform inside is centred on multiples of the hop and ours half a hop later: one frame more at either end.
        """
        frames = magnitude.shape[-1]
        if frames == 0:
            return magnitude.new_zeros(len(magnitude), 0)
        magnitude = F.pad(magnitude, (1, 1), mode="replicate")
        turns = uniform(stable_seed("griffin-lim"), torch.arange(frames + 2, device=magnitude.device), self.bins)
        phase = torch.polar(torch.ones_like(turns), 2 * math.pi * turns).to(torch.complex64).T
        spectrum, before = magnitude * phase, torch.zeros(())
        window, length = self.window.to(magnitude.device), (frames + 1) * self.hop
        for _ in range(PHASE_STEPS):
            sound = torch.istft(spectrum, self.fft, self.hop, 3 * self.hop, window, length=length)
            found = self._stft(sound, center=True)
            ahead = found + PHASE_MOMENTUM * (found - before)
            spectrum, before = magnitude * ahead / ahead.abs().clamp(min=1e-12), found
        sound = torch.istft(spectrum, self.fft, self.hop, 3 * self.hop, window, length=length)
        return sound[:, self.hop // 2 :][:, : frames * self.hop]
