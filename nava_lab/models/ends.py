"""What stands around a denoiser's blocks: embedders, text and timbre, noise levels, heads, at a variant's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor, nn

from nava_lab.blocks.base import CONDITIONING, EMBEDDERS, EXCHANGE, HEADS, Dims, ExchangeLevels, PerModality, idle, tag
from nava_lab.blocks.options import Ends
from nava_lab.conditioning.text import TextEncoder
from nava_lab.conditioning.timbre import IN_WORDS, TimbreEncoder
from nava_lab.layers.embedders import ConvEmbedder, PatchEmbedder
from nava_lab.layers.modulation import LevelEmbedding, ModulationTable, modulate
from nava_lab.layers.norms import norm
from nava_lab.models import levels as noise
from nava_lab.models.variant import Variant
from nava_lab.streams import TEXT, Interface


class VelocityHead(nn.Module):
    """Norm, shift and scale by noise level, and a linear map to the token's channels that starts at zero."""

    def __init__(self, width: int, channels: int, modulated: bool, ends: Ends):
        super().__init__()
        self.norm = norm(ends.norm, width, not modulated)
        self.table = ModulationTable(width, 2) if modulated else None
        self.linear = nn.Linear(width, channels, ends.bias)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b n d"], level: Tensor | None) -> Float[Tensor, "b n c"]:
        x = self.norm(x)
        if self.table is not None and level is not None:
            x = modulate(x, *self.table(level.unsqueeze(-2)))
        return self.linear(x)


@dataclass(frozen=True)
class Around:
    """Makes the parts around a variant's blocks; None where the variant, or what it generates, has no use for one.

    Attributes:
        variant: says where text and noise levels enter, and what its ends are like.
        interface: the modalities and the text.
        dims: all sizes.
        configs: of the blocks, in order.
    """

    variant: Variant
    interface: Interface
    dims: Dims
    configs: Sequence[object]

    @cached_property
    def in_sequence(self) -> bool:
        return self.variant.text_place == "sequence"

    @cached_property
    def levels_split(self) -> bool:
        return self.variant.level_input == "per_modality"

    @cached_property
    def text_widths(self) -> dict[str, int]:
        """The text's width for each of its readers: the row that it is in, or the modalities."""
        return {name: self.dims.widths[name] for name in ((TEXT,) if self.in_sequence else self.interface.modalities)}

    @cached_property
    def one_text(self) -> bool:
        """Whether one encoder serves all readers."""
        return len(set(self.text_widths.values())) == 1 and not self.levels_split

    @cached_property
    def vectors(self) -> int:
        """Modulation vectors that the projection of all layers makes."""
        return max((_shared_vectors(config) for config in self.configs), default=6)

    def embedder(self, name: str) -> nn.Module:
        spec = self.interface.modalities[name]
        made = ConvEmbedder if name in self.variant.ends.conv else PatchEmbedder
        return tag(made(spec.channels + spec.context, self.dims.widths[name]), EMBEDDERS, name)

    def encoder(self, name: str) -> TextEncoder:
        """A reader's text encoder."""
        widths = self.text_widths
        before = 0 if self.one_text else sum(list(widths.values())[: list(widths).index(name)])
        return TextEncoder(self.interface.text, widths[name], self.variant.ends.text, before)

    def text(self) -> PerModality:
        made = PerModality(tuple(self.text_widths), not self.one_text, self.encoder)
        return tag(made, CONDITIONING, TEXT if self.in_sequence else None)

    def timbre(self) -> PerModality | None:
        text, in_words = self.interface.text, self.interface.text.timbre_place in IN_WORDS
        if not text.timbre:
            return None
        widths = self.text_widths if in_words else {name: self.dims.widths[name] for name in self.interface.modalities}
        split = not self.one_text or len(set(widths.values())) > 1
        adds = text.timbre_place == "added"
        made = PerModality(tuple(widths), split, lambda name: TimbreEncoder(text.timbre, widths[name], adds))
        return tag(made, CONDITIONING, TEXT if self.in_sequence and in_words else None)

    def level_embedding(self, name: str) -> LevelEmbedding:
        return LevelEmbedding(self.dims.widths[name], self.variant.ends.level_features, self.vectors)

    def level(self) -> PerModality | None:
        if self.variant.level_input == "none":
            return None
        return tag(PerModality(self.dims.names, self.levels_split, self.level_embedding), CONDITIONING)

    def exchange(self) -> noise.Exchange | None:
        """Noise levels as the exchanges between modalities read them."""
        wanted = [levels for config in self.configs if (levels := _exchange_levels(config, self.dims.names)) is not None]
        return tag(noise.Exchange(wanted[0], self.dims.widths, self.variant.ends.level_features), EXCHANGE) if wanted else None

    def prompt(self) -> noise.Prompt | None:
        """Noise levels as the text's modulation reads them."""
        if not any(getattr(config, "text_modulation", False) for config in self.configs):
            return None
        return tag(noise.Prompt(self.text_widths, self.levels_split, self.variant.ends.level_features), CONDITIONING)

    def head(self, name: str) -> nn.Module:
        modulated = self.variant.level_input != "none"
        channels = self.interface.modalities[name].channels
        return tag(VelocityHead(self.dims.widths[name], channels, modulated, self.variant.ends), HEADS, name)

    def experts(self) -> nn.ModuleDict:
        """The ends of the experts for high noise levels, by modality."""
        made = nn.ModuleDict()
        for name in dict.fromkeys(name for config in self.configs for name in getattr(config, "experts", ())):
            text = tag(self.encoder(name), CONDITIONING, name)
            level = tag(self.level_embedding(name), CONDITIONING, name)
            parts = {"embed": self.embedder(name), "text": text, "level": level, "head": self.head(name)}
            made[name] = idle(nn.ModuleDict(parts))
        return made


def _shared_vectors(config: object) -> int:
    """Modulation vectors that a block takes from the projection of all layers."""
    if getattr(config, "modulation", "adaln") != "adaln":
        return 0
    return getattr(config, "vectors", 6)


def _exchange_levels(config: object, names: tuple[str, ...]) -> ExchangeLevels | None:
    asked = getattr(config, "exchange_levels", None)
    return None if asked is None else asked(names)
