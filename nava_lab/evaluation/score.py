"""A score with its interval over clips.

The clip is the unit here: intervals say how well one trained model's score is known, not how variants compare (for that
the seed is the unit).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

RESAMPLES = 2000
CHUNK = 100


class Score(NamedTuple):
    """A value with its 95 % interval over ``n`` clips; NaN where it is not defined, for nothing was there to be counted."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        return self._asdict()

    def to_json(self) -> dict[str, float | None]:
        """The same with None, JSON's null, where a number is not defined."""
        return {key: None if value != value else value for key, value in self._asdict().items()}


UNDEFINED = Score(float("nan"), float("nan"), float("nan"), 0)
Statistic = Callable[[np.ndarray], np.ndarray]  # clip weights "r n" -> "r"


def over_clips(statistic: Statistic, n: int) -> Score:
    """A statistic of weighted clips with its percentile-bootstrap interval (scipy), always from the same resamples.

    Args:
        statistic: maps weights ``r n`` (how often each clip counts, r resamples at once) to ``r`` values.
        n: number of clips.
    """
    value = float(statistic(np.ones((1, n)))[0])
    if n < 2 or not np.isfinite(value):
        return Score(value, float("nan"), float("nan"), n)

    def of_indices(index: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = np.moveaxis(np.atleast_2d(index), axis, -1).reshape(-1, n).astype(np.int64)
        weights = np.zeros((len(rows), n))
        np.add.at(weights, (np.arange(len(rows))[:, None], rows), 1)
        return statistic(weights).reshape(np.shape(index)[:-1])

    # Resamples in which the statistic is undefined (no matched event, say) say nothing about its value and are left out.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (np.arange(n),),
            of_indices,
            n_resamples=RESAMPLES,
            batch=CHUNK,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        )
    defined = found.bootstrap_distribution[np.isfinite(found.bootstrap_distribution)]
    low, high = np.percentile(defined, (2.5, 97.5)) if len(defined) else (float("nan"), float("nan"))
    return Score(value, float(low), float(high), n)


def mean_score(values: np.ndarray) -> Score:
    """The mean over clips of one value each."""
    return ratio_score(values, np.ones_like(values, dtype=float))


def ratio_score(numerators: np.ndarray, denominators: np.ndarray, empty: float = float("nan")) -> Score:
    """Sum over sum, ``n`` being the clips in which there was something to count.

    ``empty`` where there was nothing in any: not defined, unless a metric has a reason to say otherwise. A 0 would be the
    best value of many a score, and certain.
    """

    def statistic(weights: np.ndarray) -> np.ndarray:
        below = weights @ denominators
        return np.divide(weights @ numerators, below, out=np.full(len(weights), empty), where=below != 0)

    return over_clips(statistic, len(numerators))._replace(n=int(np.count_nonzero(denominators)))


NOTHING = 1e-9  # of a share: where so little is left beyond chance, it is rounding


def beyond_chance(share: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """(share - chance) / (1 - chance): 1 perfect, 0 chance; 0 too where chance is perfect, for there is nothing to gain."""
    left = 1 - chance
    return np.divide(share - chance, left, out=np.zeros_like(left), where=left > NOTHING)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Medians of ``values`` (m) under each row of ``weights`` (r m); NaN where a row has no weight.

    The mean of the two middle values where the weight splits evenly, as numpy's median.
    """
    if values.size == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(values, kind="stable")
    values, cumulative = values[order], weights[:, order].cumsum(1)
    half = cumulative[:, -1:] / 2
    low = values[np.argmax(cumulative >= half - 1e-9, axis=1)]
    high = values[np.minimum(np.argmax(cumulative > half + 1e-9, axis=1), len(values) - 1)]
    return np.where(cumulative[:, -1] > 0, (low + high) / 2, np.nan)
