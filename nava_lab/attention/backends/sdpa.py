"""PyTorch's fused attention: dense, or sample by sample where several samples are packed into one row.

Shape letters: b batch, q queries, k keys, h heads, g key-value heads, e channels of a head, s samples of one pair of lengths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nava_lab.attention.attend import Backend
from nava_lab.attention.visible import Group, Visible
from nava_lab.registry import backends

# Kernels that give 0 to a query that sees nothing, by themselves and with finite gradients (law 3 holds them to it); elsewhere
# it sees everything for a moment and its output is replaced.
BLIND_IS_ZERO = ("cpu",)


@backends.register("sdpa")
class Sdpa(Backend):
    """torch.nn.functional.scaled_dot_product_attention; packed rows cost no padding."""

    def __call__(
        self,
        query: Float[Tensor, "b q h e"],
        key: Float[Tensor, "b k g e"],
        value: Float[Tensor, "b k g e"],
        visible: Visible | None,
    ) -> Float[Tensor, "b q h e"]:
        groups = None if visible is None else visible.groups
        if groups is None:
            return _fused(query, key, value, visible)
        return _by_sample(query, key, value, groups, visible.once("places", lambda: _places(groups)))


def _fused(query: Tensor, key: Tensor, value: Tensor, visible: Visible | None) -> Tensor:
    hidden = None if visible is None else visible.additive(query.dtype, query.device.type not in BLIND_IS_ZERO)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=None if hidden is None else hidden.unsqueeze(1),
        enable_gqa=query.shape[2] != key.shape[2],
    ).transpose(1, 2)
    if visible is not None and query.device.type not in BLIND_IS_ZERO:
        out = out.masked_fill(~visible.sees.unsqueeze(-1), 0.0)
    return out


def _places(groups: list[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys in the order of the groups, and the way back."""
    rows = torch.cat([group.queries.flatten() for group in groups])
    columns = torch.cat([group.keys.flatten() for group in groups])
    return rows, columns, torch.empty_like(rows).scatter_(0, rows, torch.arange(len(rows), device=rows.device))


def _by_sample(query: Tensor, key: Tensor, value: Tensor, groups: list[Group], places: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Each group of samples of equal lengths as a batch of its own: one gather in, one gather out, no padded work."""
    rows, columns, back = places
    query = query[0].index_select(0, rows)
    key, value = key[0].index_select(0, columns), value[0].index_select(0, columns)
    asked = query.split([group.queries.numel() for group in groups])
    offered = [part.split([group.keys.numel() for group in groups]) for part in (key, value)]
    made = []
    for group, q, k, v in zip(groups, asked, *offered, strict=True):
        samples = len(group.queries)
        if not group.keys.numel():
            made.append(q * 0.0)
            continue
        q, k, v = (part.unflatten(0, (samples, -1)) for part in (q, k, v))
        made.append(_fused(q, k, v, group.visible).flatten(0, 1))
    return torch.cat(made).index_select(0, back).unsqueeze(0)
