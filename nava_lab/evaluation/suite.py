"""What true clips score, and what clips score at chance, on every world: the suite checks its own instrument.

At chance, a modality is another clip's (or, where only text counts, both are). On a world whose best possible loss is known,
the best network stands for true clips and the best one without the other modality for chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nava_lab.evaluation.base import WorldMetric
from nava_lab.evaluation.protocol import Protocol, batches, evaluate
from nava_lab.evaluation.score import Score
from nava_lab.flow.draws import Drawing
from nava_lab.flow.objective import Objective
from nava_lab.registry import metrics
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events, World

NEAR = 0.01  # a score this near to what it should be is right, however narrow its interval
WIDER = 1.5  # 95 % intervals this much wider hold 99.7 %: of dozens of scores none should fail by chance


@dataclass(frozen=True)
class Row:
    """One exact score of a world.

    Attributes:
        world: its name.
        given: the modality that is given clean, so that the other one is what belongs to another clip; empty for none.
        score: the score's name.
        truth: of true clips.
        chance: of clips at chance.
        expected: what the two should be.
    """

    world: str
    given: str
    score: str
    truth: Score
    chance: Score
    expected: tuple[float, float]

    @property
    def defined(self) -> bool:
        """Whether there was anything to count, in the true clips and in those at chance."""
        return not any(math.isnan(score.value) for score in (self.truth, self.chance))

    @property
    def holds(self) -> bool:
        """Whether true clips score what they should, and chance lies in its (widened) interval; what is undefined does not."""
        return all(
            WIDER * (score.low - score.value) <= value - score.value <= WIDER * (score.high - score.value)
            or abs(score.value - value) <= NEAR
            for score, value in zip((self.truth, self.chance), self.expected, strict=True)
        )


def exact_scores(world: World, clips: int = 256, batch_size: int = 64) -> Iterator[Row]:
    """A row for each exact score of the world's metrics, and for each modality that it is also tried with given."""
    chosen = [metrics.get(name) for name in world.metrics if metrics.get(name).exact]
    by_clips = any(kind.needs != "losses" for kind in chosen)
    shown = list(_pairs(world, clips, batch_size)) if by_clips else []
    for kind in chosen:
        if kind.needs == "losses":
            yield from _by_network(world, kind.name, clips)
            continue
        truth = _scored(world, kind, shown, ())
        for given in ("", *(world.given if kind.repaired == ("audio",) else ())):
            others = tuple(other for other in world.interface().modalities if other != given) if given else kind.repaired
            yield from _rows(world, given, kind, truth, _scored(world, kind, shown, others))


@dataclass(frozen=True)
class _Shown:
    """True clips, with token values and decoded events of their own and of other clips, which are not among those scored.

    Were they, re-paired clips would hold true pairs among their own re-pairings, by which chance is known.
    """

    batch: Batch
    streams: Mapping[bool, Mapping[str, Tensor]]  # by whether they are others'
    events: Mapping[bool, Mapping[str, Events]]


def _pairs(world: World, clips: int, batch_size: int) -> Iterator[_Shown]:
    for batch in batches(world, "test", clips, batch_size, "cpu"):
        both = {False: batch, True: world.batch("test", batch.index + clips)}
        streams = {other: {name: part.tokens for name, part in one.streams.items()} for other, one in both.items()}
        yield _Shown(batch, streams, {other: world.events(values) for other, values in streams.items()})


def _scored(world: World, kind: type[WorldMetric], shown: Sequence[_Shown], repaired: Sequence[str]) -> dict[str, Score]:
    """The metric on true clips in which the ``repaired`` modalities are other clips'."""
    metric = kind(world)
    for part in shown:
        if kind.needs == "samples":
            events = {name: part.events[name in repaired][name] for name in part.events[False]}
            metric.update_samples(part.batch, events)
        else:
            metric.update_clips(part.batch, {name: part.streams[name in repaired][name] for name in part.streams[False]})
    return metric.compute()


def _rows(world: World, given: str, kind: type[WorldMetric], truth: dict[str, Score], chance: dict[str, Score]) -> Iterator[Row]:
    for score, (one, nought) in kind.exact.items():
        paired = world.paired or kind.repaired != ("audio",)
        yield Row(world.name, given, score, truth[score], chance[score], (one if paired else nought, nought))


def _by_network(world: World, name: str, clips: int) -> Iterator[Row]:
    found = []
    for joint in (True, False):
        network = world.denoiser(joint)
        if network is None:
            raise ValueError(f"world {world.name} is scored by {name} and knows no best network: let it answer denoiser(joint)")
        protocol = Protocol(clips=2, loss_clips=4 * clips, batch_size=clips)
        found.append(evaluate(network, world, protocol, Objective("velocity"), Drawing().plain(), seed=0).scores)
    yield from _rows(world, "", metrics.get(name), dict(found[0]), dict(found[1]))
