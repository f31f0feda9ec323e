"""Whether a denoiser computes what a checkpoint was trained to: its answers are read off its modules, the source's are facts.

A clock is asked what it does: by how much tokens apart turn against one another, in the source's own steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch
from timm.layers import Mlp, SwiGLU
from torch import Tensor, nn

from nava_lab.attention import Everything
from nava_lab.blocks.base import Given
from nava_lab.blocks.options import Ends, Traits
from nava_lab.checkpoints.facts import THETA, Fact, Rotary
from nava_lab.checkpoints.files import Tensors
from nava_lab.checkpoints.names import SHARED, canonical
from nava_lab.layers.rotary import Clock, clock_for
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.towers import Bridge
from nava_lab.models.variant import Variant
from nava_lab.registry import nearest
from nava_lab.streams import Stream

CLOCK = "clock"


@dataclass(frozen=True)
class Question:
    """Something that a model computes by.

    Attributes:
        name: as the facts have it.
        setting: that decides it; empty where none does.
        where: the modules that answer, by path.
        read: the answer of one; None from a module that has none.
        mends: the overrides by which a model answers so, where they are not the setting with the answer.
    """

    name: str
    setting: str
    where: str
    read: Callable[[nn.Module], Any]
    mends: Callable[[Denoiser, str, Any], str] | None = None

    def remedy(self, model: Denoiser, name: str, answer: Any, of_each: bool = False) -> str:
        """The overrides by which a model answers so; empty where none do.

        Args:
            model: that answers otherwise.
            name: the modality that was asked for.
            answer: the source's.
            of_each: whether the source says it of each modality by itself.
        """
        if self.mends is not None and not of_each:
            return self.mends(model, name, answer)
        return f"{self.setting}={_shown(answer)}" if self.setting and _is_value(self.setting, answer) else ""


def _kind(module: nn.Module) -> str | None:
    return "layer" if isinstance(module, nn.LayerNorm) else "rms" if isinstance(module, nn.RMSNorm) else None


def _affine(module: nn.Module) -> str | None:
    return None if _kind(module) is None else "plain" if module.weight is None else "affine"


def _network(module: nn.Module) -> str | None:
    if isinstance(module, SwiGLU):
        return "swiglu"
    return "gelu" if isinstance(module, Mlp) and getattr(module.act, "approximate", "") == "tanh" else None


def _modulation(module: nn.Module) -> str | None:
    if not hasattr(module, "norm1"):
        return None
    made = module.modulation
    return "none" if made is None else "own" if getattr(made, "own", False) else "adaln"


def _bridged(model: nn.Module) -> str | None:
    """Which of the layers where modalities could meet let them: "all", or their numbers; None of a model without towers."""
    layers = zip(model.blocks, model.passes, strict=True)  # type: ignore[arg-type]
    met = [block.bridge is not None for block, only in layers if hasattr(block, "bridge") and len(only or model.generated) > 1]  # type: ignore[arg-type]
    return "all" if all(met) and met else ",".join(str(at) for at, has in enumerate(met) if has) or "none" if met else None


def _text_stages(model: nn.Module) -> str:
    """Which layers read the text, of those that the stages decide over and not ``text_after``."""
    without = sum(not reads for reads in model.reads_text[model.text_after :])  # type: ignore[index,union-attr]
    return f"all but {without}" if without else "every"


def _is_value(setting: str, answer: Any) -> bool:
    """Whether a source's answer is one that a setting can have."""
    group, _, name = setting.removeprefix("variant.").rpartition(".")
    owner = {"layers": Traits, "ends": Ends, "bridge": Bridge}.get(group, Variant)
    choices = next((part.metadata.get("choices") for part in fields(owner) if part.name == name), None)
    return not choices or answer in choices


