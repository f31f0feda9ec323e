"""What a block is told, what it is given, and how its parameters are split between modalities.

Shape letters: b batch, n tokens, d width, v modulation vectors, h heads, e channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from nava_lab.attention import Mask, Tokens, Visible, WithoutText, attend
from nava_lab.layers.rotary import Clock, Table
from nava_lab.streams import TEXT, ModalitySpec, Stream

M = TypeVar("M", bound=nn.Module)
SHARED = "shared"
EXCHANGE = "exchange"
CONDITIONING = "conditioning"
EMBEDDERS = "embedders"
HEADS = "heads"

Hidden = Mapping[str, Tensor]  # modality -> "b n d"


@dataclass(frozen=True)
class Dims:
    """Sizes a block is built for; every mapping counts through the modalities of its sequence.

    Attributes:
        widths: model width.
        heads: attention heads; a head has ``widths // heads`` channels.
        hidden: feed-forward width.
    """

    widths: Mapping[str, int]
    heads: Mapping[str, int]
    hidden: Mapping[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.widths)

    def head_dim(self, name: str) -> int:
        return self.widths[name] // self.heads[name]

    def only(self, names: Sequence[str]) -> Dims:
        """The sizes of some of the modalities."""
        return Dims(*({name: part[name] for name in names} for part in (self.widths, self.heads, self.hidden)))

    def same(self, names: Sequence[str]) -> bool:
        """Whether these modalities could share weights."""
        return len({(self.widths[name], self.heads[name], self.hidden[name]) for name in names}) == 1

    def one_size(self, names: Sequence[str]) -> None:
        """Refuse modalities of different sizes in one row of tokens."""
        if not self.same(names):
            raise ValueError(
                f"a joint block needs one width, head count and feed-forward width for all modalities, not {dict(self.widths)} "
                f"and {dict(self.hidden)}; give the tower block different ones"
            )


@dataclass(frozen=True)
class Given:
    """What a forward pass computes once and every block reads.

    Attributes:
        streams: where the tokens of each modality are, and the text's under ``text``.
        modulation: ``b 1|n v d`` per modality; empty where the variant has no time input.
        text: text features per modality, in that modality's width; empty without cross-attention.
        mask: the rule between tokens, padding included.
        clock: seconds to angles.
        backend: the attention backend's name, or a stand-in for all of them (the memory estimate has one).
        text_visible: whether the generated modalities may see the text in these layers.
        specs: rates and codecs of the generated modalities, for the clock.
        levels: the levels' embeddings themselves, ``b 1|n d``, for layers that project them on their own.
        exchange: ``b 1|n v d``, by which a bridge modulates what is exchanged; empty where no bridge does.
        prompt: ``b 1|l 2 d``, by which the text itself is modulated; empty where it is not.
        high: the same for the experts of high noise levels; None where there are none.
        high_noise: per modality with experts, where the tokens belong to a sample of high level: ``b 1|n 1``.
    """

    streams: Mapping[str, Stream]
    modulation: Mapping[str, Tensor]
    text: Mapping[str, Tensor]
    mask: Mask
    clock: Clock
    backend: str | Callable[..., Tensor] = "auto"
    text_visible: bool = True
    specs: Mapping[str, ModalitySpec] = field(default_factory=dict)
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    exchange: Mapping[str, Tensor] = field(default_factory=dict)
    prompt: Mapping[str, Tensor] = field(default_factory=dict)
    high: Given | None = None
    high_noise: Mapping[str, Tensor] = field(default_factory=dict)
    _memo: dict = field(default_factory=dict, repr=False, compare=False)

    def visible(self, queries: tuple[str, ...], keys: tuple[str, ...]) -> Visible | None:
        """Who sees whom between two rows of modalities, or None where everyone does; computed once per forward."""
        hidden = not self.text_visible and TEXT in keys
        key = ("visible", queries, keys, hidden)
        if key not in self._memo:
            mask = self.mask & WithoutText() if hidden else self.mask
            self._memo[key] = Visible.of(mask, self._tokens(queries), self._tokens(keys), clean=True)
        return self._memo[key]

    def asked(self) -> dict[tuple[tuple[str, ...], tuple[str, ...]], Visible | None]:
        """What ``visible`` was asked so far, and answered."""
        return {key[1:3]: answer for key, answer in self._memo.items() if key[0] == "visible"}

    def _tokens(self, order: tuple[str, ...]) -> Tokens:
        key = ("tokens", order)
        if key not in self._memo:
            self._memo[key] = Tokens.of(self.streams, order, tuple(self.streams))
        return self._memo[key]

    def rotary(self, order: tuple[str, ...], head_dim: int, time_only: bool = False, heads: int = 1) -> Table:
        """Rotary tables of a row of modalities; computed once per forward.

        Args:
            order: the modalities.
            head_dim: channels of a head.
            time_only: time alone on all channels, in seconds for everyone: what an exchange between towers reads.
            heads: how many heads, for clocks that give each its own frequencies.
        """
        key = ("rotary", order, head_dim, time_only, heads if self.clock.layout == "spread" else 1)
        if key not in self._memo:
            positions = [self._placed(name, time_only) for name in order]
            batch = max(part.shape[0] for part in positions)
            joined = torch.cat([part.expand(batch, -1, -1) for part in positions], 1)
            still = self.clock.layout == "spread" and not any(
                self.specs[name].grid != (1, 1) for name in order if name in self.specs
            )
            self._memo[key] = self.clock.table(joined, head_dim, time_only or still, key[-1])
        return self._memo[key]

    def known(self) -> dict[tuple, tuple]:
        """What was computed so far, as ``recall`` takes it: masks, what their tables were asked for, and rotary tables."""
        found = {key: answer for key, answer in self._memo.items() if key[0] in ("visible", "rotary")}
        return {key: tuple(answer.made) if isinstance(answer, Visible) else () for key, answer in found.items()}

    def recall(self, asked: Mapping[tuple, tuple]) -> None:
        """Compute what another forward pass was found to ask, so that a layer only ever reads (and compiles to one graph)."""
        for key, parts in asked.items():
            if key[0] == "rotary":
                self.rotary(*key[1:])
            elif key[3] == (not self.text_visible and TEXT in key[2]) and (table := self.visible(*key[1:3])) is not None:
                table.recall(parts)

    def _placed(self, name: str, aligned: bool) -> Tensor:
        positions = self.streams[name].positions
        return self.clock.place(positions, self.specs[name], name, aligned) if name in self.specs else positions

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Visible | None) -> Tensor:
        """``b q h e``; what ``visible`` answered decides who sees whom."""
        if isinstance(self.backend, str):
            return attend(query, key, value, visible, self.backend)
        return self.backend(query, key, value, visible)


@runtime_checkable
class BlockConfig(Protocol):
    """A frozen dataclass of a block's choices that can build it.

    One whose block has a sublayer for text may offer ``without_text()``, the same choices without it, for stages that keep
    the text out; in every such stage the text is hidden by the mask, too.
    """

    def build(self, dims: Dims) -> nn.Module:
        """A module ``forward(x: Hidden, given: Given) -> dict[str, Tensor]``."""
        ...


@dataclass(frozen=True)
class ExchangeLevels:
    """Modulation by noise level that a bridge wants of the denoiser.

    Attributes:
        whose: "other" for the noise level of the modality at the other end, "own" for the tokens' own.
        scales: vectors of scales and shifts, per modality.
        gates: vectors of gates, per modality.
    """

    whose: str
    scales: tuple[tuple[str, int], ...]
    gates: tuple[tuple[str, int], ...]


class PerModality(nn.Module):
    """One module per modality, or one that all of them share.

    Args:
        names: the modalities served.
        split: whether each has its own.
        make: builds the module of one modality.
    """

    def __init__(self, names: Sequence[str], split: bool, make: Callable[[str], nn.Module]):
        super().__init__()
        self.split = split
        self.parts = nn.ModuleDict({name: make(name) for name in names} if split else {SHARED: make(names[0])})
        for name, part in self.parts.items():
            if name != SHARED:
                part.owner = name  # type: ignore[assignment]  # read by nava_lab.budget

    def __getitem__(self, name: str) -> nn.Module:
        return self.parts[name if self.split else SHARED]

    def over(self, x: Tensor, spans: Spans, call: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Apply to a packed row ``b n d``: at once where shared, else modality by modality."""
        if not self.split:
            return call(self.parts[SHARED], x)
        return torch.cat([call(self.parts[name], x[:, part]) for name, part in spans], 1)


