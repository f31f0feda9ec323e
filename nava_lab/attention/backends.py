"""Attention behind one call.

Shape letters: b batch, q queries, k keys, h heads, g key-value heads (h is a multiple of g), e channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Backend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def reference(
    query: Float[Tensor, "b q h e"],
    key: Float[Tensor, "b k g e"],
    value: Float[Tensor, "b k g e"],
    mask: Bool[Tensor, "_ q k"] | None,
) -> Float[Tensor, "b q h e"]:
    """Softmax attention written to be read; a query that may see nothing gets zeros."""
    groups = query.shape[2] // key.shape[2]
    key, value = (part.repeat_interleave(groups, 2) for part in (key, value))
    logits = torch.einsum("bqhe,bkhe->bhqk", query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(1), float("-inf"))
        blind = ~mask.any(-1)[:, None, :, None]
        weights = logits.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    else:
        weights = logits.softmax(-1)
    return torch.einsum("bhqk,bkhe->bqhe", weights, value)


def sdpa(
    query: Float[Tensor, "b q h e"],
    key: Float[Tensor, "b k g e"],
    value: Float[Tensor, "b k g e"],
    mask: Bool[Tensor, "_ q k"] | None,
) -> Float[Tensor, "b q h e"]:
    """PyTorch's fused attention."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=None if mask is None else mask.unsqueeze(1),
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return out.transpose(1, 2)


BACKENDS: dict[str, Backend] = {"reference": reference, "sdpa": sdpa}


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, backend: str = "sdpa") -> Tensor:
    """Attention by the named backend; an unknown name is an error that lists the known ones."""
    if backend not in BACKENDS:
        raise ValueError(f"attention backend '{backend}' is not one of {', '.join(BACKENDS)}")
    return BACKENDS[backend](query, key, value, mask)
