"""The denoiser: embed, stages of blocks, heads. The only place that assembles.

A forward pass is a pure function of parameters and arguments: streams (values, positions, validity), noise levels, text
and the samples whose modalities are cut apart. It returns a velocity for every token of every generated stream.

Shape letters: b batch, n tokens, c channels of a token, d width, v modulation vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nava_lab.attention import Cut, Everything, Mask, Padding, Segments, Spans, Window
from nava_lab.blocks.base import SHARED, Dims, Given
from nava_lab.conditioning.timbre import IN_WORDS
from nava_lab.layers.rotary import clock_for
from nava_lab.models import levels as noise
from nava_lab.models.checks import check
from nava_lab.models.ends import Around
from nava_lab.models.variant import Size, Variant
from nava_lab.streams import TEXT, Interface, Stream


class Denoiser(nn.Module):
    """A variant at a size, for an interface.

    Args:
        variant: answers with stages, widths and where text and noise levels enter.
        interface: the modalities and the text.
        size: width and feed-forward width, usually from the budget solver.
        window_s: attention between generated modalities reaches only this far in time.
        backend: the attention backend's name.
        cut_off: which modality is cut off from the others in samples whose attention is cut; "all" of them, or one by name,
            which then reads only itself and the text while the others still read it.
        mask: a further rule between tokens.
        packed: compute on the real tokens of a batch alone, packed into one row, whatever padding it comes with.
        timbre_in_span: a timbre in context is seen from the tokens of its own span alone.
    """

    def __init__(
        self,
        variant: Variant,
        interface: Interface,
        size: Size | Dims,
        window_s: float = float("inf"),
        backend: str = "auto",
        cut_off: str = "all",
        mask: Mask | None = None,
        packed: bool = False,
        timbre_in_span: bool = False,
    ):
        super().__init__()
        self.clock = clock_for(variant.clock, interface.modalities)
        self.specs = dict(interface.modalities)
        self.window_s = window_s
        self.backend = backend
        self.generated = tuple(interface.modalities)
        if cut_off != "all" and cut_off not in self.generated:
            raise ValueError(f"attention.cut={cut_off} is not one of all, {', '.join(self.generated)}")
        self.cut_off = None if cut_off == "all" else (cut_off,)
        self.mask = Everything() if mask is None else mask
        if timbre_in_span:
            self.mask = self.mask & Spans()
        self.packed = packed
        self.in_sequence = variant.text_place == "sequence"
        dims, plan = self.dims(variant, interface, size), variant.plan()
        configs = [stage.config for stage in plan]
        check(variant, dims, interface, configs)

        make = Around(variant, interface, dims, configs)
        self.embed = nn.ModuleDict({name: make.embedder(name) for name in self.generated})
        self.text = make.text()
        self.timbre = make.timbre()
        self.timbre_in_words = interface.text.timbre_place in IN_WORDS
        self.level = make.level()
        self.exchange = make.exchange()
        self.prompt = make.prompt()
        self.blocks = nn.ModuleList(
            stage.config.build(dims.only(stage.only) if stage.only else dims) for stage in plan for _ in range(stage.layers)
        )
        self.reads_text = tuple(stage.text for stage in plan for _ in range(stage.layers))
        self.text_after = variant.text_after
        self.passes = tuple(stage.only for stage in plan for _ in range(stage.layers))
        self.counted_by = tuple(stage.counted_by for stage in plan for _ in range(stage.layers))
        self.heads = nn.ModuleDict({name: make.head(name) for name in self.generated})
        self.boundary = max((getattr(config, "boundary", 0.0) for config in configs), default=0.0)
        self.high = make.experts()

    @staticmethod
    def dims(variant: Variant, interface: Interface, size: Size | Dims) -> Dims:
        """All sizes, from a budget's or as they are given."""
        if isinstance(size, Size):
            return variant.dims(interface, size)
        row = {*interface.modalities, *((TEXT,) if variant.text_place == "sequence" else ())}
        if set(size.names) != row:
            raise ValueError(f"sizes are given of {', '.join(size.names)}, and the model's row holds {', '.join(sorted(row))}")
        return size

    def forward(
        self,
        streams: Mapping[str, Stream],
        levels: Mapping[str, Float[Tensor, "b *n"]],
        text: Stream,
        cut: Bool[Tensor, " s"] | Cut | None = None,
    ) -> dict[str, Tensor]:
        """Velocities of the generated streams.

        Args:
            streams: noisy tokens of any non-empty subset of the generated modalities, padded, or packed (``Stream.packed``).
            levels: noise level in [0, 1] per modality, one per sample (``b``, also of packed ones) or per token ``b n``; 0
                is clean.
            text: captions as word ids or features, packed if the streams are.
            cut: samples in which attention between modalities is cut; None for none; a ``Cut`` says itself who is cut off.
        """
        if self.packed and text.packing is None:
            return self._packed(streams, levels, text, cut)
        row = {name: streams[name].emptied() for name in self.generated if name in streams}
        if not row:
            raise ValueError(f"no stream given; this model generates {', '.join(self.generated)}")
        samples = len(text.tokens) if text.packing is None else len(text.packing.lengths)
        chosen = cut.samples if isinstance(cut, Cut) else cut
        if chosen is not None and len(chosen) != samples:
            raise ValueError(f"a cut says of {len(chosen)} samples whether it is theirs, and the batch has {samples}")
        if len({stream.packing is None for stream in (*row.values(), text)}) > 1:
            raise ValueError("some streams are packed and others are not: pack all of them, the text too")
        high = {
            name: noise.over_tokens(noise.of_samples(levels[name], row[name]) >= self.boundary, row[name]).unsqueeze(-1)
            for name in self.high
            if name in row
        }
        text = text.emptied()
        x = {name: self.embed[name](stream) for name, stream in row.items()}
        x |= {name: torch.where(mask, self.high[name]["embed"](row[name]), x[name]) for name, mask in high.items()}
        if self.timbre is not None and not self.timbre_in_words:
            x = self._with_mean_timbre(x, row, text)
        if self.in_sequence:
            x[TEXT] = self._words(TEXT, text)
        given = self._given(x, row, levels, text, cut, high)
        without_text = replace(given, text_visible=False, high=given.high and replace(given.high, text_visible=False))
        for block, reads_text, only in zip(self.blocks, self.reads_text, self.passes, strict=True):
            told = given if reads_text else without_text
            if not only:
                x = block(x, told)
            elif entering := {name: x[name] for name in only if name in x}:
                x = {**x, **block(entering, told)}
        out = {name: self.heads[name](x[name], given.levels.get(name)) for name in row}
        for name, mask in high.items():
            level = given.high.levels.get(name)  # type: ignore[union-attr]
            out[name] = torch.where(mask, self.high[name]["head"](x[name], level), out[name])
        return out

    def _given(
        self,
        x: Mapping[str, Tensor],
        row: Mapping[str, Stream],
        levels: Mapping[str, Tensor],
        text: Stream,
        cut: Tensor | Cut | None,
        high: Mapping[str, Tensor],
    ) -> Given:
        """What every block reads, computed once."""
        embedded: dict[str, Tensor] = {}
        modulation: dict[str, Tensor] = {}
        if self.level is not None:
            embedded, modulation = noise.embedded({name: self.level[name] for name in x}, x, row, levels)
        given = Given(
            {**row, TEXT: text},
            modulation,
            {} if self.in_sequence else self._text_features(text, tuple(row)),
            self.rule(cut),
            self.clock,
            self.backend,
            specs=self.specs,
            levels=embedded,
            exchange={} if self.exchange is None else self.exchange(row, levels),
            prompt={} if self.prompt is None else self.prompt(row, levels, text),
            high_noise=high,
        )
        return replace(given, high=self._high(given, x, row, levels, text)) if high else given

    def _high(
        self, given: Given, x: Mapping[str, Tensor], row: Mapping[str, Stream], levels: Mapping[str, Tensor], text: Stream
    ) -> Given:
        """What the experts of high noise levels are given, who have ends of their own."""
        names = {name: x[name] for name in given.high_noise}
        found, vectors = noise.embedded({name: self.high[name]["level"] for name in names}, names, row, levels)
        words = {name: self._timbred(name, self.high[name]["text"](text), text) for name in names}
        return replace(
            given,
            text={**given.text, **words},
            modulation={**given.modulation, **vectors},
            levels={**given.levels, **found},
        )

    def _packed(
        self, streams: Mapping[str, Stream], levels: Mapping[str, Tensor], text: Stream, cut: Tensor | Cut | None
    ) -> dict[str, Tensor]:
        """The same without its padding, where velocities are 0."""
        row = {name: stream.packed() for name, stream in streams.items()}
        each = {name: level if level.ndim == 1 else streams[name].in_one_row(level) for name, level in levels.items()}
        return {name: streams[name].unpacked(part) for name, part in self(row, each, text.packed(), cut).items()}

    def rule(self, cut: Tensor | Cut | None = None) -> Mask:
        """Who may see whom, in layers that read the text."""
        mask = Padding() & Segments() & Window(self.window_s) & self.mask
        if cut is None:
            return mask
        cut = cut if isinstance(cut, Cut) else Cut(cut, self.cut_off)
        if unknown := [name for name in cut.readers or () if name not in self.generated]:
            raise ValueError(f"a cut names {', '.join(unknown)}; this model generates {', '.join(self.generated)}")
        return mask & cut

    def _text_features(self, text: Stream, names: tuple[str, ...]) -> dict[str, Tensor]:
        if self.text.split:
            return {name: self._words(name, text) for name in names}
        return dict.fromkeys(names, self._words(names[0], text))

    def _words(self, name: str, text: Stream) -> Tensor:
        """The text in a modality's width, timbres in their places."""
        return self._timbred(name, self.text[name](text), text)

    def _timbred(self, name: str, words: Tensor, text: Stream) -> Tensor:
        if self.timbre is None or not self.timbre_in_words:
            return words
        encoder: Any = self.timbre[name]
        return encoder.into(words, text)

    def _with_mean_timbre(self, x: Mapping[str, Tensor], row: Mapping[str, Stream], text: Stream) -> dict[str, Tensor]:
        """Every token with the mean reference of its sample added."""
        samples = len(text.tokens) if text.packing is None else len(text.packing.lengths)
        split = self.timbre.split  # type: ignore[union-attr]
        encoders: dict[str, Any] = {name if split else SHARED: self.timbre[name] for name in x}  # type: ignore[index]
        means = {name: encoder.mean(text, samples) for name, encoder in encoders.items()}
        found = {}
        for name, part in x.items():
            mean, packing = means[name if split else SHARED], row[name].packing
            found[name] = part + (mean if packing is None else mean[:, 0][packing.ids])
        return found


class _Uninitialised(TorchFunctionMode):
    """Leaves out the filling of tensors."""

    FILLS = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.zero_, Tensor.fill_})

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return args[0] if func in self.FILLS and args else func(*args, **(kwargs or {}))


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(variant: Variant, interface: Interface, size: Size | Dims, **options: object) -> Denoiser:
    """The same denoiser without memory: shapes only, and no time spent on values that it does not have."""
    with torch.device("meta"), _Uninitialised():
        return Denoiser(variant, interface, size, **options)  # type: ignore[arg-type]
