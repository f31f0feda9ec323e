"""From a budget to a size: first the width, in legal steps, then the feed-forward width takes up the rest.

Cost is measured on thinned models (each distinct block once) and multiplied out, so a 48-layer model of 10 B parameters
solves in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from nava_lab.budget.flops import IDLE, flops_by_part
from nava_lab.budget.measure import Cost, measure
from nava_lab.budget.thin import Thin
from nava_lab.models.variant import Size, Variant, legal_width_step
from nava_lab.streams import TEXT, Interface

TOLERANCE = 0.005
RATIOS = (0.25, 16.0)  # feed-forward widths per model width that count as a model
WIDEST = 32_768


@dataclass(frozen=True)
class Budget:
    """What is held equal: parameters, or training FLOPs per sample. Or neither, and the size is given.

    Attributes:
        parameters: total parameters.
        flops: training FLOPs per sample; takes the place of ``parameters``.
        width: a fixed model width instead of a solved one.
        hidden: a fixed feed-forward width; needs ``width``.
    """

    parameters: float | None = 1_000_000
    flops: float | None = None
    width: int | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "flops", "width", "hidden"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"budget.{name}={value} must be positive")
        if self.parameters is not None:
            if self.parameters != int(self.parameters):
                raise ValueError(f"budget.parameters={self.parameters} must be a whole number")
            object.__setattr__(self, "parameters", int(self.parameters))
        if self.flops is not None and self.hidden is not None:
            raise ValueError("budget.flops has no say beside budget.width and budget.hidden; leave one of them out")
        if self.hidden is not None and self.width is None:
            raise ValueError("budget.hidden needs budget.width: a feed-forward width alone is no size")
        if self.hidden is None and self.flops is None and self.parameters is None:
            raise ValueError("budget: give parameters, flops, or width and hidden")

    @property
    def kind(self) -> str:
        return "size" if self.hidden is not None else "flops" if self.flops is not None else "parameters"

    @property
    def requested(self) -> float | None:
        return {"size": None, "flops": self.flops, "parameters": self.parameters}[self.kind]


@dataclass(frozen=True)
class Solution:
    """A size and what it costs.

    Attributes:
        size: width and feed-forward width.
        cost: measured on the whole model.
        budget: what was asked for.
        realised: the total of the kind that was asked for.
        steps: how the size was found, one sentence each.
    """

    size: Size
    cost: Cost
    budget: Budget
    realised: float
    steps: tuple[str, ...]


def solve(variant: Variant, interface: Interface, budget: Budget) -> Solution:
    """The size whose total lies within 0.5 % of the budget, as near as can be to the variant's feed-forward ratio."""
    if budget.hidden is not None and budget.width is not None:
        size = Size(budget.width, budget.hidden)
        cost = measure(variant, interface, size)
        return Solution(size, cost, budget, float(cost.total), (f"width {size.width}, hidden {size.hidden}: as given",))
    target = float(budget.requested or 0)
    total = _Totals(variant, interface, budget.kind)
    widths = [budget.width] if budget.width is not None else _widths_around(total, variant.ratio, target)
    candidates = [(width, hidden) for width in widths if (hidden := total.hidden_for(width, target)) is not None]
    ratio = variant.ratio
    candidates = [pair for pair in candidates if RATIOS[0] <= pair[1] / pair[0] <= RATIOS[1]]
    good = [pair for pair in candidates if abs(total(*pair) / target - 1) <= TOLERANCE]
    if not good:
        raise ValueError(_impossible(total, variant, budget, target, widths))
    width, hidden = min(good, key=lambda pair: abs(pair[1] / pair[0] / ratio - 1) + 1e-6 * pair[0])
    size = Size(width, hidden)
    cost = measure(variant, interface, size)
    realised = float(cost.total if budget.kind == "parameters" else cost.flops_per_sample)
    steps = (
        f"width {width} in steps of {legal_width_step(width)}: nearest to feed-forward ratio {ratio:g}",
        f"hidden {hidden} (ratio {hidden / width:.2f}) takes up the rest",
        f"{budget.kind} {realised:,.0f} of {target:,.0f} requested: {realised / target - 1:+.3%}",
    )
    return Solution(size, cost, budget, realised, steps)


