"""Who may see whom (masks) and how attention is computed (backends)."""

from nava_lab.attention.attend import attend
from nava_lab.attention.masks import Causal, Cut, Everything, Mask, Padding, Segments, Spans, Window, WithoutText
from nava_lab.attention.tokens import Tokens
from nava_lab.attention.visible import Visible

__all__ = [
    "Causal", "Cut", "Everything", "Mask", "Padding", "Segments", "Spans", "Tokens", "Visible", "Window", "WithoutText", "attend",
]  # fmt: skip
