"""Masked softmax attention in float64, written to be read. Every other backend is held to it.

Shape letters: b batch, q queries, k keys, h heads, g key-value heads, e channels of a head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nava_lab.attention.attend import Backend
from nava_lab.attention.visible import Visible
from nava_lab.registry import backends


@backends.register("reference")
class Reference(Backend):
    """The definition, in float64; slow."""

    def __call__(
        self,
        query: Float[Tensor, "b q h e"],
        key: Float[Tensor, "b k g e"],
        value: Float[Tensor, "b k g e"],
        visible: Visible | None,
    ) -> Float[Tensor, "b q h e"]:
        groups = query.shape[2] // key.shape[2]
        value = value.double().repeat_interleave(groups, 2)
        return torch.einsum("bhqk,bkhe->bqhe", weights(query, key, visible), value).to(query.dtype)


def weights(query: Float[Tensor, "b q h e"], key: Float[Tensor, "b k g e"], visible: Visible | None) -> Float[Tensor, "b h q k"]:
    """How much each query attends to each key: rows that sum to 1, or to 0 where a query sees nothing."""
    key = key.double().repeat_interleave(query.shape[2] // key.shape[2], 2)
    logits = torch.einsum("bqhe,bkhe->bhqk", query.double(), key) * query.shape[-1] ** -0.5
    allowed = None if visible is None else visible.dense
    if allowed is None:
        return logits.softmax(-1)
    allowed = allowed.unsqueeze(1)
    blind = ~allowed.any(-1, keepdim=True)
    # A blind row sees everything for a moment, so that its softmax and its gradient exist; then its weights are 0.
    return logits.masked_fill(~allowed & ~blind, float("-inf")).softmax(-1).masked_fill(blind, 0.0)
