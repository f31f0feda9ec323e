"""The linear maps around attention: queries, keys, values, output, with optional qk-norm, grouped queries and head gates.

Shape letters: b batch, n tokens, d width, h heads, g key-value heads, e channels of a head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nava_lab.layers.norms import RMSNorm

QK_NORMS = ("full", "head", "none")


class QKNorm(nn.Module):
    """RMS norm of queries or keys: over all heads together (``full``, Wan) or within each head (``head``)."""

    def __init__(self, kind: str, heads: int, head_dim: int):
        super().__init__()
        if kind not in QK_NORMS:
            raise ValueError(f"qk_norm '{kind}' is not one of {', '.join(QK_NORMS)}")
        self.kind = kind
        self.norm = nn.Identity() if kind == "none" else RMSNorm(heads * head_dim if kind == "full" else head_dim, 1e-6)

    def forward(self, x: Float[Tensor, "b n h e"]) -> Float[Tensor, "b n h e"]:
        return self.norm(x.flatten(-2)).view(x.shape) if self.kind == "full" else self.norm(x)


class Heads(nn.Module):
    """A linear map into ``heads`` heads, with qk-norm where asked for."""

    def __init__(self, width: int, heads: int, head_dim: int, qk_norm: str = "none", bias: bool = True):
        super().__init__()
        self.shape = (heads, head_dim)
        self.linear = linear(width, heads * head_dim, bias)
        self.norm = QKNorm(qk_norm, heads, head_dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n h e"]:
        return self.norm(self.linear(x).unflatten(-1, self.shape))


class SelfProjection(nn.Module):
    """Queries, keys and values of one token set, in one matrix product."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, qk_norm: str = "full", bias: bool = True):
        super().__init__()
        self.counts = (heads, kv_heads, kv_heads)
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, sum(self.counts) * head_dim, bias=bias)
        with torch.no_grad():  # each of q, k, v initialised as the matrix that it is
            for part in self.qkv.weight.split([count * head_dim for count in self.counts]):
                nn.init.xavier_uniform_(part)
        if bias:
            nn.init.zeros_(self.qkv.bias)
        self.q_norm = QKNorm(qk_norm, heads, head_dim)
        self.k_norm = QKNorm(qk_norm, kv_heads, head_dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split(self.counts, dim=-2)
        return self.q_norm(query), self.k_norm(key), value


class Output(nn.Module):
    """Heads back to the width; with ``gates``, each head is first scaled by that many sigmoids of the token that asked."""

    def __init__(self, width: int, heads: int, head_dim: int, bias: bool = True, gates: float = 0):
        super().__init__()
        self.linear = linear(heads * head_dim, width, bias)
        self.scale = float(gates)
        self.gate = linear(width, heads, bias) if gates else None

    def forward(self, y: Float[Tensor, "b n h e"], asked: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.gate is not None:
            open_by = self.gate(asked).sigmoid()
            y = y * (open_by if self.scale == 1.0 else open_by * self.scale).unsqueeze(-1)
        return self.linear(y.flatten(-2))


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A Xavier-uniform linear layer with zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def kv_heads(heads: int, group: int) -> int:
    """Key-value heads where each serves ``group`` query heads."""
    if heads % group:
        raise ValueError(f"{heads} heads do not divide into groups of layers.query_group={group} that share a key and value head")
    return heads // group
