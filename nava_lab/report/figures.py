"""A comparison's figures. Every label has its own colour and marker; labels that are levels of one number take a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from nava_lab.report.axes import Axis, numeric_axes
from nava_lab.report.compare import Comparison, OverSeeds
from nava_lab.report.plotting import FAINT, INK, MARKERS, OKABE_ITO, WIDE, Figure, draw, legend, plain_decades, plain_ticks
from nava_lab.report.runs import by_label
from nava_lab.study.grammar import spoken

DODGE = 0.012  # of an axis, between lines whose marks would hide each other
BINS_MS = np.arange(-250, 251, 10)


@dataclass(frozen=True)
class Look:
    """How a label is drawn."""

    colour: str
    marker: str


def looks(comparison: Comparison) -> dict[str, Look]:
    """A look per label, by the order of names, so that it does not change with the ranking."""
    names = sorted(comparison.labels)
    if len(names) <= len(OKABE_ITO):
        return {name: Look(OKABE_ITO[i], MARKERS[i]) for i, name in enumerate(names)}
    shades = matplotlib.colormaps.get_cmap("viridis")(np.linspace(0.05, 0.85, len(names)))
    order = _in_order(names, comparison)
    return {name: Look(matplotlib.colors.to_hex(shades[i]), MARKERS[i % len(MARKERS)]) for i, name in enumerate(order)}


def _in_order(names: Sequence[str], comparison: Comparison) -> list[str]:
    """Names by the first number that tells them apart, then by name."""
    axes = numeric_axes(comparison)
    if not axes:
        return list(names)
    return sorted(names, key=lambda name: (axes[0].places.get(name, float("inf")), name))


def figures(comparison: Comparison) -> list[Figure]:
    """Every figure that the comparison has the numbers for."""
    made = [_scores(comparison)]
    made += [_against(comparison, axis) for axis in numeric_axes(comparison)]
    made += [_laws(comparison), _curves(comparison), _offsets(comparison), _importance(comparison)]
    return [figure for figure in made if figure is not None]


def label_of(score: str) -> str:
    return score.replace("_ms", " (ms)")


def _ends(row: OverSeeds, score: str) -> tuple[float, float, float]:
    """Mean and interval: over seeds, or over clips where there is one seed."""
    mean, low, high = row.interval
    if row.seeds == 1:
        found = next(iter(row.runs.values())).score(score) or {}
        ends = [found.get(side) for side in ("low", "high")]
        low, high = (mean if end is None else end for end in ends)
    return mean, low, high


def _named(row: OverSeeds, comparison: Comparison) -> str:
    """A row's label, with its budget where there are several."""
    return f"{row.label} [{row.family}]" if row.family and len(comparison.families) > 1 else row.label


def _interval_note(rows: Sequence[OverSeeds]) -> str:
    if max(row.seeds for row in rows) == 1:
        return "Bars are 95 % intervals over clips of one trained model."
    return "Marks are means over seeds, bars their 95 % t-intervals."


def _scores(comparison: Comparison) -> Figure | None:
    rows, score = comparison.over_seeds(), comparison.headline
    if not rows:
        return None
    style = looks(comparison)
    names = [_named(row, comparison) for row in rows]

    def paint(figure: Any) -> None:
        axis = figure.add_subplot()
        for place, row in enumerate(reversed(rows)):
            look, (mean, low, high) = style[row.label], _ends(row, score)
            values = [run.value(score) for run in row.runs.values() if run.value(score) is not None]
            if len(values) > 1:
                axis.plot(values, np.full(len(values), place), "o", color=look.colour, ms=3.5, alpha=0.45, mew=0)
            axis.plot([low, high], [place, place], color=look.colour, lw=3.5, alpha=0.45)
            axis.plot(mean, place, look.marker, color=look.colour, ms=7.5)
        axis.set(yticks=range(len(rows)), yticklabels=names[::-1], ylim=(-0.6, len(rows) - 0.4), xlabel=label_of(score))
        axis.grid(axis="y", visible=False)
        _bounded(axis.set_xlim, axis.get_xlim(), axis.axvline, comparison)

    height = 0.75 + 0.42 * len(rows)
    note = _interval_note(rows) + (" Small dots are single seeds." if max(row.seeds for row in rows) > 1 else "")
    alt = f"{score}: " + "; ".join(
        f"{name} {_ends(row, score)[0]:.3f}, interval {_ends(row, score)[1]:.3f} to {_ends(row, score)[2]:.3f}"
        for name, row in zip(names, rows, strict=True)
    )
    return draw("scores", f"{score} with its uncertainty", alt, note, (6.4, height), paint)


