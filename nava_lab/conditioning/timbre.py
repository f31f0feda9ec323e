"""Reference timbres into a model: in context, as NAVA does it (arXiv 2605.30073), or as one global embedding.

In context, the caption marks each span of speech, and the i-th reference's token takes the place of the word that marks the
i-th span; a span without a reference gets a learned null token. What is overwritten takes the word's place in the caption
with it, and attention that reads text as a bag of words then cannot tell one mark from another: only its mask
(``conditioning.timbre_in_span``) or positions in the sequence can. Added to the word instead of overwriting it, a timbre keeps
word and place. Globally, the mean of a sample's references is added to every generated token, wherever it lies: what binding to
spans is compared with. Who is shown no caption is shown no reference, in any of these places (``text.without_text``).

Shape letters: b batch, k references, f features of one, l words, w width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nava_lab.streams import References, Stream, TextSpec

IN_WORDS = ("context", "added")
PLACES = (*IN_WORDS, "global", "none")


def with_references(text: Stream, references: References) -> Stream:
    """A caption with what its marks refer to.

    Raises:
        ValueError: a sample has a reference whose span no word marks; it would be heard nowhere.
    """
    span = torch.full(text.tokens.shape[:2], -1, device=text.tokens.device) if text.span is None else text.span
    span = span if text.valid is None else span.masked_fill(~text.valid, -1)
    numbers = torch.arange(references.valid.shape[1], device=span.device)
    lost = references.valid & ~(span.unsqueeze(-1) == numbers).any(1)
    if bool(lost.any()):
        row, number = lost.nonzero()[0].tolist()
        marked = ", ".join(str(mark) for mark in sorted({mark for mark in span[row].tolist() if mark >= 0})) or "none"
        raise ValueError(
            f"sample {row} has a reference timbre {number}, and no word of its caption marks span {number} (marked: {marked}): "
            "leave the reference out, or mark a span for it"
        )
    return replace(text, references=references)


def carried(text: Stream, references: References | None) -> Stream:
    """A caption of its own with another one's references: those whose span it marks are shown, the others are not.

    So a caption without marks, and no caption, are told no timbre.
    """
    if references is None:
        return text
    span = torch.full(text.tokens.shape[:2], -1, device=text.tokens.device) if text.span is None else text.span
    marked = (span.unsqueeze(-1) == torch.arange(references.valid.shape[1], device=span.device)).any(1)
    return replace(text, references=replace(references, valid=references.valid & marked))


def without_references(text: Stream, samples: Tensor) -> Stream:
    """The stream with the references of the chosen samples (``b``, bool) not shown."""
    return text if text.references is None else replace(text, references=text.references.hidden(samples))


def blank_references(text: Stream, spec: TextSpec) -> Stream:
    """A full-length text whose first words mark spans, each with a reference of zeros: what costs are counted on."""
    if not spec.timbre:
        return text
    device, batch = text.tokens.device, len(text.tokens)
    places = torch.arange(len(text), device=device)
    span = torch.where(places < spec.references, places, -1).expand(batch, -1)
    shape = (batch, spec.references)
    known = References(torch.zeros(*shape, spec.timbre, device=device), torch.ones(shape, dtype=torch.bool, device=device))
    return replace(text, span=span, references=known)


class TimbreEncoder(nn.Module):
    """One token of a width for each reference: norm, two linear maps with SiLU between, norm (NAVA's speaker module).

    Args:
        features: channels of a reference.
        width: of a token.
        adds: whether a timbre in context is added to the word that marks its span, instead of taking its place.
    """

    def __init__(self, features: int, width: int, adds: bool = False):
        super().__init__()
        self.adds = adds
        self.norm = nn.LayerNorm(features)
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.out_norm = nn.LayerNorm(width)
        self.null = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.null, std=0.02)

    def tokens(self, references: References) -> Float[Tensor, "b k w"]:
        """The references' tokens, the null token for one that is not shown."""
        features = references.features.masked_fill(~references.valid.unsqueeze(-1), 0.0).to(self.null.dtype)
        return torch.where(references.valid.unsqueeze(-1), self.out_norm(self.mlp(self.norm(features))), self.null)

    def into(self, words: Float[Tensor, "b l w"], text: Stream) -> Float[Tensor, "b l w"]:
        """Encoded words, those that mark a span with their reference's token in their place or added to them."""
        if text.span is None:
            return words
        marked = (text.span >= 0).unsqueeze(-1)
        timbres = self._of_marks(text).to(words.dtype)
        return words + timbres * marked if self.adds else torch.where(marked, timbres, words)

    def _of_marks(self, text: Stream) -> Float[Tensor, "_ _ w"]:
        """For each word, the token of the reference that it stands for; of no meaning where it stands for none."""
        if text.references is None or text.span is None:
            return self.null.view(1, 1, -1)
        tokens = self.tokens(text.references)
        table = torch.cat((tokens, self.null.expand(len(tokens), 1, -1)), 1)  # the last row: spans beyond the references
        count = tokens.shape[1]
        which = torch.where((text.span >= 0) & (text.span < count), text.span, count)
        return table[_samples(text), which]

    def mean(self, text: Stream, batch: int) -> Float[Tensor, "b 1 w"]:
        """The mean of each sample's shown references; the null token where none is."""
        if text.references is None:
            return self.null.expand(batch, 1, -1)
        valid = text.references.valid.unsqueeze(-1)
        mean = (self.tokens(text.references) * valid).sum(1) / valid.sum(1).clamp(min=1)
        return torch.where(valid.any(1), mean, self.null).unsqueeze(1)


def _samples(text: Stream) -> Tensor:
    """The sample of each token, broadcasting with ``b l``."""
    if text.packing is not None:
        return text.packing.ids
    return torch.arange(len(text.tokens), device=text.tokens.device).unsqueeze(-1)
