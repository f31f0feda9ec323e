"""Feed-forward networks by name, over timm's."""

from __future__ import annotations

from functools import partial

from timm.layers import Mlp, SwiGLU
from torch import nn

KINDS = ("gelu", "swiglu")


def feed_forward(kind: str, width: int, hidden: int, bias: bool = True) -> nn.Module:
    """``width -> hidden -> width``: GELU-tanh as in Wan, or SwiGLU as in MagiHuman (two input projections).

    Weights: ``2 d f + f + d`` for gelu, ``3 d f + 2 f + d`` for swiglu, biases included.
    """
    if kind == "gelu":
        layer: nn.Module = Mlp(width, hidden, act_layer=partial(nn.GELU, approximate="tanh"), bias=bias)  # type: ignore[arg-type]
    elif kind == "swiglu":
        layer = SwiGLU(width, hidden, bias=bias)
    else:
        raise ValueError(f"feed_forward '{kind}' is not one of {', '.join(KINDS)}")
    for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    return layer
