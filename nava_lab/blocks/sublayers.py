"""The sublayers that blocks are made of, each able to keep weights per modality or to share them.

Every sublayer works on a packed row of tokens (``b n d`` with ``Spans`` saying whose they are) and returns the residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nava_lab.attention import Visible
from nava_lab.attention.projections import Heads, Output, SelfProjection, kv_heads
from nava_lab.blocks.base import CONDITIONING, Dims, Given, PerModality, Spans, tag
from nava_lab.layers.feed_forward import feed_forward
from nava_lab.layers.modulation import ModulationTable
from nava_lab.layers.rotary import Table, rotate
from nava_lab.streams import TEXT


class Norms(nn.Module):
    """LayerNorm without weights when modulated (the modulation scales); with weights otherwise."""

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, affine: bool):
        super().__init__()
        self.split = split and affine
        self.parts = PerModality(
            names, self.split, lambda name: nn.LayerNorm(dims.widths[name], eps=1e-6, elementwise_affine=affine)
        )

    def forward(self, x: Tensor, spans: Spans) -> Tensor:
        return self.parts.over(x, spans, lambda norm, part: norm(part))


class Modulation(nn.Module):
    """The block's modulation vectors for a packed row: each ``b 1 d`` where one set serves all tokens, else ``b n d``."""

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, gate: float = 1.0):
        super().__init__()
        self.tables = PerModality(names, split, lambda name: ModulationTable(dims.widths[name], 6, gate))

    def forward(self, given: Given, spans: Spans) -> list[Tensor]:
        signals = [given.modulation[name] for name in spans.order]
        if not self.tables.split and all(signal is signals[0] and signal.shape[1] == 1 for signal in signals):
            return list(self.tables[spans.order[0]](signals[0]))
        each = [self.tables[name](given.modulation[name]) for name in spans.order]
        lengths = spans.lengths.values()
        return [
            torch.cat([part.expand(-1, length, -1) for part, length in zip(vector, lengths, strict=True)], 1)
            for vector in zip(*each, strict=True)
        ]


class SelfAttention(nn.Module):
    """Attention within one row of tokens: one softmax over everything in it that the mask allows."""

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, qk_norm: str, kv: int, gates: bool, bias: bool) -> None:
        super().__init__()
        self.head_dim = dims.head_dim(names[0])

        def projection(name: str) -> nn.Module:
            heads = dims.heads[name]
            return SelfProjection(dims.widths[name], heads, kv_heads(heads, kv), self.head_dim, qk_norm, bias)

        self.projections = PerModality(names, split, projection)
        self.outputs = PerModality(
            names, split, lambda name: Output(dims.widths[name], dims.heads[name], self.head_dim, bias, gates)
        )

    def forward(self, x: Float[Tensor, "b n d"], spans: Spans, given: Given) -> Tensor:
        if self.projections.split:
            parts = [self.projections[name](x[:, part]) for name, part in spans]
            query, key, value = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        else:
            query, key, value = self.projections[spans.order[0]](x)
        table = given.rotary(spans.order, self.head_dim)
        y = given.attend(rotate(query, table), rotate(key, table), value, given.visible(spans.order, spans.order))
        if self.outputs.split:
            return torch.cat([self.outputs[name](y[:, part], x[:, part]) for name, part in spans], 1)
        return self.outputs[spans.order[0]](y, x)


class CrossAttention(nn.Module):
    """Queries from one row of tokens, keys and values from another; positions optional."""

    def __init__(
        self,
        width: int,
        source_width: int,
        heads: int,
        head_dim: int,
        qk_norm: str,
        gates: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.query = Heads(width, heads, head_dim, qk_norm, bias)
        self.key = Heads(source_width, heads, head_dim, qk_norm, bias)
        self.value = Heads(source_width, heads, head_dim, "none", bias)
        self.output = Output(width, heads, head_dim, bias, gates)

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        source: Float[Tensor, "b k s"],
        given: Given,
        visible: Visible | None,
        tables: tuple[Table, Table] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """What the queries receive; who sees nothing receives nothing, not even a bias.

        Args:
            x: the tokens that ask.
            source: the tokens that are asked.
            given: what the forward pass computed once.
            visible: who sees whom.
            tables: rotary tables of queries and keys, or None for attention blind to position.
        """
        query, key = self.query(x), self.key(source)
        if tables is not None:
            query, key = rotate(query, tables[0]), rotate(key, tables[1])
        received = self.output(given.attend(query, key, self.value(source), visible), x)
        return received if visible is None else received * visible.sees


class TextAttention(nn.Module):
    """Tokens read the text, which stays outside the sequence."""

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, qk_norm: str, gates: bool, bias: bool) -> None:
        super().__init__()
        tag(self, CONDITIONING)
        self.parts = PerModality(
            names,
            split,
            lambda name: CrossAttention(
                dims.widths[name], dims.widths[name], dims.heads[name], dims.head_dim(name), qk_norm, gates, bias
            ),
        )

    def forward(self, x: Float[Tensor, "b n d"], spans: Spans, given: Given) -> Tensor:
        if not self.parts.split:
            return self._read(self.parts[spans.order[0]], x, spans.order, given)
        return torch.cat([self._read(self.parts[name], x[:, part], (name,), given) for name, part in spans], 1)

    def _read(self, part: nn.Module, x: Tensor, order: tuple[str, ...], given: Given) -> Tensor:
        return part(x, given.text[order[0]], given, given.visible(order, (TEXT,)))


class FeedForward(nn.Module):
    """A feed-forward network per modality or for all."""

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, kind: str, bias: bool) -> None:
        super().__init__()
        self.parts = PerModality(names, split, lambda name: feed_forward(kind, dims.widths[name], dims.hidden[name], bias))

    def forward(self, x: Float[Tensor, "b n d"], spans: Spans) -> Tensor:
        return self.parts.over(x, spans, lambda network, part: network(part))
