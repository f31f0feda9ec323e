"""Guidance away from a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from nava_lab.conditioning.timbre import carried
from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.base import Call, Encode, Scale, Term
from nava_lab.registry import guidance
from nava_lab.streams import Stream, TextSpec


@guidance.register("negative")
@dataclass(frozen=True)
class Negative(Term):
    """Away from what a negative prompt says.

    A negative prompt is marked as the world marks its captions, and its marks stand for the sample's own references: the two
    branches then differ in words alone. A reference whose span it does not mark is not shown in that branch, so that without
    any mark this guides towards the timbres too.

    Attributes:
        scale: one number, or one per modality; 1 is off.
        prompt: a caption in the world's words.
    """

    scale: Scale = 1.0
    prompt: str = ""

    example: ClassVar[Mapping[str, object]] = {"scale": 2.0, "prompt": "red disc"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on and not self.prompt:
            raise ValueError("evaluation.guidance.negative needs a prompt: set evaluation.guidance.negative.prompt")
        if self.prompt and not self.on:
            raise ValueError(
                "evaluation.guidance.negative.prompt does nothing at scale 1: set evaluation.guidance.negative.scale"
            )

    def check(self, encode: Encode | None) -> None:
        if encode is None:
            raise ValueError("evaluation.guidance.negative: this world has no words")
        encode([self.prompt])

    def null(self, call: Call, encode: Encode | None) -> Call:
        if encode is None:
            raise ValueError("evaluation.guidance.negative: this world has no words")
        said = encode([self.prompt]).to(call.text.tokens.device)
        rows = len(call.text.tokens)
        tokens = said.tokens.expand(rows, *said.tokens.shape[1:])
        valid, span = (None if part is None else part.expand(rows, -1) for part in (said.valid, said.span))
        return replace(call, text=carried(Stream(tokens, said.positions, valid, span=span), call.text.references))

    def untrained(self, drawing: Drawing, text: TextSpec) -> str:
        if not text.says:
            return "this world has no captions"
        return "captions were never trained; train with flow.text_dropout below 1" if drawing.text_dropout >= 1 else ""