def _bridge(name: str, read: Callable[[Any], Any] | None = None) -> Question:
    """What an exchange chooses, where its kind has such a choice."""

    def answer(part: nn.Module) -> Any:
        config = getattr(part, "config", None)  # a newcomer's need have none
        return None if config is None else getattr(config, name, None) if read is None else read(config)

    return Question(f"bridge.{name}", f"variant.bridge.{name}", r"\.bridge$", answer)


def _heads(model: Denoiser, name: str, count: int) -> str:
    """Towers of several widths share ``heads``, and not all need divide into the source's: then its channels of a head."""
    widths = {each: part.linear.in_features for each, part in model.heads.items()}  # type: ignore[union-attr]
    one_width = len(set(widths.values())) == 1
    return f"variant.heads={count}" if one_width else f"variant.heads=0 variant.head_dim={widths[name] // count}"


EVERY_LAYER = "variant.bridge.placement=full variant.bridge.every=1"
LAYER = r"^blocks\.\d+\.(?:storeys\.parts\.\w+\.(?:(?:low|high)\.)?)?"
QUESTIONS = (
    Question("heads", "variant.heads", LAYER + r"attention$", lambda part: getattr(part, "heads", None), _heads),
    Question("qk_norm", "variant.layers.qk_norm", LAYER + r"attention\.projections\.parts\.\w+$", lambda part: part.q_norm.kind),
    Question(
        "query_group",
        "variant.layers.query_group",
        LAYER + r"attention\.projections\.parts\.\w+$",
        lambda part: part.counts[0] // part.counts[1],
    ),
    Question("norm", "variant.layers.norm", LAYER + r"norm[12]\.parts\.parts\.\w+$", _kind),
    Question("eps", "", r"^(blocks|heads)\..*norm", lambda part: getattr(part, "eps", None)),
    Question("text_norm", "variant.layers.text_norm", r"\.text_norm(\.parts\.parts\.\w+)?$", _affine),
    Question("text_place", "variant.text_place", r"^$", lambda part: "sequence" if part.in_sequence else "cross"),
    Question("text_after", "variant.text_after", r"^$", lambda part: part.text_after),
    Question("text_stages", "", r"^$", _text_stages, lambda model, name, answer: "variant.align_text=true"),
    Question("feed_forward", "variant.layers.feed_forward", LAYER + r"feed_forward\.parts\.parts\.\w+$", _network),
    Question("modulation", "variant.layers.modulation", r"^blocks\.\d+(\.storeys\.parts\.\w+(\.(low|high))?)?$", _modulation),
    Question("head_gates", "variant.layers.head_gates", LAYER + r"attention\.outputs\.parts\.\w+$", lambda part: part.scale),
    Question(
        "bias",
        "variant.layers.bias",
        LAYER + r"attention\.projections\.parts\.\w+$",
        lambda part: part.qkv.bias is not None,
    ),
    Question("ends.bias", "variant.ends.bias", r"^heads\.\w+$", lambda part: part.linear.bias is not None),
    Question("text_modulation", "variant.layers.text_modulation", r"^$", lambda part: part.prompt is not None),
    Question("ends.text", "variant.ends.text", r"^text\.parts\.\w+$", lambda part: getattr(part, "kind", None)),
    Question("ends.norm", "variant.ends.norm", r"^heads\.\w+\.norm$", _kind),
    Question("bridge.layers", "", r"^$", _bridged, lambda model, name, answer: EVERY_LAYER),
    Question("bridge.kind", "variant.bridge.kind", r"\.bridge$", lambda part: getattr(part, "kind", "another")),
    *(_bridge(name) for name in ("gate", "at", "directions", "inner", "normed", "rotary", "qk_norm", "head_gates")),
    _bridge("level", lambda config: config.level if getattr(config, "gate", "") == "level" else None),
    Question("bridge.norm", "variant.bridge.norm", r"\.bridge\.norms\.\w+$", _kind),
    Question("bridge.affine", "variant.bridge.affine", r"\.bridge\.norms\.\w+$", lambda part: part.weight is not None),
)
NAMES = (*(question.name for question in QUESTIONS), CLOCK)