def _bounded(set_limits: Any, now: tuple[float, float], line: Any, comparison: Comparison) -> None:
    """Chance and perfection in sight, for a headline that has them and comes near chance."""
    if comparison.from_chance(comparison.headline) and now[0] < 0.4:
        set_limits(min(-0.05, now[0]), max(1.0, now[1]))
        line(0, color=INK, lw=0.8, ls=(0, (1, 2)))


def _against(comparison: Comparison, axis_of: Axis) -> Figure | None:
    """The headline against a number; against cost, with the front that nothing beats in both."""
    rows, score = [row for row in comparison.over_seeds() if row.label in axis_of.places], comparison.headline
    if len({axis_of.at(row) for row in rows}) < 2:
        return None
    style = looks(comparison)
    front = _front(rows, axis_of, comparison.higher_is_better) if axis_of.cost else []
    budgets = [family.name for family in comparison.families]
    full = budgets[:1]

    def paint(figure: Any) -> None:
        axis = figure.add_subplot()
        series: dict[str, list[OverSeeds]] = {}
        for row in rows:
            series.setdefault(axis_of.series(row), []).append(row)
        for number, (name, parts) in enumerate(series.items()):
            parts.sort(key=axis_of.at)
            colour = OKABE_ITO[number % len(OKABE_ITO)] if not axis_of.cost else FAINT
            x, ends = [axis_of.at(row) for row in parts], np.array([_ends(row, score) for row in parts])
            if axis_of.cost:
                for row, place, (mean, low, high) in zip(parts, x, ends, strict=True):
                    look = style[row.label]
                    axis.plot([place, place], [low, high], color=look.colour, lw=3, alpha=0.4)
                    face = look.colour if row.family in full else "none"
                    axis.plot(place, mean, look.marker, color=look.colour, mfc=face, mew=1.6, ms=7.5, label=row.label)
            else:
                marker = MARKERS[number % len(MARKERS)]
                aside = (number - (len(series) - 1) / 2) * DODGE * (max(axis_of.places.values()) - min(axis_of.places.values()))
                axis.errorbar(
                    [place + aside for place in x], ends[:, 0], (ends[:, 0] - ends[:, 1], ends[:, 2] - ends[:, 0]),
                    color=colour, marker=marker, ms=6.5, lw=1.8, elinewidth=3, ecolor=(*matplotlib.colors.to_rgb(colour), 0.4),
                    label=name,
                )  # fmt: skip
        if len(front) > 1:
            axis.step(
                [axis_of.at(row) for row in front], [row.mean for row in front],
                where="post", color=INK, lw=1, ls="--", zorder=1, label="not beaten in both",
            )  # fmt: skip
        axis.set(xlabel=axis_of.title, ylabel=label_of(score))
        if axis_of.cost:
            axis.set_xscale("log")
            plain_ticks(axis)
        _bounded(axis.set_ylim, axis.get_ylim(), axis.axhline, comparison)
        if len(axis.get_legend_handles_labels()[0]) > 1:
            legend(axis)

    alt = f"{score} against {axis_of.title}: " + "; ".join(
        f"{axis_of.at(row):g} {row.mean:.3f} ({_named(row, comparison)})" for row in rows
    )
    note = _interval_note(rows)
    if axis_of.cost:
        names = ", ".join(_named(row, comparison) for row in front)
        if len(budgets) > 1:
            note += f" Full marks: at equal {spoken(full[0])}; hollow ones: at equal {' and '.join(map(spoken, budgets[1:]))}."
        note += (
            f" The dashed line joins what nothing beats in both: {names}."
            if len(front) > 1
            else f" Nothing beats {names} in both."
        )
    return draw(f"against_{axis_of.name}", f"{score} against {axis_of.title}", alt, note, WIDE, paint)


