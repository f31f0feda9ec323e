"""Who may see whom (masks) and how attention is computed (backends)."""

from nava_lab.attention.backends import attend
from nava_lab.attention.masks import Cut, Everything, Mask, Padding, Tokens, Window

__all__ = ["Cut", "Everything", "Mask", "Padding", "Tokens", "Window", "attend"]
