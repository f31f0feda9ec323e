"""Flex attention: the rule itself inside the kernel, and whole blocks skipped where nobody sees anybody.

Trains on a GPU (compiled). On a CPU it runs forward only, without compiling: to check a mask, not to be fast.

Shape letters: b batch, q queries, k keys, h heads, g key-value heads, e channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from nava_lab.attention.attend import Backend
from nava_lab.attention.visible import Visible
from nava_lab.registry import backends

LEAST_HEAD = 16  # channels that the compiled kernel wants of a head
GRAPHS = 64  # a graph per kind of rule and row; torch gives up after 8 and would fall back to dense attention


# Inductor cannot lower a symbolic float (a window's seconds) inside a rule: it is a constant of the graph.
TRACED = {"specialize_float": True, "recompile_limit": GRAPHS}


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def traced(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call what flex attention offers, compiled, under the settings that its rules need and nothing else sees."""
    with torch._dynamo.config.patch(TRACED):
        return _compiled(function)(*arguments, **named)


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
        run: Callable[..., Tensor] = partial(traced, flex_attention) if compiles(query.device) else flex_attention
        channels = query.shape[-1]
        parts = of_one_type((query, key, value))
        if channels < LEAST_HEAD:
            parts = [F.pad(part, (0, LEAST_HEAD - channels)) for part in parts]
        q, k, v = (part.transpose(1, 2) for part in parts)
        out = run(
            q,
            k,
            v,
            block_mask=None if visible is None else block_mask(visible, query.device),
            scale=channels**-0.5,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return out.transpose(1, 2)[..., :channels]


def of_one_type(parts: Sequence[Tensor]) -> list[Tensor]:
    """Queries, keys and values as one type: autocast's, which leaves norms in float32, or the widest of theirs.

    Fused attention is cast by autocast itself; flex attention is not, and refuses mixed types.
    """
    device = parts[0].device.type
    if torch.is_autocast_enabled(device) and all(part.dtype != torch.float64 for part in parts):
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    return [part.to(dtype) for part in parts]


def block_mask(visible: Visible, device: torch.device) -> object:
    """The rule as flex attention wants it, made once; on a GPU compiled, so that the whole table never lies in memory."""
    run = partial(traced, create_block_mask) if compiles(device) else create_block_mask
    lines = None if visible.lines == 1 else visible.lines
    return visible.once("flex", lambda: run(visible.mask_mod(), lines, None, *visible.shape, device=str(device)))


def compiles(device: torch.device) -> bool:
    """Whether to compile here: on a GPU, unless the whole model is being compiled and this with it."""
    return device.type == "cuda" and not torch.compiler.is_compiling()
