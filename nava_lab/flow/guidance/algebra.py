"""Guidance as one sum: ``v = v_c + sum over terms (s - 1) (v_c - v_null)``, changed by modifiers, batched, counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nava_lab.flow.guidance.base import Call, Encode, Modifier, Moment, Part, Term, Told
from nava_lab.flow.solvers.base import Schedule
from nava_lab.streams import joined

Ask = Callable[[Call], Mapping[str, Tensor]]  # a call to velocities
OFF = "off"


@dataclass(frozen=True)
class Guidance:
    """Terms and modifiers; without a term that is on, exactly the conditional velocity at its one evaluation.

    Attributes:
        parts: terms and modifiers; those at their defaults are as good as absent.
        rows: most samples of one network call: branches of one moment share calls up to it.
        encode: captions to text, for terms that bring their own; None where the world has no words.
    """

    parts: tuple[Part, ...] = ()
    rows: int = 256
    encode: Encode | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"evaluation.branch_rows={self.rows} must be at least 1")
        idle = [part.name for part in self.parts if isinstance(part, Modifier) and part.on]
        if idle and not self.terms:
            raise ValueError(
                f"evaluation.guidance.{idle[0]} changes guidance, and no term is on: set evaluation.guidance.text=3, say"
            )

    @property
    def terms(self) -> tuple[Term, ...]:
        return tuple(part for part in self.parts if isinstance(part, Term) and part.on)

    @property
    def modifiers(self) -> tuple[Modifier, ...]:
        return tuple(part for part in self.parts if isinstance(part, Modifier) and part.on) if self.terms else ()

    def active(self, levels: Mapping[str, float]) -> dict[str, list[str]]:
        """The terms that act at these levels, each with the modalities that it guides; a clean modality needs no guiding."""
        guided = [name for name, level in levels.items() if level > 0 and all(part.acts(level) for part in self.modifiers)]
        found = {term.name: [name for name in guided if term.of(name) != 1] for term in self.terms}
        return {term: names for term, names in found.items() if names}

    def walked(self, schedule: Schedule) -> Schedule:
        """The rows that are walked: a guided modality stands from the first at its first level that no modifier holds still.

        Whole steps are left out, not velocities of single evaluations, so it holds for every solver: none sees such a step.
        """
        found = dict(schedule)
        for name, row in schedule.items():
            levels, held = row.tolist(), 0
            if all(term.of(name) == 1 for term in self.terms) or not any(levels):
                continue
            while any(part.still(levels[held]) for part in self.modifiers):
                held += 1
            if levels[held] == 0:
                still = ", ".join(part.name for part in self.modifiers if part.still(levels[held - 1]))
                raise ValueError(
                    f"evaluation.guidance.{still} leaves no step of {name}: set still_above to at least {levels[-2]:.4g}"
                )
            found[name] = torch.cat((row[held].expand(held), row[held:]))
        return found

    def branches(self, levels: Mapping[str, float]) -> int:
        """Model evaluations per sample at these levels: the conditional one and one per active term."""
        return 1 + len(self.active(levels))

    def __call__(self, ask: Ask, call: Call, moment: Moment) -> dict[str, Tensor]:
        """Guided velocities of every modality.

        Args:
            ask: the network, with its outputs turned into velocities.
            call: the conditional call.
            moment: where it stands.
        """
        active = self.active(moment.levels)
        terms = [term for term in self.terms if term.name in active]
        calls = [call, *(self._null(term, call, moment) for term in terms)]
        conditional, *nulls = self._ask(ask, calls, moment)
        velocities = dict(conditional)
        for name in velocities:
            found = [(term, null[name]) for term, null in zip(terms, nulls, strict=True) if name in active[term.name]]
            if found:
                velocities[name] = self._combined(name, conditional[name], found, moment)
        return velocities

    def _null(self, term: Term, call: Call, moment: Moment) -> Call:
        """A term's null branch, whose text and cut are made once in a sampling."""
        key = (term.name, id(call.text), id(call.cut))
        if key not in moment.told:
            null = term.null(call, self.encode)
            moment.told[key] = Told(null.text, null.cut, (call.text, call.cut))
        return Call(call.streams, call.levels, moment.told[key].text, moment.told[key].cut)

    def _combined(self, name: str, conditional: Tensor, nulls: Sequence[tuple[Term, Tensor]], moment: Moment) -> Tensor:
        guided = conditional
        for term, null in nulls:
            for part in self.modifiers:
                null = part.null(name, conditional, null, moment)
            direction = conditional - null
            for part in self.modifiers:
                direction = part.direction(term.name, name, direction, conditional, moment)
            guided = torch.add(guided, direction, alpha=term.of(name) - 1)
        for part in self.modifiers:
            guided = part.guided(name, guided, conditional, moment)
        return guided

    def _ask(self, ask: Ask, calls: Sequence[Call], moment: Moment) -> list[Mapping[str, Tensor]]:
        """Answers to calls of equal size, as many in one as ``rows`` allows."""
        if len(calls) == 1:
            return [ask(calls[0])]
        batch = len(calls[0].text.tokens)
        together = max(1, self.rows // batch)
        answers: list[Mapping[str, Tensor]] = []
        for start in range(0, len(calls), together):
            group = calls[start : start + together]
            answer = ask(group[0] if len(group) == 1 else _joined(group, moment))
            split = {name: part.split(batch) for name, part in answer.items()}
            answers += [{name: part[i] for name, part in split.items()} for i in range(len(group))]
        return answers


def _joined(calls: Sequence[Call], moment: Moment) -> Call:
    key = ("joined", *((id(call.text), id(call.cut)) for call in calls))
    if key not in moment.told:
        held = tuple((call.text, call.cut) for call in calls)
        moment.told[key] = Told(joined([call.text for call in calls]), _joined_cuts(calls), held)
    levels: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}  # levels that are one tensor stay one: the network embeds them once
    for name, level in calls[0].levels.items():
        if id(level) not in made:
            made[id(level)] = level.repeat(len(calls), *[1] * (level.ndim - 1))
        levels[name] = made[id(level)]
    return Call(
        {name: joined([call.streams[name] for call in calls]) for name in calls[0].streams},
        levels,
        moment.told[key].text,
        moment.told[key].cut,
    )


def _joined_cuts(calls: Sequence[Call]) -> Tensor | None:
    if all(call.cut is None for call in calls):
        return None
    uncut = torch.zeros(len(calls[0].text.tokens), dtype=torch.bool, device=calls[0].text.tokens.device)
    return torch.cat([uncut if call.cut is None else call.cut for call in calls])
