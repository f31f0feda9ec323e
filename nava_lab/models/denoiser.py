"""The denoiser: embed, stages of blocks, heads. The only place that assembles.

A forward pass is a pure function of parameters and arguments: streams (values, positions, validity), noise levels, text
and the samples whose modalities are cut apart. It returns a velocity for every token of every generated stream.

Shape letters: b batch, n tokens, c channels of a token, d width, v modulation vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nava_lab.attention import Cut, Mask, Padding, Window
from nava_lab.blocks.base import CONDITIONING, EMBEDDERS, HEADS, Dims, Given, PerModality, tag
from nava_lab.conditioning.text import TextEncoder
from nava_lab.layers.modulation import LevelEmbedding, ModulationTable, modulate
from nava_lab.layers.rotary import clock_for
from nava_lab.models.variant import Size, Variant
from nava_lab.streams import TEXT, Interface, Stream

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
    """

    def __init__(
        self,
        variant: Variant,
        interface: Interface,
        size: Size,
        window_s: float = float("inf"),
        backend: str = "sdpa",
    ):
        super().__init__()
        self.clock = clock_for(variant.clock, (spec.grid for spec in interface.modalities.values()))
        self.window_s = window_s
        self.backend = backend
        self.generated = tuple(interface.modalities)
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
        self.level = None
        if variant.level_input != "none":
            split = variant.level_input == "per_modality"
            self.level = tag(
                PerModality(dims.names, split, lambda name: LevelEmbedding(dims.widths[name], LEVEL_FEATURES)),
                CONDITIONING,
            )
        self.blocks = nn.ModuleList(stage.block.build(dims) for stage in variant.stages() for _ in range(stage.layers))
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
        cut: Bool[Tensor, " b"] | None = None,
    ) -> dict[str, Tensor]:
        """Velocities of the generated streams.

        Args:
            streams: noisy tokens of any non-empty subset of the generated modalities.
            levels: noise level in [0, 1] per modality, ``b`` or per token ``b n``; 0 is clean.
            text: captions as word ids or features.
            cut: samples in which attention between modalities is cut; None for none.
        """
        row = {name: streams[name] for name in self.generated if name in streams}
        if not row:
            raise ValueError(f"no stream given; this model generates {', '.join(self.generated)}")
        x = {name: self.embed[name](_only_valid(stream)) for name, stream in row.items()}
        features: dict[str, Tensor] = {}
        if self.in_sequence:
            x[TEXT] = self.text[TEXT](text)
        else:
            features = self._text_features(text, tuple(row))
        embedded, modulation = self._levels(x, levels)
        mask: Mask = Padding()
        if cut is not None:
            mask = mask & Cut(cut)
        if self.window_s != float("inf"):
            mask = mask & Window(self.window_s)
        given = Given({**row, TEXT: text}, modulation, features, mask, self.clock, self.backend)
        for block in self.blocks:
            x = block(x, given)
        return {name: self.heads[name](x[name], embedded.get(name)) for name in row}

    def _text_features(self, text: Stream, names: tuple[str, ...]) -> dict[str, Tensor]:
        if self.text.split:
            return {name: self.text[name](text) for name in names}
        shared: Tensor = self.text[names[0]](text)
        return dict.fromkeys(names, shared)

    def _levels(self, x: Mapping[str, Tensor], levels: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Level embeddings and modulation vectors per modality; equal levels through a shared embedding are one tensor."""
        if self.level is None:
            return {}, {}
        embedded: dict[str, Tensor] = {}
        modulation: dict[str, Tensor] = {}
        seen: list[tuple[Tensor, nn.Module, str]] = []
        for name, part in x.items():
            level = levels[name] if name != TEXT else part.new_zeros(part.shape[0])
            module = self.level[name]
            twin = next((other for tensor, owner, other in seen if tensor is level and owner is module), None)
            if twin is None:
                embedded[name], modulation[name] = module(level if level.ndim == 2 else level.unsqueeze(-1))
            else:
                embedded[name], modulation[name] = embedded[twin], modulation[twin]
            seen.append((level, module, name))
        return embedded, modulation


def _embedder(channels: int, width: int) -> nn.Linear:
    layer = nn.Linear(channels, width)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _only_valid(stream: Stream) -> Tensor:
    """Token values with whatever stands in padding replaced by zeros, so that not even NaN gets in."""
    return stream.tokens if stream.valid is None else stream.tokens.masked_fill(~stream.valid.unsqueeze(-1), 0.0)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(variant: Variant, interface: Interface, size: Size, **options: object) -> Denoiser:
    """The same denoiser without memory: shapes only."""
    with torch.device("meta"):
        return Denoiser(variant, interface, size, **options)  # type: ignore[arg-type]
