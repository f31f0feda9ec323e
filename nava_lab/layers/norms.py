"""Norms by name."""

from __future__ import annotations

from torch import Tensor, nn

from nava_lab.layers.fused import rms_norm

NORMS = ("layer", "rms")


class RMSNorm(nn.RMSNorm):
    """PyTorch's, over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


def norm(kind: str, width: int, affine: bool) -> nn.Module:
    """LayerNorm (Wan) or RMS norm (LTX-2, MagiHuman), with weights of its own where ``affine``."""
    if kind == "layer":
        return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)
    if kind == "rms":
        return RMSNorm(width, eps=1e-6, elementwise_affine=affine)
    raise ValueError(f"norm '{kind}' is not one of {', '.join(NORMS)}")
