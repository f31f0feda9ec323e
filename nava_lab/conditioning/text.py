"""Captions as streams: a word tokenizer for the worlds' grammar, and the encoder a model trains with it.

Shape letters: b batch, l words, w text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nava_lab.registry import nearest
from nava_lab.streams import Stream, TextSpec, onto

PAD, NULL = 0, 1  # ids every vocabulary begins with
TEXT_INPUTS = ("mlp", "linear", "none")


class WordTokenizer:
    """Words of a fixed vocabulary to ids; an unknown word is an error, for a grammar has none."""

    def __init__(self, words: Sequence[str], length: int):
        self.words = ("<pad>", "<null>", *dict.fromkeys(words))
        self.ids = {word: number for number, word in enumerate(self.words)}
        self.length = length

    @property
    def spec(self) -> TextSpec:
        return TextSpec(self.length, len(self.words))

    def __call__(self, captions: Sequence[str]) -> Stream:
        """Captions of different lengths as one padded stream; an empty caption becomes the null word."""
        rows = []
        for caption in captions:
            words = caption.split()
            unknown = [word for word in words if word not in self.ids]
            if unknown:
                told = "; ".join(f"{word!r}, {nearest(word, list(self.words[2:]))}" for word in unknown)
                raise ValueError(f"caption '{caption}': the vocabulary has no word {told}")
            if len(words) > self.length:
                raise ValueError(f"caption '{caption}' has {len(words)} words; the tokenizer takes {self.length}")
            row = [self.ids[word] for word in words] or [NULL]
            rows.append(row + [PAD] * (self.length - len(row)))
        return text_stream(torch.tensor(rows))

    def spelled(self, words: Sequence[str], choice: Tensor, said: Tensor | None = None) -> Int[Tensor, "*any"]:
        """Ids of the chosen ones of ``words``, any shape; padding where ``said`` is false."""
        table = onto(torch.tensor([self.ids[word] for word in words]), choice.device)
        ids = table[choice.clamp(0, len(words) - 1)]
        return ids if said is None else torch.where(said, ids, PAD)

    def read(self, ids: Tensor) -> list[str]:
        """Ids ``b l`` back to captions."""
        return [" ".join(self.words[number] for number in row if number not in (PAD, NULL)) for row in ids.tolist()]


class MarkingTokenizer(WordTokenizer):
    """A tokenizer one of whose words marks spans: the i-th time it is said, the i-th span."""

    def __init__(self, words: Sequence[str], length: int, mark: str):
        super().__init__(words, length)
        self.mark = mark

    def __call__(self, captions: Sequence[str]) -> Stream:
        plain = super().__call__(captions)
        return replace(plain, span=self.spans(plain.tokens))

    def spans(self, ids: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """The span that each word marks; -1 for none."""
        marks = ids == self.ids[self.mark]
        return torch.where(marks, marks.long().cumsum(1) - 1, -1)


def closed_up(ids: Int[Tensor, "b l"], length: int) -> Int[Tensor, "b {length}"]:
    """Ids with the padding between words moved behind them, at a fixed length."""
    order = (ids == PAD).long().argsort(dim=1, stable=True)
    return torch.nn.functional.pad(ids.gather(1, order), (0, max(0, length - ids.shape[1])), value=PAD)[:, :length]


def text_positions(length: int, device: torch.device | str = "cpu") -> Float[Tensor, "1 l 3"]:
    """Where text joins a sequence it stands before time, a word a second in the order of reading: the last place is at -1 s."""
    places = torch.arange(length, device=device, dtype=torch.float32) - length
    return torch.stack((places, torch.zeros_like(places), torch.zeros_like(places)), -1).unsqueeze(0)


def text_stream(ids: Tensor) -> Stream:
    """Ids ``b l`` as a stream."""
    return Stream(ids, text_positions(ids.shape[1], ids.device), ids != PAD)


def without_text(text: Stream, samples: Tensor) -> Stream:
    """The stream with the caption of the chosen samples (``b``, bool) replaced by the null word, its marks with it.

    Reference timbres go with the caption, wherever they enter: those in context lose the words that they stand in, and a
    global mean that stayed would make "no caption" another thing for it than for them.

    Features of a frozen encoder are replaced by those that it makes of an empty caption, which the stream carries.
    """
    references = None if text.references is None else text.references.hidden(samples)
    if text.tokens.is_floating_point():
        if text.empty is None:
            raise TypeError("features of captions without those of an empty caption (Stream.empty) cannot be dropped")
        chosen = samples.unsqueeze(-1)
        tokens = torch.where(chosen.unsqueeze(-1), text.empty.tokens.to(text.tokens), text.tokens)
        valid = torch.where(chosen, _real(text.empty), _real(text))
        span = None if text.span is None else text.span.masked_fill(chosen, -1)
        return replace(text, tokens=tokens, valid=valid, span=span, references=references)
    null = torch.full_like(text.tokens, PAD)
    null[:, 0] = NULL
    ids = torch.where(samples.unsqueeze(-1), null, text.tokens)
    span = None if text.span is None else text.span.masked_fill(samples.unsqueeze(-1), -1)
    return Stream(ids, text.positions, ids != PAD, None, span, references)


def _real(text: Stream) -> Tensor:
    return torch.ones(text.tokens.shape[:2], dtype=torch.bool, device=text.tokens.device) if text.valid is None else text.valid


class TextEncoder(nn.Module):
    """Word ids (embedded, with learned places) or a frozen encoder's features, to a width.

    Args:
        spec: what the text is.
        width: of the words' encodings.
        kind: "mlp", Wan's two layers; "linear", one (MagiHuman); "none" takes embedded words, or features, as they are
            (LTX-2.3, whose connectors already write in each modality's width).
        start: where, for "none", this width begins among the features.
    """

    def __init__(self, spec: TextSpec, width: int, kind: str = "mlp", start: int = 0):
        super().__init__()
        self.kind = kind
        inner = width if spec.vocabulary else spec.features
        if spec.vocabulary:
            self.words = nn.Embedding(spec.vocabulary, inner)
            self.places = nn.Parameter(torch.empty(spec.length, inner))
            nn.init.normal_(self.words.weight, std=0.5)
            nn.init.normal_(self.places, std=0.1)
        self.embedded = bool(spec.vocabulary)
        if kind not in TEXT_INPUTS:
            raise ValueError(f"ends.text={kind} is not one of {', '.join(TEXT_INPUTS)}")
        self.mlp: nn.Module = nn.Identity()
        if kind == "mlp":
            self.mlp = nn.Sequential(nn.Linear(inner, width), nn.GELU(approximate="tanh"), nn.Linear(width, width))
        elif kind == "linear":
            self.mlp = nn.Linear(inner, width)
        elif not self.embedded and start + width > spec.features:
            raise ValueError(
                f"ends.text=none needs {start + width} features, one part per modality; the text has {spec.features}"
            )
        self.own = slice(start, start + width) if kind == "none" and not self.embedded else slice(None)

    def forward(self, text: Stream) -> Float[Tensor, "b l w"]:
        if not self.embedded:
            return self.mlp(text.real_tokens()[..., self.own])
        places = self.places[: len(text)] if text.packing is None else self.places[text.packing.places()]
        return self.mlp(self.words(text.tokens) + places)
