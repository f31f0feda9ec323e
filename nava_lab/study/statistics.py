"""What differences between variants are worth. The seed is the unit: everything here takes one number per seed.

Runs of one seed share their data order, evaluation clips and noise, so variants are compared by their differences seed by
seed. Arrays are ``... n``, n seeds last, so that a simulation can check thousands of experiments in one call
(``tests/unit/study/test_statistics.py`` does). What scipy has is taken from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

ALPHA = 0.05
SEEDS_FOR_A_VERDICT = 8
EXACT_UP_TO = 16  # seeds: 2^16 sign patterns are tried one by one; beyond, as many drawn ones
SIZES_FOR_A_LAW = 5
DECADES_FOR_A_LAW = 1.5


class Interval(NamedTuple):
    """A mean over seeds with its t-interval."""

    mean: Any
    low: Any
    high: Any


def t_interval(values: ArrayLike, confidence: float = 1 - ALPHA) -> Interval:
    """Student's interval of the mean over the last axis; NaN at both ends below two values."""
    x = np.asarray(values, dtype=float)
    n = x.shape[-1]
    mean = x.mean(-1)
    if n < 2:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * stats.sem(x, axis=-1)
    return Interval(mean, mean - half, mean + half)


def sign_flip(differences: ArrayLike) -> Any:
    """Two-sided p of a mean difference, by flipping the signs of the differences (exact up to 16 seeds).

    Under "no difference" a seed's difference is as likely to have either sign, whatever its distribution. The least p
    that n seeds can give is 2 / 2^n.
    """
    d = np.asarray(differences, dtype=float)
    n = d.shape[-1]
    if n < 2:
        return np.ones(d.shape[:-1])[()]
    # scipy enumerates all patterns where there are no more of them than resamples, and draws otherwise.
    found = stats.permutation_test(
        (d,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2 ** min(n, EXACT_UP_TO),
        batch=max(1, 2**22 // max(1, d.size)),
        axis=-1,
        rng=np.random.default_rng(0),
    )
    return found.pvalue


def least_p(seeds: int) -> float:
    """The smallest p that a sign-flip test over so many seeds can give."""
    return 2.0 / 2**seeds


def too_many(contrasts: int, seeds: int) -> str:
    """A sentence where so many contrasts over so few seeds leave none of them a chance of coming out decided; else empty."""
    least = least_p(seeds) * contrasts
    if least <= ALPHA:
        return ""
    enough = next(n for n in range(SEEDS_FOR_A_VERDICT, 64) if least_p(n) * contrasts <= ALPHA)
    return (
        f"{contrasts} contrasts over so few seeds leave none of them a chance: after Holm no p can fall below {least:.2g}. "
        f"Declare fewer, or run {enough} seeds."
    )


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests: none of them is wrong with probability ALPHA (Holm 1979, Scand. J. Stat. 6, 65)."""
    order = np.argsort(np.asarray(p, dtype=float), kind="stable")
    scaled = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted.tolist()


class Tost(NamedTuple):
    """Two one-sided t-tests against ``margin`` (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657).

    Attributes:
        lower: p of "the mean is at or below -margin"; small: no worse than that, where higher is better.
        upper: p of "the mean is at or above +margin".
        p: the larger of the two; small: equal within the margin.
    """

    lower: Any
    upper: Any
    p: Any


def tost(differences: ArrayLike, margin: float) -> Tost:
    """Whether a mean difference lies within ``margin`` on either side of 0."""
    if not margin > 0:
        raise ValueError(f"a margin of {margin} says nothing: state how much worse is still no worse, above 0")
    d = np.asarray(differences, dtype=float)
    mean, error, freedom = d.mean(-1), stats.sem(d, axis=-1), d.shape[-1] - 1
    with np.errstate(divide="ignore"):  # differences that are all the same are certain
        lower = stats.t.sf((mean + margin) / error, freedom)
        upper = stats.t.cdf((mean - margin) / error, freedom)
    return Tost(lower, upper, np.maximum(lower, upper))


@dataclass(frozen=True)
class Paired:
    """``first`` minus ``second`` over the seeds that both have.

    Attributes:
        seeds: whose differences these are.
        differences: one per seed; positive: first is higher.
        interval: their mean and 95 % t-interval.
        p: of the sign-flip test, not adjusted.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    interval: Interval
    p: float

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def enough(self) -> bool:
        """Whether there are seeds enough for a verdict."""
        return self.n >= SEEDS_FOR_A_VERDICT


def paired(first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Pair two variants' scores by seed; seeds that only one of them has are left out."""
    seeds = tuple(sorted(set(a) & set(b)))
    return _paired(first, second, seeds, np.array([a[seed] - b[seed] for seed in seeds]))


def paired_slopes(first: str, second: str, steps: Sequence[tuple[float, Mapping[int, float], Mapping[int, float]]]) -> Paired:
    """How the difference between two variants changes along a setting: per seed, the least-squares slope of first minus second.

    Args:
        steps: (value of the setting, first's scores by seed there, second's); seeds that miss one of them are left out.
    """
    seeds = tuple(sorted(set.intersection(*(set(part) for _, *both in steps for part in both))))
    x = np.array([value for value, _, _ in steps], dtype=float)
    if len(x) < 2 or np.ptp(x) == 0:
        raise ValueError(f"a slope needs two values at least, not {', '.join(f'{value:g}' for value in x)}")
    x = x - x.mean()
    table = np.array([[a[seed] - b[seed] for _, a, b in steps] for seed in seeds]).reshape(len(seeds), len(x))
    return _paired(first, second, seeds, table @ x / (x @ x))


def _paired(first: str, second: str, seeds: tuple[int, ...], differences: Array) -> Paired:
    if not len(differences):
        return Paired(first, second, (), (), Interval(float("nan"), float("nan"), float("nan")), 1.0)
    mean, low, high = t_interval(differences)
    found = Interval(float(mean), float(low), float(high))
    return Paired(first, second, seeds, tuple(differences.tolist()), found, float(sign_flip(differences)))


class Effect(NamedTuple):
    """What one setting explains by itself.

    Attributes:
        share: of the values' variance (eta squared).
        chance: the share that chance alone stays under in 95 of 100 studies, all settings of the study together.
    """

    share: float
    chance: float

    @property
    def stands_out(self) -> bool:
        return self.share > self.chance * (1 + 1e-9)


SHUFFLES = 2000


def main_effects(rows: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, Effect]:
    """Share of the values' variance that each setting explains by itself, numbers of many values in thirds.

    A setting of several levels explains some of any noise: its share is held against those of shuffled values. Settings that
    are everywhere the same are left out; empty where there are fewer than eight values, or none vary.
    """
    y = np.asarray(values, dtype=float)
    y = y - y.mean() if len(y) else y
    total = float((y**2).sum())
    if len(y) < 8 or total == 0:
        return {}
    columns = {key: _groups([row.get(key) for row in rows]) for key in dict.fromkeys(name for row in rows for name in row)}
    columns = {key: groups for key, groups in columns.items() if len(set(groups)) > 1}
    shuffled = np.random.default_rng(0).permuted(np.tile(y, (SHUFFLES, 1)), axis=1)
    found = {}
    for key, groups in columns.items():
        member = np.array([[group == name for name in dict.fromkeys(groups)] for group in groups], dtype=float)
        own, chance = (((x @ member) ** 2 / member.sum(0)).sum(-1) / total for x in (y, shuffled))
        found[key] = Effect(float(own), float(np.quantile(chance, 1 - ALPHA / len(columns))))
    return found


def _groups(column: Sequence[Any]) -> list[str]:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    if numbers and len(set(column)) > 5:
        edges = np.quantile(column, (1 / 3, 2 / 3))
        return [str(int(np.searchsorted(edges, value))) for value in column]
    return [repr(value) for value in column]


@dataclass(frozen=True)
class Tuned:
    """How a variant's settings were found.

    Attributes:
        trials: that were begun, whatever became of them: finished, pruned or failed.
        failed: those of them that broke; they count against the variant.
        space: what was searched, by key.
        at_bound: by key, the end of the space ("low" or "high") at which the choice lies.
        seeds: on which trials were scored.
        codes: of the code that made its trials and confirmations; more than one where it was changed on the way.
    """

    trials: int
    failed: int = 0
    space: Mapping[str, Any] = field(default_factory=dict)
    at_bound: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    codes: tuple[str, ...] = ()


def unequal_tuning(tuned: Mapping[str, Tuned], test_seeds: Sequence[int] = ()) -> list[str]:
    """What keeps tuned variants from being compared, one sentence each; empty if nothing does."""
    said = []
    for what, of in (("trials", lambda part: part.trials), ("space", lambda part: dict(part.space))):
        values = {name: of(part) for name, part in tuned.items()}
        if len({repr(value) for value in values.values()}) > 1:
            said.append(f"tuning differs in {what} (" + ", ".join(f"{name}: {value}" for name, value in values.items()) + ")")
    for name, part in tuned.items():
        if shared := sorted(set(part.seeds) & set(test_seeds)):
            said.append(f"{name} was tuned on test seed{'s' if len(shared) > 1 else ''} {', '.join(map(str, shared))}")
        if len(part.codes) > 1:
            said.append(f"{name} was tuned and confirmed by different code ({', '.join(part.codes)})")
    return said


def tuning_doubts(tuned: Mapping[str, Tuned]) -> list[str]:
    """What to know about a tuning that was equal: optima at an end of the space, and trials that broke."""
    said = []
    for name, part in tuned.items():
        said += [f"{name}: the best {key} lies at the {end} end of its space, so widen it" for key, end in part.at_bound.items()]
        if part.failed:
            said.append(f"{name}: {part.failed} of {part.trials} tuning trials failed")
    return said


class Law(NamedTuple):
    """L = E + a C^-b."""

    E: Any
    a: Any
    b: Any

    def __call__(self, size: ArrayLike) -> Any:
        return self.E + self.a * np.asarray(size, dtype=float) ** (-np.asarray(self.b))


B_GRID = np.geomspace(0.01, 3.0, 100)


def fit_law(sizes: ArrayLike, losses: ArrayLike, floor: float | None = None) -> Law:
    """Least squares in relative error of L = E + a C^-b with E >= 0; losses ``... n`` at sizes ``n``.

    For a given b the law is linear in E and a, so those are solved for (variable projection, Golub and Pereyra 1973) and
    b alone is searched: on a grid, then by two parabolas about its best point.

    Args:
        floor: E, where it is known (the Bayes loss of a ``gaussian`` world).
    """
    c, y = np.asarray(sizes, dtype=float), np.asarray(losses, dtype=float)
    shape, rows = y.shape[:-1], y.reshape(-1, y.shape[-1])
    unit = np.exp(np.log(c).mean())  # a is fitted at the middle size, so that no column dwarfs the other

    def solved(b: Array) -> tuple[Array, Array, Array]:
        """E, a (at ``unit``) and squared error, for b ``r k`` of every row."""
        power = (c / unit) ** -b[..., None]
        w = 1 / rows[:, None, :] ** 2
        s0, s1, s2 = w.sum(-1), (w * power).sum(-1), (w * power**2).sum(-1)
        t0, t1 = (w * rows[:, None]).sum(-1), (w * rows[:, None] * power).sum(-1)
        if floor is None:
            E = np.maximum(0.0, (s2 * t0 - s1 * t1) / np.maximum(s0 * s2 - s1**2, 1e-300))
        else:
            E = np.full(np.broadcast_shapes(s0.shape, s1.shape), float(floor))
        a = (t1 - E * s1) / s2
        error = (w * (E[..., None] + a[..., None] * power - rows[:, None]) ** 2).sum(-1)
        return E, a, error

    grid = np.log(B_GRID)
    best = solved(np.broadcast_to(B_GRID, (len(rows), len(B_GRID))))[2].argmin(-1)
    centre, step = grid[best], np.full(len(rows), grid[1] - grid[0])
    for _ in range(12):
        around = centre[:, None] + step[:, None] * np.array([-1.0, 0.0, 1.0])
        left, middle, right = solved(np.exp(around))[2].T
        curve = left - 2 * middle + right
        move = np.where(curve > 0, 0.5 * (left - right) / np.where(curve > 0, curve, 1), 0.0)
        centre, step = np.clip(centre + step * np.clip(move, -1, 1), grid[0], grid[-1]), step * 0.4
    b = np.exp(centre)
    E, a, _ = (part[:, 0] for part in solved(b[:, None]))
    return Law(*(part.reshape(shape)[()] for part in (E, a * unit**b, b)))


@dataclass(frozen=True)
class Scaling:
    """A scaling law fitted to all sizes but the largest, and how well it foretells that one.

    Attributes:
        law: fitted to the means over seeds.
        exponent: b over seeds, each fitted by itself.
        held_out: the largest size.
        observed: mean loss there.
        predicted: by the law of the smaller sizes.
        error: relative prediction error over seeds, (predicted - observed) / observed.
        weak: why the fit is not to be relied on, one sentence each; empty if it is.
        points: (size, mean loss), held-out ones included.
        first_held_out: the smallest size that took no part in the fit.
        known: E, where it is known and so no part of the fit.
        fitted: E as the fit alone would have it.
    """

    law: Law
    exponent: Interval
    held_out: float
    observed: float
    predicted: float
    error: Interval
    weak: tuple[str, ...]
    points: tuple[tuple[float, float], ...]
    first_held_out: float
    known: float | None = None
    fitted: float = float("nan")


def scaling(losses: Mapping[float, Mapping[int, float]], floor: float | None = None, held_out: int = 1) -> Scaling:
    """Fit size -> seed -> loss, over the seeds that every size has; the ``held_out`` largest sizes take no part in the fit.

    Args:
        floor: E, where it is known.
    """
    sizes = sorted(losses)
    if len(sizes) < 3 + held_out:
        raise ValueError(
            f"a scaling law has three unknowns and {held_out} of its sizes is held out: it needs {3 + held_out} sizes, "
            f"not {len(sizes)}"
        )
    seeds = sorted(set.intersection(*(set(part) for part in losses.values())))
    if not seeds:
        raise ValueError("no seed was run at every size: there is nothing to fit")
    table = np.array([[losses[size][seed] for size in sizes] for seed in seeds])
    law = fit_law(sizes[:-held_out], table[:, :-held_out].mean(0), floor)
    free = law if floor is None else fit_law(sizes[:-held_out], table[:, :-held_out].mean(0))
    each = fit_law(sizes[:-held_out], table[:, :-held_out], floor)
    foretold = each.E + each.a * sizes[-1] ** (-each.b)
    weak = []
    decades = float(np.log10(sizes[-1] / sizes[0]))
    if len(sizes) < SIZES_FOR_A_LAW:
        weak.append(f"{len(sizes)} sizes, and a scaling law wants {SIZES_FOR_A_LAW}")
    if decades < DECADES_FOR_A_LAW - 1e-9:
        weak.append(f"sizes span {decades:.2f} decades, and a scaling law wants {DECADES_FOR_A_LAW}")
    if len(seeds) < SEEDS_FOR_A_VERDICT:
        weak.append(f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}, and a verdict needs {SEEDS_FOR_A_VERDICT}")
    means = table.mean(0)
    if floor is not None and means.min() < floor:
        weak.append(f"a loss of {means.min():.4g} lies below the least possible one, {floor:.4g}")
    if any(larger > smaller for smaller, larger in pairwise(means)):
        weak.append("the loss does not fall with every size")
    return Scaling(
        law,
        t_interval(each.b),
        sizes[-1],
        float(means[-1]),
        float(law(sizes[-1])),
        t_interval((foretold - table[:, -1]) / table[:, -1]),
        tuple(weak),
        tuple(zip(sizes, means.tolist(), strict=True)),
        sizes[-held_out],
        floor,
        float(free.E),
    )


def scale_dependent(first: Scaling, second: Scaling) -> bool:
    """Whether two laws' exponents cannot be told apart (their intervals overlap), so that the order may change with size."""
    return not (first.exponent.low > second.exponent.high or second.exponent.low > first.exponent.high)