class _Totals:
    """The budgeted total as a function of width and feed-forward width."""

    def __init__(self, variant: Variant, interface: Interface, kind: str):
        self.variant, self.interface, self.kind = variant, interface, kind
        self._cached: Callable[[int, int], int] = lru_cache(None)(self._measure)

    def __call__(self, width: int, hidden: int) -> int:
        return self._cached(width, hidden)

    def _measure(self, width: int, hidden: int) -> int:
        thin = Thin.of(self.variant, self.interface, Size(width, hidden))
        if self.kind == "parameters":
            return thin.parameters
        return 3 * sum(flops for part, flops in flops_by_part(thin, self.interface).items() if part != IDLE)

    def hidden_for(self, width: int, target: float) -> int | None:
        """The feed-forward width nearest to the target; the total is linear in it, up to rounding per modality."""
        few, many = max(1, round(RATIOS[0] * width)), round(RATIOS[1] * width)
        low, high = self(width, few), self(width, many)
        slope = (high - low) / (many - few)
        guess = few + (target - low) / slope
        if not few - 1 <= guess <= many + 1:
            return None
        grain = next(
            (step for step in (128, 64, 32, 16, 8, 4, 2) if slope * step / target <= TOLERANCE / 4 and guess >= 8 * step),
            1,
        )
        near = round(guess / grain) * grain
        if near >= 1 and abs(self(width, near) - target) <= slope * grain / 2:  # its neighbours are further away
            return near
        tries = (
            {max(1, near + shift * step) for step in (grain, 1) for shift in (-1, 0, 1)}
            if grain > 1
            else {max(1, near + shift) for shift in (-2, -1, 0, 1, 2)}
        )
        preferred = [hidden for hidden in tries if hidden % grain == 0]
        best = min(preferred, key=lambda hidden: abs(self(width, hidden) - target))
        if abs(self(width, best) / target - 1) <= TOLERANCE / 2:
            return best
        return min(tries, key=lambda hidden: abs(self(width, hidden) - target))


def _legal_widths(total: _Totals) -> list[int]:
    """Widths in legal steps that divide, for every modality, into the variant's heads of an even size."""
    widths = [8]
    while widths[-1] < WIDEST:
        widths.append(widths[-1] + legal_width_step(widths[-1]))
    variant = total.variant
    names = (*total.interface.modalities, *((TEXT,) if variant.text_place == "sequence" else ()))
    group = variant.layers.query_group
    if legal_width_step(8) % (2 * group):  # few of the narrow ones would hold whole groups: those that do join them
        widths = sorted({*widths, *range(2 * group, 256, 2 * group)})

    def divides(width: int) -> bool:
        parts = variant.widths(width, names).values()
        return all(part % (2 * group) == 0 and part % (2 * variant.heads_for(part)) == 0 for part in parts)

    return [width for width in widths if divides(width)]


def _widths_around(total: _Totals, ratio: float, target: float) -> list[int]:
    """Legal widths whose total at the variant's own ratio brackets the target, with neighbours."""
    widths = _legal_widths(total)
    if not widths:
        return []
    low, high = 0, len(widths) - 1
    while low < high:
        middle = (low + high) // 2
        if total(widths[middle], round(widths[middle] * ratio)) < target:
            low = middle + 1
        else:
            high = middle
    return widths[max(0, low - 2) : low + 2]


def _impossible(total: _Totals, variant: Variant, budget: Budget, target: float, widths: list[int]) -> str:
    if not widths:
        raise ValueError(
            f"variant.heads={variant.heads} with layers.query_group={variant.layers.query_group} "
            f"divides no width up to {WIDEST}; fewer heads, or 0 to choose by width"
        )
    spans = []
    for width in widths if budget.width is not None else [_legal_widths(total)[0], _legal_widths(total)[-1]]:
        spans += [total(width, max(1, round(RATIOS[0] * width))), total(width, round(RATIOS[1] * width))]
    fixed = f" at width {budget.width}" if budget.width is not None else ""
    remedy = "budget.width" if budget.width is not None else "the depth"
    if budget.width is None and min(spans) <= target <= max(spans):
        near = sorted(total(width, hidden) for width in widths if (hidden := total.hidden_for(width, target)) is not None)
        shown = f"this depth makes coarse steps, the nearest totals are {', '.join(f'{part:,}' for part in near)}"
    else:
        shown = f"possible is {min(spans):,} to {max(spans):,}"
    return (
        f"budget.{budget.kind}={target:,.0f} cannot be met by {getattr(variant, 'name', 'this variant')} with depth "
        f"{variant.depth}{fixed}: {shown}; change the budget or {remedy}"
    )