def _front(rows: Sequence[OverSeeds], axis: Axis, higher_is_better: bool) -> list[OverSeeds]:
    """The Pareto front, by rising cost."""
    found: list[OverSeeds] = []
    sign = 1 if higher_is_better else -1
    for row in sorted(rows, key=lambda row: (axis.at(row), -sign * row.mean)):
        if not found or sign * row.mean > sign * found[-1].mean:
            found.append(row)
    return found


def _curves(comparison: Comparison) -> Figure | None:
    """Validation loss against clips seen: mean over seeds, band from the lowest to the highest."""
    style, series = looks(comparison), {}
    for family in comparison.families:
        for label, group in by_label(family.runs).items():
            curves = [_curve(run.log, run.config["training"]["batch_size"]) for run in group.values()]
            curves = [curve for curve in curves if curve]
            places = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
            if places:
                series[family.name, label] = (places, np.array([[curve[place] for place in places] for curve in curves]))
    if not series:
        return None
    seeds = max(len(values) for _, values in series.values())

    def paint(figure: Any) -> None:
        axis = figure.add_subplot()
        lines = {family.name: ls for family, ls in zip(comparison.families, ("-", "--", ":", "-.") * 4, strict=False)}
        for (family, label), (places, values) in series.items():
            colour = style[label].colour
            if len(values) > 1:
                axis.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.16, lw=0)
            axis.plot(places, values.mean(0), color=colour, ls=lines[family], lw=1.8, label=label)
        axis.set(xlabel="clips seen", ylabel="validation loss", yscale="log")
        plain_decades(axis.yaxis)
        if len(comparison.labels) <= 12:
            legend(axis)

    several = len(comparison.families) > 1
    last = "; ".join(
        f"{label}{f' [{budget}]' if several else ''} {values.mean(0)[-1]:.4g}" for (budget, label), (_, values) in series.items()
    )
    note = "Velocity error of the averaged weights on validation clips."
    note += " Lines are means over seeds, bands reach from the lowest seed to the highest." if seeds > 1 else ""
    if len(comparison.families) > 1:
        kinds = zip(("Solid", "dashed", "dotted", "dash-dotted"), comparison.families, strict=False)
        note += " " + ", ".join(f"{kind}: equal {spoken(family.name)}" for kind, family in kinds) + "."
    return draw("curves", "Learning curves", f"Validation loss at the end: {last}", note, WIDE, paint)


def _curve(log: Sequence[Mapping[str, float]], batch: int) -> dict[float, float]:
    return {line["step"] * batch: line["validation/loss"] for line in log if "validation/loss" in line}


def _offsets(comparison: Comparison) -> Figure | None:
    """How far sound lies from picture, over the matched events of all seeds."""
    found: dict[str, list[Any]] = {}
    for run in comparison.runs:
        found.setdefault(run.label, []).append(np.asarray(run.per_clip().get("sync.lag_ms", ()), dtype=float))
    lags = {label: np.concatenate(parts) for label, parts in found.items()}
    lags = {label: part for label, part in lags.items() if len(part)}
    if not lags or len(lags) > 12:
        return None
    style = looks(comparison)

    def paint(figure: Any) -> None:
        axis = figure.add_subplot()
        for label, part in lags.items():
            shares = np.histogram(part, BINS_MS)[0] / len(part) * 100
            axis.stairs(shares, BINS_MS, color=style[label].colour, lw=1.8, label=label)
            axis.stairs(shares, BINS_MS, color=style[label].colour, alpha=0.08, fill=True)
        axis.axvline(0, color=INK, lw=0.8, ls=(0, (1, 2)))
        axis.set(xlabel="sound after picture (ms)", ylabel="% of matched events", xlim=(BINS_MS[0], BINS_MS[-1]))
        legend(axis)

    alt = "Median offset: " + "; ".join(f"{label} {np.median(part):.0f} ms" for label, part in lags.items())
    note = "Matched onsets of sound and picture, 10 ms bins; the further from 0, the worse. Unmatched events are not in it."
    note += " Runs of all budgets together." if len(comparison.families) > 1 else ""
    return draw("offsets", "Offsets between sound and picture", alt, note, WIDE, paint)


