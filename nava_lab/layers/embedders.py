"""Tokens of a stream into model width: one linear map, or convolutions over neighbours in time.

Shape letters: b batch, n tokens, c channels of a token, d width, s samples of a packed row.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.nn.utils.rnn import pad_sequence

from nava_lab.streams import Stream

KERNEL = 7


class PatchEmbedder(nn.Linear):
    """A linear map of each token: Wan's patch embedding, once its patches are tokens."""

    def __init__(self, channels: int, width: int):
        super().__init__(channels, width)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, stream: Stream) -> Float[Tensor, "b n d"]:  # type: ignore[override]
        return super().forward(stream.real_tokens())


class ConvEmbedder(nn.Module):
    """A convolution over 7 tokens, SiLU, and a gated MLP of such convolutions (MMAudio's; NAVA and Ovi embed audio by it).

    ``w2(silu(w1 h) * w3 h)`` with a hidden width of 8/3 d in multiples of 8: ``7 c d + d + 3 * 7 * d * hidden`` weights. Tokens
    are neighbours in order of time, wherever they stand in the row; padding and the ends of a clip are zeros.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        hidden = 8 * math.ceil(width / 3)
        pad = KERNEL // 2
        self.first = nn.Conv1d(channels, width, KERNEL, padding=pad)
        self.w1, self.w3 = (nn.Conv1d(width, hidden, KERNEL, padding=pad, bias=False) for _ in range(2))
        self.w2 = nn.Conv1d(hidden, width, KERNEL, padding=pad, bias=False)
        for layer in (self.first, self.w1, self.w3, self.w2):
            nn.init.xavier_uniform_(layer.weight)
        assert self.first.bias is not None
        nn.init.zeros_(self.first.bias)

    def forward(self, stream: Stream) -> Float[Tensor, "b n d"]:
        tokens, seconds, valid = stream.real_tokens(), stream.positions[..., 0], stream.valid
        if not len(stream):
            return tokens.new_zeros(tokens.shape[0], 0, self.first.out_channels)
        if stream.packing is None:
            return self._in_time(tokens, seconds.expand(tokens.shape[0], -1), valid)
        lengths = list(stream.packing.lengths)
        rows = pad_sequence(tokens[0].split(lengths), batch_first=True)
        times = pad_sequence(seconds[0].split(lengths), batch_first=True)
        real = torch.arange(rows.shape[1], device=rows.device) < torch.tensor(lengths, device=rows.device).unsqueeze(-1)
        return self._in_time(rows, times, real)[stream.packing.ids, stream.packing.places()]

    def _in_time(self, tokens: Tensor, seconds: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"] | None) -> Tensor:
        """Convolve in order of time, padding last, and put every token back in its place."""
        late = seconds if valid is None else seconds.masked_fill(~valid, float("inf"))
        order = late.argsort(dim=1, stable=True).unsqueeze(-1)
        ordered = tokens.gather(1, order.expand_as(tokens)).transpose(1, 2)
        real = None if valid is None else valid.gather(1, order.squeeze(-1)).unsqueeze(1).to(tokens.dtype)
        made = self._convolve(ordered, real).transpose(1, 2)
        return torch.empty_like(made).scatter(1, order.expand_as(made), made)

    def _convolve(self, x: Float[Tensor, "b c n"], real: Float[Tensor, "b 1 n"] | None) -> Float[Tensor, "b d n"]:
        keep = (lambda part: part) if real is None else (lambda part: part * real)
        h = keep(silu(self.first(x)))
        return self.w2(keep(silu(self.w1(h)) * self.w3(h)))
