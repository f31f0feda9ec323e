"""World ``gaussian``: tokens that are jointly normal, so that the best possible loss is known in closed form.

    time      0.00    0.08    0.16    0.24   s
    video      x0      x1      x2      x3              independent normal channels, one token per 80 ms
               |       |       |       |               correlation rho with the audio token nearest in time
    audio      y0      y1      y2      y3              unit variance as well
    text       ""                                      nothing to read

Alone, each modality is as predictable as ever; what the other adds is exactly known at any noise level. Cross-modal use U
is the share of that which a model has learnt to take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from nava_lab.conditioning.text import WordTokenizer
from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.streams import Batch, Interface, ModalitySpec, Stream, time_positions
from nava_lab.worlds.base import World, levels, positive, whole


@worlds.register("gaussian")
@dataclass(frozen=True)
class GaussianWorld(World):
    """Jointly normal tokens whose cross-correlation is the only thing to learn between modalities.

    Attributes:
        rho: correlation of an audio token's channel with the same channel of the video token nearest in time.
        channels: channels of every token.
        duration_s: length of a clip.
        video_hz: video tokens per second.
        audio_hz: audio tokens per second.
    """

    rho: float = 0.9
    channels: int = 8
    duration_s: float = 2.0
    video_hz: float = 12.5
    audio_hz: float = 12.5

    version = "gaussian-1"
    metrics = ("loss", "use")
    headline = "cross_modal_use"
    LEVELS = levels(rho=(0.99, 0.9, 0.5))

    def __post_init__(self) -> None:
        positive(self, "channels", "duration_s", "video_hz", "audio_hz")
        if not -1 < self.rho < 1:
            raise ValueError(f"world.rho={self.rho} must lie between -1 and 1")
        whole(self, self.duration_s * self.video_hz, "the number of video tokens")
        whole(self, self.duration_s * self.audio_hz, "the number of audio tokens")

    @property
    def counts(self) -> dict[str, int]:
        return {"video": round(self.duration_s * self.video_hz), "audio": round(self.duration_s * self.audio_hz)}

    def interface(self) -> Interface:
        rates = {"video": self.video_hz, "audio": self.audio_hz}
        specs = {name: ModalitySpec(self.channels, count, 1 / rates[name]) for name, count in self.counts.items()}
        return Interface(specs, WordTokenizer([], 1).spec)

    def _nearest(self, device: torch.device | str) -> Tensor:
        """For each audio token, the video token whose centre is nearest (the earlier of two)."""
        places = {
            name: (torch.arange(self.counts[name], dtype=torch.float64, device=device) + 0.5) / rate
            for name, rate in (("video", self.video_hz), ("audio", self.audio_hz))
        }
        return (places["audio"][:, None] - places["video"][None, :]).abs().argmin(1)

    def batch(self, split: str, index: Tensor) -> Batch:
        video_count, audio_count = self.counts["video"], self.counts["audio"]
        numbers = uniform(self.seed(split, "values"), index, (video_count + audio_count) * self.channels)
        normal = torch.special.ndtri(numbers.clamp(1e-12, 1 - 1e-12)).unflatten(-1, (-1, self.channels))
        video, own = normal.split((video_count, audio_count), 1)
        audio = self.rho * video[:, self._nearest(index.device)] + (1 - self.rho**2) ** 0.5 * own
        rates = {"video": self.video_hz, "audio": self.audio_hz}
        streams = {
            name: Stream(values.float(), time_positions(values.shape[1], 1 / rates[name], device=index.device))
            for name, values in (("video", video), ("audio", audio))
        }
        return Batch(streams, WordTokenizer([], 1)([""] * len(index)).to(index.device), index)

    @cached_property
    def covariance(self) -> Float[Tensor, "n n"]:
        """Covariance of one channel over all tokens, video first (float64)."""
        video_count, audio_count = self.counts["video"], self.counts["audio"]
        mix = torch.zeros(video_count + audio_count, video_count + audio_count, dtype=torch.float64)
        mix[:video_count, :video_count] = torch.eye(video_count)
        mix[video_count + torch.arange(audio_count), self._nearest("cpu")] = self.rho
        mix[video_count:, video_count:] = (1 - self.rho**2) ** 0.5 * torch.eye(audio_count, dtype=torch.float64)
        return mix @ mix.T

    def _problem(self, levels: Mapping[str, Tensor], joint: bool) -> tuple[Tensor, Tensor, Tensor]:
        """S, cov(v, x) and cov(x) of one channel over all tokens; between modalities 0 unless ``joint``."""
        sigma = self.covariance.to(next(iter(levels.values())).device)
        t = torch.cat([levels[name].double().unsqueeze(-1).expand(-1, count) for name, count in self.counts.items()], 1)
        if not joint:
            sigma = sigma * torch.block_diag(*(torch.ones(count, count) for count in self.counts.values())).to(sigma)
        a, b = 1 - t, t
        cross = torch.diag_embed(b) - sigma * a.unsqueeze(-2)
        seen = a.unsqueeze(-1) * sigma * a.unsqueeze(-2) + torch.diag_embed(b**2)
        return sigma, cross, seen

    def bayes_loss(self, levels: Mapping[str, Float[Tensor, " b"]], joint: bool) -> dict[str, Float[Tensor, " b"]]:
        """The least possible velocity error per element at these levels, per modality.

        ``L* = tr[S + I - (B - S A)(A S A + B^2)^-1 (B - S A)^T]`` with A = diag(1 - t), B = diag(t). With ``joint`` false,
        for a model that sees only the modality itself.
        """
        sigma, cross, seen = self._problem(levels, joint)
        explained = (cross * torch.linalg.solve(seen, cross.mT).mT).sum(-1)
        loss = sigma.diagonal() + 1 - explained
        return {name: part.mean(-1) for name, part in zip(self.counts, loss.split(list(self.counts.values()), 1), strict=True)}

    def denoiser(self, joint: bool) -> Callable[..., Mapping[str, Tensor]]:
        """E[v | x] = cov(v, x) cov(x)^-1 x, which reaches ``bayes_loss`` on average."""

        def network(streams: Mapping[str, Stream], levels: Mapping[str, Tensor], *rest: object) -> Mapping[str, Tensor]:
            _, cross, seen = self._problem(levels, joint)
            x = torch.cat([streams[name].tokens for name in self.counts], 1).double()
            velocity = cross @ torch.linalg.solve(seen, x)
            return dict(zip(self.counts, velocity.split(list(self.counts.values()), 1), strict=True))

        return network
