"""What is drawn for one training or evaluation sample: levels, noise, dropouts. All of it per sample, from its own generator.

Shape letters: b batch, n tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nava_lab.flow.levels import LevelLaw, LogitNormal
from nava_lab.streams import Stream

COUPLINGS = ("shared", "independent")


@dataclass(frozen=True)
class Draws:
    """The random part of a training sample.

    Attributes:
        levels: noise level per modality, ``b``; one and the same tensor where modalities share it.
        noise: standard normal, per modality, shaped as its tokens.
        drop_text: ``b``, samples that are shown no caption.
        cut: ``b``, samples in which attention between modalities is cut; None where that never happens.
    """

    levels: Mapping[str, Tensor]
    noise: Mapping[str, Tensor]
    drop_text: Tensor
    cut: Tensor | None


def noise_like(streams: Mapping[str, Stream], generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """Standard normal noise for every stream, each sample from its own generator."""
    drawn: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {name: [] for name in streams}
    for generator in generators:
        for name, stream in streams.items():
            shape = stream.tokens.shape[1:]
            rows[name].append(torch.randn(shape, generator=generator, device=generator.device, dtype=stream.tokens.dtype))
    for name, stream in streams.items():
        drawn[name] = torch.stack(rows[name]).to(stream.tokens.device)
    return drawn


@dataclass(frozen=True)
class Drawing:
    """The laws that training samples are drawn by.

    Attributes:
        levels: the law of the noise level.
        coupling: "shared" gives all modalities of a sample one level; "independent" gives each its own.
        text_dropout: share of samples shown no caption.
        modality_dropout: share of samples in which attention between modalities is cut; 1 trains the cut control.
    """

    levels: LevelLaw = field(default_factory=LogitNormal)
    coupling: str = "shared"
    text_dropout: float = 0.1
    modality_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ValueError(f"flow.coupling={self.coupling} is not one of {', '.join(COUPLINGS)}")
        for name in ("text_dropout", "modality_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"flow.{name}={getattr(self, name)} must lie between 0 and 1")

    def __call__(self, streams: Mapping[str, Stream], generators: Sequence[torch.Generator]) -> Draws:
        """Draws for a batch; sample i uses ``generators[i]`` alone."""
        device = next(iter(streams.values())).tokens.device
        numbers = torch.stack([torch.rand(2 + len(streams), generator=g, device=g.device) for g in generators]).to(device)
        noise = noise_like(streams, generators)
        if self.coupling == "shared":
            levels = dict.fromkeys(streams, self.levels(numbers[:, 2]))
        else:
            levels = {name: self.levels(numbers[:, 2 + i]) for i, name in enumerate(streams)}
        cut = numbers[:, 1] < self.modality_dropout if self.modality_dropout > 0 else None
        return Draws(levels, noise, numbers[:, 0] < self.text_dropout, cut)
