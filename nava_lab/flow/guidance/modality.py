"""Guidance by the other modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.base import Call, Encode, Scale, Term
from nava_lab.registry import guidance
from nava_lab.streams import TextSpec


@guidance.register("modality")
@dataclass(frozen=True)
class Modality(Term):
    """Away from attention between modalities cut: NAVA's alignment guidance (arXiv 2605.30073), LTX-2's modality guidance.

    Attributes:
        scale: one number, or one per modality; 1 is off.
    """

    scale: Scale = 1.0

    example: ClassVar[Mapping[str, object]] = {"scale": 2.0}

    def null(self, call: Call, encode: Encode | None) -> Call:
        return replace(call, cut=torch.ones(len(call.text.tokens), dtype=torch.bool, device=call.text.tokens.device))

    def untrained(self, drawing: Drawing, text: TextSpec) -> str:
        if drawing.modality_dropout == 0:
            return "attention between modalities was never cut in training; train with flow.modality_dropout=0.2, say"
        if drawing.modality_dropout >= 1:
            return "attention between modalities was always cut in training; train with flow.modality_dropout below 1"
        return ""
