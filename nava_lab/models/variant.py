"""The sentence in which a variant describes itself: stages of blocks, and what surrounds them.

A variant is a frozen dataclass in ``variants/`` that answers with its stages. It has no forward pass and is never named
outside its own file: the denoiser, the budget solver and the command line read only what stands here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from nava_lab.blocks.base import BlockConfig, Dims, choose
from nava_lab.blocks.options import Ends, Traits
from nava_lab.layers.rotary import Clock
from nava_lab.streams import TEXT, Interface

TEXT_PLACES = ("cross", "sequence")
LEVEL_INPUTS = ("shared", "per_modality", "none")


@dataclass(frozen=True)
class Stage:
    """``layers`` equal blocks in a row.

    Attributes:
        block: what each layer is.
        layers: how many.
        label: what the stage is for.
        text: whether its layers read the text. Where they do not, the text is hidden from the generated modalities, be it
            outside the sequence or in it, and a block that can do without its text sublayer is built without.
        only: the modalities that pass through these layers, the others pass by; empty for all.
        counted_by: the variant's setting that says how many layers of the kind there are; 0 of any but ``depth`` makes none.
    """

    block: BlockConfig
    layers: int
    label: str = ""
    text: bool = True
    only: tuple[str, ...] = ()
    counted_by: str = "depth"

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise ValueError(f"a stage cannot have {self.layers} layers")

    @property
    def config(self) -> BlockConfig:
        """The block as it is built."""
        return self.block if self.text else _without_text(self.block)


def _without_text(block: BlockConfig) -> BlockConfig:
    without_text = getattr(block, "without_text", None)
    return block if without_text is None else without_text()


@dataclass(frozen=True)
class Size:
    """What a budget decides.

    Attributes:
        width: the model width, of the widest modality where they differ.
        hidden: its feed-forward width.
    """

    width: int
    hidden: int


@dataclass(frozen=True)
class Published:
    """A size at which a system was released.

    Attributes:
        interface: the latents and text features that it reads and writes.
        size: width and feed-forward width; those of each modality follow from the variant's settings, as at any budget.
        fields: settings of the variant by key, "depth" or "clock.index".
        source: where these facts come from, and how sure they are.
    """

    interface: Interface
    size: Size
    fields: Mapping[str, Any]
    source: str = ""

    def dims(self, variant: Variant) -> Dims:
        """All sizes, by the settings of the variant, whoever changed some."""
        return variant.dims(self.interface, self.size)


@dataclass(frozen=True)
class Variant:
    """What every variant has; subclasses add their own fields and answer ``stages``.

    Attributes:
        depth: layers in all.
        heads: attention heads; 0 chooses the count, of whole groups of queries, that makes a head nearest to 32 channels (64 from
            width 512, 128 from 2048).
        head_dim: channels of a head that the count is chosen to come nearest to, in each modality by its width (MOVA's towers
            have 40 and 12 heads of 128); 0 leaves that to the width.
        text_after: layers that come before the text does: they do not read it, whatever the stages say.
        ratio: the feed-forward ratio that the budget solver aims for before it fits the rest.
        clock: seconds to rotary angles.
        text_place: text is read from outside by cross-attention ("cross"), or its tokens join the row ("sequence").
        level_input: one noise-level embedding for all ("shared"), one "per_modality", or "none".
        width_share: width of a modality, per width of the model (LTX-2: audio 0.5); 1 where not named.
        ratio_share: feed-forward ratio of a modality's tower, per the model's (MOVA: 5.83 of audio by 2.7 of video); 1 where not
            named.
        layers: what any layer may choose about its sublayers; a stage may choose otherwise.
        ends: what stands before and after the layers.
    """

    depth: int = 6
    heads: int = 0
    head_dim: int = 0
    text_after: int = 0
    ratio: float = 3.0
    clock: Clock = field(default_factory=Clock)
    text_place: str = field(default="cross", metadata={"choices": TEXT_PLACES})
    level_input: str = field(default="shared", metadata={"choices": LEVEL_INPUTS})
    width_share: dict[str, float] = field(default_factory=dict)
    ratio_share: dict[str, float] = field(default_factory=dict)
    layers: Traits = field(default_factory=Traits)
    ends: Ends = field(default_factory=Ends)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}: a variant needs at least one layer")
        if self.heads % self.layers.query_group:
            raise ValueError(
                f"variant.heads={self.heads} does not divide into groups of layers.query_group={self.layers.query_group} "
                "that share a key and value head"
            )
        if self.heads < 0 or not self.ratio > 0:
            raise ValueError(f"heads={self.heads} must not be negative and ratio={self.ratio} must be positive")
        if self.head_dim < 0 or (self.head_dim and self.heads):
            raise ValueError(
                f"variant.head_dim={self.head_dim} is how many channels heads should have where variant.heads=0 leaves their "
                f"number open, and variant.heads={self.heads}: give one of the two, and 0 for the other"
            )
        if not 0 <= self.text_after < self.depth:
            most = self.depth - 1
            raise ValueError(f"variant.text_after={self.text_after}: of {self.depth} layers, 0 to {most} can go without text")
        choose(self.text_place, "text_place", TEXT_PLACES)
        choose(self.level_input, "level_input", LEVEL_INPUTS)
        for name, share in self.width_share.items():
            if not 0 < share <= 1:
                raise ValueError(f"variant.width_share.{name}={share} must lie above 0 and reach 1 at most")
        for name, share in self.ratio_share.items():
            if not share > 0:
                raise ValueError(f"variant.ratio_share.{name}={share} must be positive")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in Variant.__annotations__:
            if name in cls.__dict__ and name not in inspect.get_annotations(cls):
                kind = Variant.__annotations__[name]
                raise TypeError(
                    f"{cls.__name__}.{name} is a setting of every variant: give its type with it, `{name}: {kind} = ...`"
                )

    @classmethod
    def published(cls) -> Mapping[str, Published]:
        """Sizes at which it was released, by name, the first one first; empty for what was never released."""
        return {}

    def stages(self) -> Sequence[Stage]:
        raise TypeError(f"{type(self).__name__} does not say its stages")

    def plan(self) -> list[Stage]:
        """The stages as they are built: no text in the first ``text_after`` layers, no sublayer for text in the sequence."""
        plan: list[Stage] = []
        left = self.text_after
        stages = list(self.stages())
        self._all_layers_read(stages)
        for stage in stages:
            if self.text_place == "sequence":
                stage = replace(stage, block=_without_text(stage.block))
            before = min(left, stage.layers)
            left -= before
            parts = (replace(stage, layers=before, text=False), replace(stage, layers=stage.layers - before))
            plan += [part for part in parts if part.layers]
        return plan

    def _all_layers_read(self, stages: Sequence[Stage]) -> None:
        """Refuse a choice of ``layers`` that comes to no stage."""
        usual = self.usual("layers")
        for part in fields(Traits):
            chosen, plain = getattr(self.layers, part.name), getattr(usual, part.name)
            if chosen == plain:
                continue
            try:
                without = replace(self, layers=replace(self.layers, **{part.name: plain})).stages()
            except ValueError:  # the others need it
                continue
            if list(without) == list(stages):
                raise ValueError(
                    f"variant.layers.{part.name}={chosen} changes nothing in {type(self).__name__}: "
                    "no stage passes it on to its blocks"
                )

    def unread(self, names: Sequence[str], why: str) -> None:
        """Refuse settings of one's own that nothing reads at these values."""
        known = {part.name for part in fields(self)}
        for name in known.intersection(names):
            value, usual = getattr(self, name), self.usual(name)
            if (tuple(value) if isinstance(usual, tuple) else value) != usual:  # a config says its tuples as lists
                raise ValueError(f"variant.{name}={value} changes nothing: {why}")

    @classmethod
    def usual(cls, name: str) -> Any:
        """What a setting is where nobody says."""
        own = next(part for part in fields(cls) if part.name == name)
        return own.default if own.default_factory is MISSING else own.default_factory()

    def widths(self, width: int, modalities: Sequence[str]) -> Mapping[str, int]:
        """Each modality's model width: a share of the model's, in multiples of 8."""
        shares = {name: self.width_share.get(name, 1.0) for name in modalities}
        return {name: width if share == 1 else max(8, 8 * round(width * share / 8)) for name, share in shares.items()}

    def dims(self, interface: Interface, size: Size) -> Dims:
        """Widths, heads and feed-forward widths of every modality of the row.

        Args:
            interface: says which modalities there are.
            size: of the model.

        Raises:
            ValueError: a width that does not divide into its heads.
        """
        names = (*interface.modalities, *((TEXT,) if self.text_place == "sequence" else ()))
        widths = self.widths(size.width, names)
        heads = {name: self.heads_for(width) for name, width in widths.items()}
        for name, width in widths.items():
            if width % (2 * heads[name]):
                raise ValueError(f"width {width} of {name} does not divide into {heads[name]} heads of an even size")
        shares = {name: width / size.width * self.ratio_share.get(name, 1.0) for name, width in widths.items()}
        hidden = {name: max(1, round(size.hidden * share)) for name, share in shares.items()}
        return Dims(widths, heads, hidden)

    def heads_for(self, width: int) -> int:
        """The number of heads at a width, always with an even number of channels each."""
        if self.heads:
            return self.heads
        if width % 2:
            raise ValueError(f"a model width must be even, not {width}")
        target = self.head_dim or (32 if width < 512 else 64 if width < 2048 else 128)
        group = self.layers.query_group
        counts = [count for count in range(group, width // 2 + 1, group) if width % (2 * count) == 0]
        if not counts:
            raise ValueError(
                f"a model width of {width} has no heads in groups of layers.query_group={group}: "
                f"it must be a multiple of {2 * group}"
            )
        return min(counts, key=lambda count: (abs(width / count - target), count))


def with_settings(thing: Any, settings: Mapping[str, Any]) -> Any:
    """A dataclass with other settings, by key: ``{"depth": 30, "clock.index": True}``. An unknown key is an error."""
    plain = {key: value for key, value in settings.items() if "." not in key}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if "." in key:
            outer, rest = key.split(".", 1)
            inner.setdefault(outer, {})[rest] = value
    return replace(thing, **plain, **{outer: with_settings(getattr(thing, outer), rest) for outer, rest in inner.items()})


def released(kind: type[Variant], name: str = "", **changes: Any) -> tuple[Variant, Published]:
    """A system at a size at which it was released (the first one where none is named), with changes of one's own."""
    sizes = kind.published()
    if not sizes or (name and name not in sizes):
        known = f"it was released as {', '.join(sizes)}" if sizes else "it was never released"
        raise ValueError(f"{getattr(kind, 'name', kind.__name__)} has no published size{f' {name}' if name else ''}: {known}")
    found = sizes[name or next(iter(sizes))]
    return with_settings(kind(), {**found.fields, **changes}), found


def legal_width_step(width: int) -> int:
    """Widths come in multiples of this, so that every size divides into heads (and matrix tiles, where that matters)."""
    return 8 if width < 256 else 32 if width < 512 else 64 if width < 2048 else 128
