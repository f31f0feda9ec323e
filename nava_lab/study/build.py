"""From a config to the objects that train and score."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from nava_lab.attention import Mask
from nava_lab.attention.attend import known
from nava_lab.budget.solve import Solution, solve
from nava_lab.conditioning.timbre import IN_WORDS, PLACES
from nava_lab.config import Config, ConfigError, Flow
from nava_lab.evaluation.protocol import Protocol
from nava_lab.flow.agreement import check_guidance, check_use
from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.guidance.base import Scale
from nava_lab.flow.objective import Objective
from nava_lab.flow.sampling import Sampler
from nava_lab.flow.schedules import LevelSchedule
from nava_lab.models.denoiser import Denoiser
from nava_lab.registry import guidance as guidance_registry
from nava_lab.registry import masks, nearest, schedules
from nava_lab.streams import Interface
from nava_lab.worlds.base import SPLITS


@dataclass(frozen=True)
class Parts:
    """Everything a run needs besides a trainer.

    Attributes:
        solution: size and cost.
        objective: the loss.
        drawing: laws of the training draws.
        scoring: laws of the evaluation draws: no dropout; but attention cut, or captions hidden, where training always did so.
        protocol: how the model is scored.
    """

    solution: Solution
    objective: Objective
    drawing: Drawing
    scoring: Drawing
    protocol: Protocol


def parts(config: Config) -> Parts:
    """Build and check; whatever a part refuses becomes a ConfigError."""
    flow, scoring = config.flow, config.evaluation
    try:
        objective = Objective(flow.prediction, dict(flow.weights), flow.weighting, flow.clean_loss)
        drawing = _drawing(flow)
        if flow.clean_loss and not (drawing.given_rate or drawing.continuation or any(drawing.first_step.values())):
            raise ValueError("flow.clean_loss=true does nothing where no token is given: set flow.modality_given=0.2, say")
        always_cut, told = flow.modality_dropout >= 1, flow.text_dropout < 1
        if scoring.clips < 2 or scoring.loss_clips < 2 or scoring.batch_size < 1:
            raise ValueError("evaluation: needs at least 2 clips, 2 loss_clips and a batch_size of 1")
        shifts = {"shift": scoring.shift} | {f"shifts.{name}": shift for name, shift in scoring.shifts.items()}
        for name, shift in shifts.items():
            if not 0 < shift < math.inf:
                raise ValueError(f"evaluation.{name}={shift} must be positive and finite; 1 shifts nothing")
        if scoring.split not in SPLITS:
            raise ValueError(f"evaluation.split={scoring.split}: {nearest(scoring.split, list(SPLITS))}")
        known(config.attention.backend)
        _mask(config)
        if config.attention.cut not in ("all", *config.world.interface().modalities):
            names = ", ".join(("all", *config.world.interface().modalities))
            raise ValueError(f"attention.cut={config.attention.cut} is not one of {names}")
        if config.attention.cut != "all" and not flow.modality_dropout:
            raise ValueError(
                f"attention.cut={config.attention.cut} does nothing while no attention is cut: set flow.modality_dropout too"
            )
        if not config.attention.window_s >= 0:
            raise ValueError(f"attention.window_s={config.attention.window_s} must not be negative")
        sampler = _sampler(config, always_cut)
        _check_names(config, sampler.guidance)
        _check_timbre(config)
        check_guidance(sampler.guidance, drawing, interface(config).text)
        check_use(drawing, [scoring.given] if scoring.given else [])
        solution = _solved(config)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Parts(
        solution,
        objective,
        drawing,
        replace(drawing.plain(), modality_dropout=1.0 if always_cut else 0.0, text_dropout=0.0 if told else 1.0),
        Protocol(sampler, scoring.clips, scoring.loss_clips, scoring.batch_size, scoring.split, scoring.given, told),
    )


def _drawing(flow: Flow) -> Drawing:
    return Drawing(
        flow.levels,
        flow.coupling,
        flow.text_dropout,
        flow.modality_dropout,
        shifts=dict(flow.shifts),
        modality_given=flow.modality_given,
        first_step=dict(flow.first_step),
        continuation=flow.continuation,
        timbre_dropout=flow.timbre_dropout,
    )


def _sampler(config: Config, cut: bool) -> Sampler:
    scoring = config.evaluation
    parts = []
    for name, value in ((name, _floats(value)) for name, value in scoring.guidance.items()):
        if name not in guidance_registry:
            raise ValueError(f"evaluation.guidance.{name}: {nearest(name, guidance_registry.names())}")
        cls, key = guidance_registry.get(name), f"evaluation.guidance.{name}"
        fields = [part.name for part in dataclasses.fields(cls)]
        if len(fields) > 1 and not isinstance(value, dict):
            raise ValueError(f"{key}={value} has several settings, each by its name: {key}.{fields[0]}={value}, say")
        parts.append(_made(key, cls, value if len(fields) > 1 else {fields[0]: value}))
    guidance = Guidance(tuple(parts), scoring.branch_rows, config.world.encode)
    sampler = Sampler(
        scoring.solver,
        scoring.steps,
        scoring.shift,
        config.flow.prediction,
        cut,
        scoring.schedule,
        dict(scoring.shifts),
        guidance,
        {name: _schedule(f"evaluation.schedules.{name}", value) for name, value in scoring.schedules.items()},
    )
    sampler.walk(tuple(config.world.interface().modalities))  # a schedule that does not fit its steps says so before any work
    return sampler


def _schedule(key: str, value: Any) -> LevelSchedule:
    """A modality's own schedule: a name, or a mapping of its name and settings."""
    settings = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = str(settings.pop("name", ""))
    if name not in schedules:
        raise ValueError(f"{key}={value}: {nearest(name, schedules.names())} (NAME, or {{name: NAME, SETTING: VALUE}})")
    made: LevelSchedule = _made(key, schedules.get(name), _floats(settings))
    return made


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {  # by a field's annotation: what it must be
    float: ("a number", _number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("words", lambda value: isinstance(value, str)),
    list[float]: ("a list of numbers", lambda value: isinstance(value, list) and all(map(_number, value))),
    Scale: (
        "a number, or one per modality",
        lambda value: all(map(_number, value.values())) if isinstance(value, Mapping) else _number(value),
    ),
}


def _made(key: str, cls: Any, settings: Mapping[str, Any]) -> Any:
    """A registered entry from settings that no schema has checked; ValueError names the setting by its key."""
    hints = get_type_hints(cls)
    known = [part.name for part in dataclasses.fields(cls)]
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{key}: {cls.name} has no setting {name}; it has {', '.join(known) or 'none'}")
        what, fits = KINDS.get(hints[name], ("", lambda value: True))  # what is of another kind checks itself
        if not fits(value):
            raise ValueError(f"{key}: {name}={value} must be {what}")
    try:
        return cls(**settings)
    except ValueError as error:  # a schedule speaks of the one for all modalities
        raise ValueError(str(error).replace("evaluation.schedule", key, 1)) from None


def _floats(value: Any) -> Any:
    """Settings with whole numbers as floats; 3 and 3.0 mean the same scale."""
    if isinstance(value, Mapping):
        return {key: _floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_floats(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_names(config: Config, guidance: Guidance) -> None:
    """Refuse settings by modality that name one which the world does not have."""
    named: dict[str, Iterable[str]] = {
        "flow.weights": config.flow.weights,
        "flow.shifts": config.flow.shifts,
        "flow.first_step": config.flow.first_step,
        "evaluation.shifts": config.evaluation.shifts,
        "evaluation.schedules": config.evaluation.schedules,
        "evaluation.given": [config.evaluation.given] if config.evaluation.given else [],
    }
    scales = {f"evaluation.guidance.{term.name}": term.scale for term in guidance.terms}
    named |= {key: scale for key, scale in scales.items() if isinstance(scale, Mapping)}
    known = set(config.world.interface().modalities)
    for key, names in named.items():
        if unknown := sorted(set(names) - known):
            raise ValueError(
                f"{key} names {', '.join(unknown)}, which world {config.world.name} does not have; "
                f"it has {', '.join(sorted(known))}"
            )


def interface(config: Config) -> Interface:
    """What the model reads and writes: the world's modalities, and its text as the config tells it."""
    world, place = config.world.interface(), config.conditioning.timbre
    if place == "none":
        return replace(world, text=replace(world.text, timbre=0, references=0))
    return replace(world, text=replace(world.text, timbre_place=place))


def _check_timbre(config: Config) -> None:
    """Refuse settings of timbre that this world or they themselves give nothing to act on."""
    chosen, dropout = config.conditioning, config.flow.timbre_dropout
    if chosen.timbre not in PLACES:
        raise ValueError(f"conditioning.timbre={chosen.timbre} is not one of {', '.join(PLACES)}")
    asked = {
        f"conditioning.timbre={chosen.timbre}": chosen.timbre != "context",
        "conditioning.timbre_in_span=true": chosen.timbre_in_span,
        f"flow.timbre_dropout={dropout:g}": bool(dropout),
    }
    if not config.world.interface().text.timbre and any(asked.values()):
        named = next(key for key, given in asked.items() if given)
        raise ValueError(f"{named}: world {config.world.name} has no reference timbres; world=speakers has")
    if chosen.timbre_in_span and chosen.timbre not in IN_WORDS:
        raise ValueError(f"conditioning.timbre_in_span=true needs conditioning.timbre=context or added, not {chosen.timbre}")
    if chosen.timbre == "none" and dropout:
        raise ValueError(f"flow.timbre_dropout={dropout:g} drops nothing where conditioning.timbre=none shows nothing")
    if config.flow.text_dropout >= 1 and dropout:
        raise ValueError(f"flow.timbre_dropout={dropout:g} drops nothing where flow.text_dropout=1 shows no reference")


def network(config: Config, solution: Solution) -> Denoiser:
    """A freshly initialised denoiser; seed the global generator before."""
    return Denoiser(
        config.variant,
        interface(config),
        solution.size,
        backend=config.attention.backend,
        packed=config.attention.packed,
        **rules(config),
    )


def rules(config: Config) -> dict[str, Any]:
    """What a config says of who may see whom, as the denoiser takes it."""
    return {
        "window_s": config.attention.window_s,
        "cut_off": config.attention.cut,
        "mask": _mask(config),
        "timbre_in_span": config.conditioning.timbre_in_span,
    }


def _mask(config: Config) -> Mask:
    name = config.attention.mask
    if name not in masks:
        raise ValueError(f"attention.mask={name}: {nearest(name, masks.names())}")
    made: Mask = masks.get(name)()
    return made


_solutions: dict[str, Solution] = {}


def _solved(config: Config) -> Solution:
    """The size that meets the budget; found once per process for what a study trains over many seeds."""
    kind, shapes = type(config.variant), interface(config)
    key = f"{kind.__module__}.{kind.__qualname__} {config.variant!r} {shapes!r} {config.budget!r}"
    if key not in _solutions:
        _solutions[key] = solve(config.variant, shapes, config.budget)
    return _solutions[key]
