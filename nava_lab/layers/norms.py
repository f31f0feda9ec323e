"""Norms by name."""

from __future__ import annotations

from torch import nn

NORMS = ("layer", "rms")


def norm(kind: str, width: int, affine: bool) -> nn.Module:
    """LayerNorm (Wan) or RMS norm (LTX-2, MagiHuman), with weights of its own where ``affine``."""
    if kind == "layer":
        return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)
    if kind == "rms":
        return nn.RMSNorm(width, eps=1e-6, elementwise_affine=affine)
    raise ValueError(f"norm '{kind}' is not one of {', '.join(NORMS)}")
