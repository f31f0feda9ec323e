"""The denoiser: embed, stages of blocks, heads. The only place that assembles.

A forward pass is a pure function of parameters and arguments: streams (values, positions, validity), noise levels, text
and the samples whose modalities are cut apart. It returns a velocity for every token of every generated stream.

Shape letters: b batch, n tokens, c channels of a token, d width, v modulation vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nava_lab.attention import Cut, Everything, Mask, Padding, Segments, Spans, Window
from nava_lab.blocks.base import CONDITIONING, EMBEDDERS, HEADS, SHARED, Dims, Given, PerModality, tag
from nava_lab.conditioning.text import TextEncoder
from nava_lab.conditioning.timbre import IN_WORDS, TimbreEncoder
from nava_lab.layers.modulation import LevelEmbedding, ModulationTable, modulate
from nava_lab.layers.rotary import clock_for
from nava_lab.models.variant import Size, Variant
from nava_lab.streams import TEXT, Interface, Stream, finite_in_padding

LEVEL_FEATURES = 64


class VelocityHead(nn.Module):
    """Norm, shift and scale by noise level, and a linear map to the token's channels that starts at zero."""

    def __init__(self, width: int, channels: int, modulated: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not modulated)
        self.table = ModulationTable(width, 2) if modulated else None
        self.linear = nn.Linear(width, channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "b n d"], level: Tensor | None) -> Float[Tensor, "b n c"]:
        x = self.norm(x)
        if self.table is not None and level is not None:
            x = modulate(x, *self.table(level.unsqueeze(-2)))
        return self.linear(x)


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
        size: Size,
        window_s: float = float("inf"),
        backend: str = "auto",
        cut_off: str = "all",
        mask: Mask | None = None,
        packed: bool = False,
        timbre_in_span: bool = False,
    ):
        super().__init__()
        self.clock = clock_for(variant.clock, (spec.grid for spec in interface.modalities.values()))
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
        dims = self.dims(variant, interface, size)
        self.embed = nn.ModuleDict(
            {
                name: tag(_embedder(spec.channels, dims.widths[name]), EMBEDDERS, name)
                for name, spec in interface.modalities.items()
            }
        )
        names = self.generated
        text_widths = {TEXT: dims.widths[TEXT]} if self.in_sequence else {name: dims.widths[name] for name in names}
        one_text = len(set(text_widths.values())) == 1 and variant.level_input != "per_modality"
        self.text = tag(
            PerModality(tuple(text_widths), not one_text, lambda name: TextEncoder(interface.text, text_widths[name])),
            CONDITIONING,
            TEXT if self.in_sequence else None,
        )
        self.timbre = None
        self.timbre_in_words = interface.text.timbre_place in IN_WORDS
        if interface.text.timbre:
            widths = text_widths if self.timbre_in_words else {name: dims.widths[name] for name in names}
            split = not one_text or len(set(widths.values())) > 1
            adds = interface.text.timbre_place == "added"
            self.timbre = tag(
                PerModality(tuple(widths), split, lambda name: TimbreEncoder(interface.text.timbre, widths[name], adds)),
                CONDITIONING,
                TEXT if self.in_sequence and self.timbre_in_words else None,
            )
        self.level = None
        if variant.level_input != "none":
            split = variant.level_input == "per_modality"
            self.level = tag(
                PerModality(dims.names, split, lambda name: LevelEmbedding(dims.widths[name], LEVEL_FEATURES)),
                CONDITIONING,
            )
        plan = variant.plan()
        _check_levels(variant, dims, [stage.config for stage in plan])
        self.blocks = nn.ModuleList(stage.config.build(dims) for stage in plan for _ in range(stage.layers))
        self.reads_text = tuple(stage.text for stage in plan for _ in range(stage.layers))
        self.heads = nn.ModuleDict(
            {
                name: tag(VelocityHead(dims.widths[name], spec.channels, self.level is not None), HEADS, name)
                for name, spec in interface.modalities.items()
            }
        )

    @staticmethod
    def dims(variant: Variant, interface: Interface, size: Size) -> Dims:
        names = (*interface.modalities, *((TEXT,) if variant.text_place == "sequence" else ()))
        widths = variant.widths(size.width, names)
        heads = {name: variant.heads_for(width) for name, width in widths.items()}
        for name, width in widths.items():
            if width % (2 * heads[name]):
                raise ValueError(f"width {width} of {name} does not divide into {heads[name]} heads of an even size")
        hidden = {name: max(1, round(size.hidden * width / size.width)) for name, width in widths.items()}
        return Dims(widths, heads, hidden)

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
        text = text.emptied()
        x = {name: self.embed[name](stream.tokens) for name, stream in row.items()}
        features: dict[str, Tensor] = {}
        if self.timbre is not None and not self.timbre_in_words:
            x = self._with_mean_timbre(x, row, text)
        if self.in_sequence:
            x[TEXT] = self._words(TEXT, text)
        else:
            features = self._text_features(text, tuple(row))
        embedded, modulation = self._levels(x, row, levels)
        given = Given({**row, TEXT: text}, modulation, features, self.rule(cut), self.clock, self.backend)
        without_text = replace(given, text_visible=False)
        for block, reads_text in zip(self.blocks, self.reads_text, strict=True):
            x = block(x, given if reads_text else without_text)
        return {name: self.heads[name](x[name], embedded.get(name)) for name in row}

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
        words: Tensor = self.text[name](text)
        if self.timbre is None or not self.timbre_in_words:
            return words
        encoder: TimbreEncoder = self.timbre[name]
        return encoder.into(words, text)

    def _with_mean_timbre(self, x: Mapping[str, Tensor], row: Mapping[str, Stream], text: Stream) -> dict[str, Tensor]:
        """Every token with the mean reference of its sample added."""
        samples = len(text.tokens) if text.packing is None else len(text.packing.lengths)
        split = self.timbre.split  # type: ignore[union-attr]
        encoders = {name if split else SHARED: self.timbre[name] for name in x}  # type: ignore[index]
        means = {name: encoder.mean(text, samples) for name, encoder in encoders.items()}
        found = {}
        for name, part in x.items():
            mean, packing = means[name if split else SHARED], row[name].packing
            found[name] = part + (mean if packing is None else mean[:, 0][packing.ids])
        return found

    def _levels(
        self, x: Mapping[str, Tensor], row: Mapping[str, Stream], levels: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Level embeddings and modulation vectors per modality; equal levels through a shared embedding are one tensor."""
        if self.level is None:
            return {}, {}
        embedded: dict[str, Tensor] = {}
        modulation: dict[str, Tensor] = {}
        seen: list[tuple[Tensor, nn.Module, tuple[Tensor, Tensor]]] = []
        for name, part in x.items():
            level = levels[name] if name != TEXT else part.new_zeros(part.shape[0])
            valid = row[name].valid if name != TEXT else None
            if level.ndim == 2 and valid is not None:
                level = finite_in_padding(level, valid)
            module = self.level[name]
            made = next((made for tensor, owner, made in seen if tensor is level and owner is module), None)
            if made is None:
                made = module(level if level.ndim == 2 else level.unsqueeze(-1))
                seen.append((level, module, made))
            packing = row[name].packing if name != TEXT else None
            if packing is not None and level.ndim == 1:  # each packed token has its sample's level
                made = (made[0].squeeze(1)[packing.ids], made[1].squeeze(1)[packing.ids])
            embedded[name], modulation[name] = made
        return embedded, modulation


def _check_levels(variant: Variant, dims: Dims, blocks: Sequence[object]) -> None:
    """Refuse a variant whose blocks want noise levels in a form that it does not give."""
    if variant.level_input == "shared" and len(set(dims.widths.values())) > 1:
        raise ValueError(
            f"level_input='shared' is one embedding for all, and the widths differ ({dict(dims.widths)}): "
            "let the variant say level_input='per_modality'"
        )
    if variant.level_input == "none" and any(getattr(block, "modulation", "none") == "adaln" for block in blocks):
        raise ValueError("level_input='none' tells blocks no noise level, and a block wants one: give it modulation='none'")


def _embedder(channels: int, width: int) -> nn.Linear:
    layer = nn.Linear(channels, width)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(variant: Variant, interface: Interface, size: Size, **options: object) -> Denoiser:
    """The same denoiser without memory: shapes only."""
    with torch.device("meta"):
        return Denoiser(variant, interface, size, **options)  # type: ignore[arg-type]