def check_names(differ: Sequence[str]) -> None:
    """Refuse to let something differ that nobody asks about."""
    if unknown := [name for name in differ if name not in NAMES]:
        raise ValueError(f"differ names {unknown[0]}: {nearest(unknown[0], list(NAMES))}; known: {', '.join(NAMES)}")


@dataclass(frozen=True)
class Agreement:
    """What a model and a source were asked.

    Attributes:
        told: what the source itself told, config or weights.
        usual: what was taken as every release has it, for the source did not tell.
        unknown: what neither tells.
        differ: where the model computes otherwise: what, how, and the overrides that mend it.
    """

    told: tuple[str, ...]
    usual: tuple[str, ...]
    unknown: tuple[str, ...]
    differ: tuple[Difference, ...]


@dataclass(frozen=True)
class Difference:
    """Where a model computes otherwise than a source.

    Attributes:
        name: the question.
        words: both answers.
        remedy: the overrides that mend it; empty where no setting does.
    """

    name: str
    words: str
    remedy: str


def agreement(
    model: Denoiser,
    facts: tuple[Fact, ...],
    rotary: Rotary,
    modalities: tuple[str, ...],
    widths: Mapping[str, int],
    tensors: Tensors,
    prefix: str,
) -> Agreement:
    """Ask both.

    Args:
        model: on any device.
        facts: what there is to know of the source's layout.
        rotary: its clock.
        modalities: those of the model that the source knows.
        widths: the source's, by modality.
        tensors: the source.
        prefix: what stands before its keys.
    """
    if not modalities:
        return Agreement((), (), (), ())
    sides: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    differ: list[Difference] = []
    turns: dict[str, Any] = {}
    answers = _answers(model)
    for fact in facts:
        for name in (fact.modality,) if fact.modality else modalities[:1]:
            found, told = fact.answer(tensors, prefix, widths.get(name))
            label = fact.ours if not fact.modality else f"{fact.ours} of {name}"
            if found is None:
                sides[None].append(label)
                continue
            sides[told].append(f"{label} {_shown(found)}")
            if fact.ours.startswith(f"{CLOCK}."):
                turns[fact.ours] = found
                continue
            owners = (fact.modality,) if fact.modality else modalities
            ours = {answer for owner in (*owners, SHARED) for answer in answers.get((fact.ours, owner), ())}
            if other := sorted((answer for answer in ours if answer != found), key=str):
                question = next(question for question in QUESTIONS if question.name == fact.ours)
                words = f"{label} is {_shown(found)} there and {' or '.join(map(_shown, other))} here"
                differ.append(Difference(fact.ours, words, question.remedy(model, name, found, bool(fact.modality))))
    slower = turns.get("clock.theta", THETA) / THETA  # a reach is told, and units follow from it and theta
    turns |= {fact.ours: turns[fact.ours] * slower for fact in facts if fact.reach and fact.ours in turns}
    if clocks := _clocks(model, rotary, rotary.settled(turns), modalities):
        differ.append(clocks)
    if not turns:
        sides[False].append(CLOCK)
    return Agreement(tuple(sides[True]), tuple(sides[False]), tuple(sides[None]), tuple(differ))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_shown(inner)}" for key, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else f"{value:.12g}" if isinstance(value, float) else str(value)


def _answers(model: Denoiser) -> dict[tuple[str, str], set[Any]]:
    """What the modules answer, by question and by whose they are."""
    found: dict[tuple[str, str], set[Any]] = {}
    for path, module in model.named_modules():
        for question in QUESTIONS:
            if re.search(question.where, path) and (answer := question.read(module)) is not None:
                found.setdefault((question.name, canonical(f"{path}.x")[1]), set()).add(answer)
    return found


