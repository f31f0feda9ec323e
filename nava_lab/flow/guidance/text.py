"""Classifier-free guidance by text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nava_lab.conditioning.text import without_text
from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.base import Call, Encode, Scale, Term
from nava_lab.registry import guidance
from nava_lab.streams import TextSpec


@guidance.register("text")
@dataclass(frozen=True)
class Text(Term):
    """Away from no caption (Ho & Salimans 2022), and so from no reference timbre.

    Attributes:
        scale: one number, or one per modality; 1 is off.
    """

    scale: Scale = 1.0

    example: ClassVar[Mapping[str, object]] = {"scale": 3.0}

    def null(self, call: Call, encode: Encode | None) -> Call:
        everyone = torch.ones(len(call.text.tokens), dtype=torch.bool, device=call.text.tokens.device)
        return replace(call, text=without_text(call.text, everyone))

    def untrained(self, drawing: Drawing, text: TextSpec) -> str:
        if not text.says:
            return "this world has no captions"
        if drawing.text_dropout == 0:
            return "samples without a caption were never trained; train with flow.text_dropout=0.1, say"
        return "captions were never trained; train with flow.text_dropout below 1" if drawing.text_dropout >= 1 else ""
