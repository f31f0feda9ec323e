"""What a metric answers, so that the protocol can feed any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from nava_lab.evaluation.score import Score
from nava_lab.streams import Batch
from nava_lab.worlds.base import Events, World

MOST = 512  # events per clip that a metric keeps, so that processes with different clips can be concatenated


class WorldMetric(Metric):
    """Base of all metrics: list states keyed by clip, so that pairs survive and processes add up to one.

    Subclasses name their states with ``keep`` and receive samples, clips or losses:

    - ``needs = "samples"``: ``update_samples(batch, events)`` with the events decoded from generated clips;
    - ``needs = "clips"``: ``update_clips(batch, streams)`` with the generated token values;
    - ``needs = "losses"``: ``update_losses(batch, losses, levels)`` with each clip's velocity errors.

    Call ``update(**row)`` only through these. ``compute`` returns scores by name.

    Class attributes:
        needs: see above.
        shown: the scores that lead a report's tables, most telling first; the rest follow by name.
        higher_is_better_by_score: the better direction by a score's name or what stands before its "@"; a score that it leaves
            out is best neither high nor low (a rate that should be 1).
        exact: by score, what true clips get and what clips get at chance; the suite and the contract tests hold worlds to it.
        repaired: the modalities that belong to other clips at chance; the rest, and the text, are the clip's own.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    higher_is_better_by_score: ClassVar[Mapping[str, bool]] = {}
    exact: ClassVar[Mapping[str, tuple[float, float]]] = {}
    repaired: ClassVar[tuple[str, ...]] = ("audio",)
    shown: ClassVar[tuple[str, ...]] = ()
    full_state_update = False

    def __init__(self, world: World):
        super().__init__()
        self.world = world
        self.kept: tuple[str, ...] = ()

    @classmethod
    def direction(cls, score: str) -> bool | None:
        """Whether higher is better in a score; None where the metric declares neither."""
        return cls.higher_is_better_by_score.get(score, cls.higher_is_better_by_score.get(score.split("@")[0]))

    def keep(self, *names: str) -> None:
        """Declare list states; ``index`` comes with them."""
        self.kept = ("index", *names)
        for name in self.kept:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, **rows: Tensor) -> None:
        """Append one row per clip to every state."""
        for name in self.kept:
            getattr(self, name).append(rows[name])

    def update_samples(self, batch: Batch, events: Mapping[str, Events]) -> None:
        raise TypeError(f"{type(self).__name__} takes no samples")

    def update_clips(self, batch: Batch, streams: Mapping[str, Tensor]) -> None:
        raise TypeError(f"{type(self).__name__} takes no clips")

    def update_losses(self, batch: Batch, losses: Mapping[str, Tensor], levels: Mapping[str, Tensor]) -> None:
        raise TypeError(f"{type(self).__name__} takes no losses")

    def rows(self) -> dict[str, np.ndarray]:
        """Every state as one array, in order of clip and each clip once (distributed samplers repeat some)."""
        joined: dict[str, np.ndarray] = {}
        for name in self.kept:
            value: Any = getattr(self, name)
            joined[name] = (torch.cat(value) if isinstance(value, list) else value).cpu().numpy()
        _, first = np.unique(joined["index"], return_index=True)
        return {name: value[first] for name, value in joined.items()}

    def compute(self) -> dict[str, Score]:
        raise TypeError(f"{type(self).__name__} computes nothing")

    def per_clip(self) -> dict[str, np.ndarray]:
        """One value per clip for each thing worth pairing or drawing, with ``index``; what clips have several of lies flat."""
        return {}


def truth(batch: Batch, modality: str) -> Events:
    """A clip's own events of a modality, which its world put beside it."""
    seconds, kind, amplitude, real = (batch.extra[f"{modality}_{part}"] for part in ("seconds", "kind", "amplitude", "real"))
    return Events(seconds, kind, amplitude, real)


def padded(events: Events) -> Tensor:
    """Onsets in order of time as ``b MOST``, NaN where there is none."""
    return padded_kinds(events)[0]


def padded_kinds(events: Events) -> tuple[Tensor, Tensor]:
    """The same, with each event's kind beside it (-1 where there is none)."""
    onsets = events.seconds.double().masked_fill(~events.real, float("nan"))
    if int(events.real.sum(1).max()) > MOST:
        raise ValueError(f"a clip has more than {MOST} events; raise nava_lab.evaluation.base.MOST for such a world")
    onsets, order = onsets.sort(-1)  # NaN sorts last
    kinds = events.kind.masked_fill(~events.real, -1).gather(1, order)[:, :MOST]
    room = (0, MOST - min(MOST, onsets.shape[1]))
    pad = torch.nn.functional.pad
    return pad(onsets[:, :MOST], room, value=float("nan")), pad(kinds, room, value=-1)


def unpadded(rows: np.ndarray) -> list[np.ndarray]:
    return [row[~np.isnan(row)] for row in rows]
