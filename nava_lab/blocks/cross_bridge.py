"""A bridge of dedicated cross-attentions, one per direction, both from the same snapshot (LTX-2's exchange).

Only time orders its tokens: rotary angles come from seconds on all channels of a head, so a token finds what happens at
the same moment in the other modality, whatever the two rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from torch import Tensor, nn

from nava_lab.attention.projections import QK_NORMS
from nava_lab.blocks.base import Dims, Given, Hidden, choose, tag
from nava_lab.blocks.sublayers import CrossAttention
from nava_lab.registry import bridges


@bridges.register("cross")
@dataclass(frozen=True)
class Cross:
    """Cross-attention from every modality to every other, each direction with weights of its own.

    Attributes:
        qk_norm: "full", "head" or "none".
        head_gates: a sigmoid gate per head, computed from the token that asks.
        rotary: time positions in the exchange; without them it only carries what, not when.
        directions: "both", or "a->b" for one way, such as "audio->video" (audio informs video).
    """

    qk_norm: str = "full"
    head_gates: bool = False
    rotary: bool = True
    directions: str = "both"

    def __post_init__(self) -> None:
        choose(self.qk_norm, "qk_norm", QK_NORMS)
        if self.directions != "both" and len(self.directions.split("->")) != 2:
            raise ValueError(f"directions={self.directions} is neither 'both' nor of the form 'audio->video'")

    def build(self, dims: Dims) -> nn.Module:
        return CrossBridge(self, dims)


class CrossBridge(nn.Module):
    def __init__(self, config: Cross, dims: Dims):
        super().__init__()
        self.rotary = config.rotary
        self.norms = nn.ModuleDict()
        self.head_dims: dict[str, int] = {}
        self.readers = nn.ModuleDict()
        wanted = list(permutations(dims.names, 2))
        if config.directions != "both":
            source, target = config.directions.split("->")
            if (source, target) not in wanted:
                raise ValueError(f"directions={config.directions}: the towers are {', '.join(dims.names)}")
            wanted = [(source, target)]
        for source, target in wanted:
            inner = min((source, target), key=lambda name: dims.widths[name])
            reader = CrossAttention(
                dims.widths[target],
                dims.widths[source],
                dims.heads[inner],
                dims.head_dim(inner),
                config.qk_norm,
                config.head_gates,
            )
            for part, owner in (
                (reader.query, target),
                (reader.output, target),
                (reader.key, source),
                (reader.value, source),
            ):
                part.owner = owner  # type: ignore[assignment]
            self.readers[f"{source}_to_{target}"] = reader
            self.head_dims[f"{source}_to_{target}"] = dims.head_dim(inner)
        for name in dict.fromkeys(name for pair in wanted for name in pair):
            self.norms[name] = tag(nn.LayerNorm(dims.widths[name], eps=1e-6), "exchange", name)

    def forward(self, x: Hidden, given: Given) -> dict[str, Tensor]:
        """What each modality receives, zeros where nothing is sent."""
        normed = {name: self.norms[name](part) for name, part in x.items() if name in self.norms}
        received = {name: part.new_zeros(()) for name, part in x.items()}
        for name, reader in self.readers.items():
            source, target = name.split("_to_")
            if source not in normed or target not in normed:
                continue
            tables = None
            if self.rotary:
                head_dim = self.head_dims[name]
                tables = tuple(given.rotary((side,), head_dim, time_only=True) for side in (target, source))
            visible = given.visible((target,), (source,))
            received[target] = received[target] + reader(normed[target], normed[source], given, visible, tables)
        return received