@dataclass(frozen=True)
class Spans:
    """Where each modality lies in a packed row of tokens."""

    lengths: Mapping[str, int]

    @staticmethod
    def of(x: Hidden) -> Spans:
        return Spans({name: part.shape[1] for name, part in x.items()})

    def __iter__(self) -> Iterator[tuple[str, slice]]:
        start = 0
        for name, length in self.lengths.items():
            yield name, slice(start, start + length)
            start += length

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(self.lengths)

    def pack(self, x: Hidden) -> Tensor:
        return torch.cat([x[name] for name in self.lengths], 1) if len(self.lengths) > 1 else x[self.order[0]]

    def unpack(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.lengths, x.split(list(self.lengths.values()), 1), strict=True))


def tag(module: M, group: str, owner: str | None = None) -> M:
    """Put a module's parameters into a budget group, and say whose tokens they act on (None: all)."""
    module.budget_group = group  # type: ignore[assignment]
    if owner is not None:
        module.owner = owner  # type: ignore[assignment]
    return module


def idle(module: nn.Module) -> nn.Module:
    """Mark a module as the second of two of which a sample meets one: its parameters count, are not active, and its FLOPs are
    none that a sample needs."""
    module.idle = True  # type: ignore[assignment]
    return module


def choose(value: str, field_name: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is not one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{field_name}={value} is not one of {', '.join(allowed)}")
