"""The sublayers that blocks are made of, each able to keep weights per modality or to share them.

Every sublayer works on a packed row of tokens (``b n d`` with ``Spans`` saying whose they are) and returns the residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nava_lab.attention import Visible
from nava_lab.attention.projections import Heads, Output, SelfProjection, kv_heads
from nava_lab.blocks.base import CONDITIONING, Dims, Given, PerModality, Spans, tag
from nava_lab.blocks.options import Traits
from nava_lab.layers.feed_forward import feed_forward
from nava_lab.layers.modulation import ModulationTable, OwnModulation, PerSpan, Vector, gated, modulate
from nava_lab.layers.norms import norm
from nava_lab.layers.rotary import Table, rotate
from nava_lab.streams import TEXT


class Norms(nn.Module):
    """A norm without weights when modulated (the modulation scales); with weights otherwise."""

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, affine: bool, kind: str = "layer"):
        super().__init__()
        self.split = split and affine
        self.parts = PerModality(names, self.split, lambda name: norm(kind, dims.widths[name], affine))

    def forward(self, x: Tensor, spans: Spans) -> Tensor:
        return self.parts.over(x, spans, lambda norm, part: norm(part))


class Modulation(nn.Module):
    """The block's modulation vectors for a packed row: each ``b 1 d`` where one set serves all tokens, else by span."""

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, traits: Traits, gate: float = 1.0):
        super().__init__()
        self.own = traits.modulation == "own"
        made = OwnModulation if self.own else ModulationTable
        self.vectors = traits.vectors
        self.tables = PerModality(names, split, lambda name: made(dims.widths[name], traits.vectors, gate))

    def forward(self, given: Given, spans: Spans) -> list[Vector]:
        source = given.levels if self.own else given.modulation
        if untold := [name for name in spans.order if name not in source]:
            raise ValueError(f"a block modulates {', '.join(untold)} by a noise level that level_input='none' tells nobody")
        alike = [list(run) for _, run in groupby(spans.order, lambda name: self._alike(name, source[name]))]
        each = [self.tables[run[0]](self._signal(source[run[0]])) for run in alike]
        if len(alike) == 1:
            return list(each[0])
        lengths = tuple(sum(spans.lengths[name] for name in run) for run in alike)
        return [PerSpan(lengths, vector) for vector in zip(*each, strict=True)]

    def _signal(self, source: Tensor) -> Tensor:
        return source if self.own else source[..., : self.vectors, :]

    def _alike(self, name: str, source: Tensor) -> object:
        """What neighbours in a row have in common who can do with one set of vectors."""
        return name if self.tables.split or source.shape[1] != 1 else id(source)


class SelfAttention(nn.Module):
    """Attention within one row of tokens: one softmax over everything in it that the mask allows."""

    part = "projections"

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, traits: Traits) -> None:
        super().__init__()
        dims.one_size(names)
        self.heads, self.head_dim = dims.heads[names[0]], dims.head_dim(names[0])

        def projection(name: str) -> nn.Module:
            heads = dims.heads[name]
            kv = kv_heads(heads, traits.query_group)
            return SelfProjection(dims.widths[name], heads, kv, self.head_dim, traits.qk_norm, traits.bias)

        self.projections = PerModality(names, split, projection)
        self.outputs = PerModality(
            names,
            split,
            lambda name: Output(dims.widths[name], dims.heads[name], self.head_dim, traits.bias, traits.head_gates),
        )

    def forward(self, x: Float[Tensor, "b n d"], spans: Spans, given: Given) -> Tensor:
        if self.projections.split:
            parts = [self.projections[name](x[:, part]) for name, part in spans]
            query, key, value = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        else:
            query, key, value = self.projections[spans.order[0]](x)
        table = given.rotary(spans.order, self.head_dim, heads=self.heads)
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
        gates: float = 0,
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

    part = "text"

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, traits: Traits) -> None:
        super().__init__()
        tag(self, CONDITIONING)
        self.parts = PerModality(
            names,
            split,
            lambda name: CrossAttention(
                dims.widths[name],
                dims.widths[name],
                dims.heads[name],
                dims.head_dim(name),
                traits.qk_norm,
                traits.head_gates,
                traits.bias,
            ),
        )
        self.prompt = None
        if traits.text_modulation:
            self.prompt = PerModality(names, split, lambda name: ModulationTable(dims.widths[name], 2))

    def forward(self, x: Float[Tensor, "b n d"], spans: Spans, given: Given) -> Tensor:
        if not self.parts.split and self.prompt is None:
            return self._read(x, spans.order, given)
        return torch.cat([self._read(x[:, part], (name,), given) for name, part in spans], 1)

    def _read(self, x: Tensor, order: tuple[str, ...], given: Given) -> Tensor:
        text = given.text[order[0]]
        if self.prompt is not None:
            text = modulate(text, *self.prompt[order[0]](given.prompt[order[0]]))
        return self.parts[order[0]](x, text, given, given.visible(order, (TEXT,)))


class FeedForward(nn.Module):
    """A feed-forward network per modality or for all."""

    part = "feed_forward"

    def __init__(self, names: Sequence[str], dims: Dims, split: bool, traits: Traits) -> None:
        super().__init__()

        def network(name: str) -> nn.Module:
            hidden = max(1, round(dims.hidden[name] * traits.hidden_share))
            return feed_forward(traits.feed_forward, dims.widths[name], hidden, traits.bias)

        self.parts = PerModality(names, split, network)

    def forward(self, x: Float[Tensor, "b n d"], spans: Spans) -> Tensor:
        return self.parts.over(x, spans, lambda network, part: network(part))


class Parts(Protocol):
    """What a block (or one tower's storey of it) is made of, in the order of its residuals."""

    norm1: Norms
    attention: SelfAttention
    text_norm: Norms | None
    text: TextAttention | None
    norm2: Norms
    feed_forward: FeedForward


def attended(parts: Parts, x: Tensor, spans: Spans, given: Given, vectors: Sequence[Vector]) -> Tensor:
    """``x + gate * attention(modulate(norm(x)))``; without vectors, no gate and no modulation."""
    if not vectors:
        return x + parts.attention(parts.norm1(x, spans), spans, given)
    shift, scale, gate = vectors[:3]
    return gated(x, gate, parts.attention(modulate(parts.norm1(x, spans), shift, scale), spans, given))


def told(parts: Parts, x: Tensor, spans: Spans, given: Given, vectors: Sequence[Vector]) -> Tensor:
    """``x + text_attention(norm(x))``, with shift, scale and gate of its own where the text is modulated."""
    if parts.text is None or parts.text_norm is None:
        return x
    if len(vectors) < 9:
        return x + parts.text(parts.text_norm(x, spans), spans, given)
    shift, scale, gate = vectors[6:9]
    return gated(x, gate, parts.text(modulate(parts.text_norm(x, spans), shift, scale), spans, given))


def fed(parts: Parts, x: Tensor, spans: Spans, vectors: Sequence[Vector]) -> Tensor:
    """``x + gate * feed_forward(modulate(norm(x)))``."""
    if not vectors:
        return x + parts.feed_forward(parts.norm2(x, spans), spans)
    shift, scale, gate = vectors[3:6]
    return gated(x, gate, parts.feed_forward(modulate(parts.norm2(x, spans), shift, scale), spans))
