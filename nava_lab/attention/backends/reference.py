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
        dtype, groups = query.dtype, query.shape[2] // key.shape[2]
        query, key, value = query.double(), key.double(), value.double()
        key, value = key.repeat_interleave(groups, 2), value.repeat_interleave(groups, 2)
        logits = torch.einsum("bqhe,bkhe->bhqk", query, key) * query.shape[-1] ** -0.5
        allowed = None if visible is None else visible.dense
        if allowed is None:
            weights = logits.softmax(-1)
        else:
            allowed = allowed.unsqueeze(1)
            blind = ~allowed.any(-1, keepdim=True)
            # A blind row sees everything for a moment, so that its softmax and its gradient exist; then its weights are 0.
            weights = logits.masked_fill(~allowed & ~blind, float("-inf")).softmax(-1).masked_fill(blind, 0.0)
        return torch.einsum("bhqk,bkhe->bqhe", weights, value).to(dtype)