def answered(model: Denoiser, facts: tuple[Fact, ...], modalities: tuple[str, ...]) -> list[tuple[Fact, Any]]:
    """A model's answers to the questions of facts; None where it has none, or several."""
    answers, found = _answers(model), []
    for fact in facts:
        owners = (fact.modality,) if fact.modality else modalities
        ours = {answer for owner in (*owners, SHARED) for answer in answers.get((fact.ours, owner), ())}
        if fact.ours.startswith(f"{CLOCK}."):
            ours = {getattr(model.clock, fact.ours.removeprefix(f"{CLOCK}."))}
        found.append((fact, ours.pop() if len(ours) == 1 else None))
    return found


def _clocks(model: Denoiser, rotary: Rotary, clock: Clock, modalities: tuple[str, ...]) -> Difference | None:
    """The settings of the clock that turn tokens otherwise than the source's."""
    theirs = _settled(clock, model, modalities)
    named = [name for name in modalities if _turned_otherwise(model, theirs, name, name in rotary.flat)]
    if not named:
        return None
    parts = {part.name: getattr(clock, part.name) for part in fields(Clock)}
    mine = {name: getattr(model.clock, name) for name in parts}
    other = [name for name in parts if mine[name] != getattr(theirs, name)]
    who = " and ".join(named)
    if not other:
        why = f"{CLOCK}: this world's streams have no rows and columns, so all channels of a head tell time in {who}"
        return Difference(CLOCK, why, "")
    words = ", ".join(f"{name} is {_shown(parts[name])} there and {_shown(mine[name])} here" for name in other)
    return Difference(
        CLOCK, f"{CLOCK} of {who}: {words}", " ".join(f"variant.clock.{name}={_shown(parts[name])}" for name in other)
    )


def _settled(clock: Clock, model: Denoiser, modalities: tuple[str, ...]) -> Clock:
    """The source's clock in this model's world: its settings that no stream here could feel are left out."""
    specs = {name: model.specs[name] for name in modalities}
    clock = replace(
        clock,
        first_frame=clock.first_frame and any(spec.stride > 1 for spec in specs.values()),
        scale={name: factor for name, factor in clock.scale.items() if name in specs},
    )
    found = clock_for(clock, specs)
    return Clock(**{part.name: getattr(found, part.name) for part in fields(Clock)})


def _turned_otherwise(model: Denoiser, theirs: Clock, name: str, flat: bool) -> bool:
    """Whether tokens of a modality turn against its first one otherwise than under the source's clock."""
    part = next(_attentions(model, name), None)
    if part is None:
        return False
    heads, head_dim = part
    spec = model.specs[name]
    ends = [sorted({0, min(1, count - 1), count - 1}) for count in (spec.tokens // (spec.grid[0] * spec.grid[1]), *spec.grid)]
    places = list(product(*ends))
    at = torch.tensor(places, dtype=torch.float64)
    at[:, 0] = (at[:, 0] + 0.5) * spec.seconds
    stream = Stream(at.new_zeros(1, len(places), 1), at.unsqueeze(0))
    given = Given({name: stream}, {}, {}, Everything(), model.clock, specs=model.specs)
    ours = _turns(given.rotary((name,), head_dim, heads=heads))
    placed = theirs.place(stream.positions, spec, name)
    expected = _turns(theirs.table(placed, head_dim, flat and theirs.layout == "spread", heads))
    return bool(((ours - expected).abs() > 1e-2).any())


def _turns(table: tuple[Tensor, Tensor]) -> Tensor:
    """By how much each token's pairs are turned against the first token's, as complex numbers ``b n h p``."""
    turned = torch.complex(table[0][..., 1::2].double(), table[1][..., 1::2].double())
    return turned * turned[:, :1].conj()


def _attentions(model: Denoiser, name: str) -> Iterator[tuple[int, int]]:
    """Heads and their channels of the layers that a modality passes."""
    for path, module in model.named_modules():
        if re.search(LAYER + r"attention$", path) and canonical(f"{path}.x")[1] in (name, SHARED):
            yield module.heads, module.head_dim  # type: ignore[misc]
