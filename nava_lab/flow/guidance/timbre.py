"""Guidance by reference timbres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nava_lab.conditioning.timbre import without_references
from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.base import Call, Encode, Scale, Term
from nava_lab.registry import guidance
from nava_lab.streams import TextSpec


@guidance.register("timbre")
@dataclass(frozen=True)
class Timbre(Term):
    """Away from no reference timbre (NAVA, arXiv 2605.30073).

    Attributes:
        scale: one number, or one per modality; 1 is off.
    """

    scale: Scale = 1.0

    example: ClassVar[Mapping[str, object]] = {"scale": 2.0}

    def null(self, call: Call, encode: Encode | None) -> Call:
        everyone = torch.ones(len(call.text.tokens), dtype=torch.bool, device=call.text.tokens.device)
        return replace(call, text=without_references(call.text, everyone))

    def untrained(self, drawing: Drawing, text: TextSpec) -> str:
        if not text.timbre:
            return "this model is shown no reference timbres"
        if drawing.timbre_dropout == 0:
            return "samples without reference timbres were never trained; train with flow.timbre_dropout=0.1, say"
        if drawing.timbre_dropout >= 1:
            return "reference timbres were never trained; train with flow.timbre_dropout below 1"
        if drawing.text_dropout >= 1:  # whoever is shown no caption is shown no reference
            return "reference timbres were never trained; train with flow.text_dropout below 1"
        return ""