def _laws(comparison: Comparison) -> Figure | None:
    """Scaling laws: fitted sizes full, the held-out one hollow."""
    if not comparison.laws:
        return None
    size, loss = comparison.law_axes

    def paint(figure: Any) -> None:
        axis = figure.add_subplot()
        for number, (name, law) in enumerate(comparison.laws.items()):
            colour, marker = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]
            sizes, means = zip(*law.points, strict=True)
            grid = np.geomspace(min(sizes), max(sizes), 100)
            axis.plot(grid, law.law(grid), color=colour, lw=1.5, label=name)
            if law.known is not None:
                axis.axhline(law.known, color=INK, lw=0.8, ls=(0, (1, 2)))
            fitted = [place < law.first_held_out for place in sizes]
            axis.plot(np.array(sizes)[fitted], np.array(means)[fitted], marker, color=colour, ms=6.5)
            rest = [not part for part in fitted]
            axis.plot(np.array(sizes)[rest], np.array(means)[rest], marker, color=colour, ms=7.5, mfc="none", mew=1.8)
        axis.set(xlabel=size, ylabel=loss, xscale="log", yscale="log")
        plain_ticks(axis)
        legend(axis)

    alt = "; ".join(f"{name}: exponent {law.exponent.mean:.3f}" for name, law in comparison.laws.items())
    note = "Lines are laws L = E + a C^−b of the sizes with full marks; hollow marks took no part in the fit."
    if any(law.known is not None for law in comparison.laws.values()):
        note += " Dotted: the least possible loss, which is known here and taken for E."
    return draw("scaling", "Scaling, with the largest size held out", alt, note, WIDE, paint)


def _importance(comparison: Comparison) -> Figure | None:
    """Share of the tuning trials' variance that each setting explains by itself, beside what chance explains."""
    effects = comparison.extra.get("importance", {})
    if not effects:
        return None
    names = sorted(effects, key=lambda name: effects[name].share)
    telling = [name for name in reversed(names) if effects[name].stands_out]

    def paint(figure: Any) -> None:
        axis = figure.add_subplot()
        for place, name in enumerate(names):
            share, chance = (100 * part for part in effects[name])
            axis.barh(place, share, color=OKABE_ITO[0] if name in telling else FAINT, height=0.6)
            axis.plot([chance, chance], [place - 0.4, place + 0.4], color=INK, lw=1.4, ls=(0, (2, 1.5)))
        axis.set(yticks=range(len(names)), yticklabels=names, xlabel="% of variance explained", xlim=(0, 100))
        axis.grid(axis="y", visible=False)

    alt = "; ".join(f"{name} {effects[name].share:.0%}, by chance up to {effects[name].chance:.0%}" for name in reversed(names))
    told = f"{', '.join(telling)} stand{'s' * (len(telling) == 1)} out of it." if telling else "Nothing stands out of it."
    note = (
        "Main effects on what was tuned by, over all tuning trials (η²; ranges in thirds). Interactions are in none of them. "
        f"The dashed marks are what chance alone stays under in 95 of 100 studies. {told}"
    )
    title = "What mattered in tuning" + ("" if telling else ": nothing beyond chance")
    return draw("importance", title, alt, note, (6.4, 0.9 + 0.38 * len(names)), paint)
