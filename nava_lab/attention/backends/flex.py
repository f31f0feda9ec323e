"""Flex attention: the rule itself inside the kernel, and whole blocks skipped where nobody sees anybody.

Trains on a GPU (compiled). On a CPU it runs forward only, without compiling: to check a mask, not to be fast.

Shape letters: b batch, q queries, k keys, h heads, g key-value heads, e channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from nava_lab.attention.attend import Backend
from nava_lab.attention.visible import Visible
from nava_lab.registry import backends


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)  # type: ignore[return-value]


@backends.register("flex")
class Flex(Backend):
    """flex_attention with block masks: GPU training, CPU forward."""

    def refusal(self, device: str, gradients: bool) -> str | None:
        if device in ("cuda", "meta") or not gradients:
            return None
        return f"flex attention has no gradients on {device}"

    def __call__(
        self,
        query: Float[Tensor, "b q h e"],
        key: Float[Tensor, "b k g e"],
        value: Float[Tensor, "b k g e"],
        visible: Visible | None,
    ) -> Float[Tensor, "b q h e"]:
        run = _compiled() if query.device.type == "cuda" and not torch.compiler.is_compiling() else flex_attention
        out = run(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            block_mask=None if visible is None else block_mask(visible, query.device),
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return out.transpose(1, 2)


def block_mask(visible: Visible, device: torch.device) -> object:
    """The rule as flex attention wants it, made once."""
    lines = None if visible.lines == 1 else visible.lines
    return visible.once("flex", lambda: create_block_mask(visible.mask_mod(), lines, None, *visible.shape, device=str(device)))
