"""Does sampling ask for what training practised? What it never did is refused; what it did otherwise is told."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.levels import shifted
from nava_lab.flow.sampling import Sampler
from nava_lab.flow.schedules import UniformSchedule
from nava_lab.flow.solvers.base import Schedule
from nava_lab.streams import TextSpec

SAME = 1e-6  # levels that differ by less are one


def check_guidance(guidance: Guidance, drawing: Drawing, text: TextSpec) -> None:
    """ValueError where a term or modifier needs something that was never trained, with the reason and the remedy.

    Args:
        guidance: terms and modifiers.
        drawing: the laws of training.
        text: what the model is told.
    """
    for part in (*guidance.terms, *guidance.modifiers):
        reason = part.untrained(drawing, text)
        if reason:
            raise ValueError(f"evaluation.guidance.{part.name} is refused: {reason}")
        part.check(guidance.encode)


def check_use(drawing: Drawing, whole: Sequence[str] = (), first_step: Sequence[str] = (), beginning: bool = False) -> None:
    """ValueError where a use was never trained, with the reason and the remedy.

    Args:
        drawing: the laws of training.
        whole: modalities that are given in full.
        first_step: modalities whose first step in time is given.
        beginning: whether the beginning of every modality is given.
    """
    if whole and drawing.coupling != "independent" and not drawing.given_rate:
        raise ValueError(
            f"{', '.join(whole)} given: this model was never trained with a clean modality; train with flow.modality_given=0.2 "
            "(or flow.coupling=independent, or one_clean)"
        )
    for name in first_step:
        if not drawing.first_step.get(name, 0):
            raise ValueError(
                f"first step of {name} given: this model was never trained with one; train with flow.first_step.{name}=0.2"
            )
    if beginning and not drawing.continuation:
        raise ValueError("continuation: this model was never trained with a given beginning; train with flow.continuation=0.2")
    if not whole and drawing.given_rate >= 1:
        raise ValueError(
            "this model was trained with one modality given in every sample, so it cannot generate without; "
            "give one (evaluation.given=..., or nava sample --given), or train with flow.modality_given below 1"
        )
    if drawing.continuation >= 1 and not beginning:
        raise ValueError(
            "this model is trained with a given beginning in every sample, so it cannot generate without; "
            "train with flow.continuation below 1"
        )
    for name, rate in drawing.first_step.items():
        if rate >= 1 and name not in (*whole, *first_step) and not beginning:
            raise ValueError(
                f"this model is trained with the first step of {name} given in every sample, so it cannot generate without; "
                f"train with flow.first_step.{name} below 1"
            )


def disagreements(sampler: Sampler, drawing: Drawing, modalities: Sequence[str]) -> list[str]:
    """Where the sampler's laws of levels are others than training's, one line each.

    Args:
        sampler: solver, schedule and shifts.
        drawing: the laws of training.
        modalities: those that are generated.
    """
    lines, sampled = [], {name: sampler.shifts.get(name, sampler.shift) for name in modalities}
    centre = drawing.levels.centre
    trained = {name: drawing.shift(name) * centre for name in modalities}
    for name in modalities:
        if not math.isclose(sampled[name], trained[name], rel_tol=1e-6):
            own = "" if centre == 1 else f" ({drawing.shift(name):g} times the {centre:.3g} of its law's middle)"
            lines.append(f"{name} is sampled with shift {sampled[name]:g} and was trained with shift {trained[name]:g}{own}")
    schedules = {name: sampler.schedules.get(name, sampler.schedule) for name in modalities}
    for kind in dict.fromkeys(part.name for part in schedules.values() if not isinstance(part, UniformSchedule)):
        those = [name for name, part in schedules.items() if part.name == kind]
        of = "" if len(those) == len(schedules) else f" of {', '.join(those)}"
        lines.append(f"levels{of} are sampled by schedule {kind}, after which no law of training is made")
    if drawing.coupling != "independent" and (apart := _apart(sampler.walk(modalities), drawing, modalities)):
        lines.append(
            f"modalities are sampled at levels that do not go together in training ({apart}; flow.coupling={drawing.coupling}, "
            "flow.coupling=independent trains all)"
        )
    return lines


def _apart(rows: Schedule, drawing: Drawing, modalities: Sequence[str]) -> str:
    """Levels of a node that is walked and that training never drew together, in words; empty where all were.

    Where a sample's modalities share one level, each sees it moved by its own shift: with the shifts taken back, they are equal.
    """
    for node in zip(*(rows[name].tolist() for name in modalities), strict=True):
        shared = [shifted(level, 1 / drawing.shift(name)) for name, level in zip(modalities, node, strict=True)]
        if max(shared) - min(shared) > SAME:
            return ", ".join(f"{name} at {level:.3g}" for name, level in zip(modalities, node, strict=True))
    return ""
