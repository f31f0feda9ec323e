"""Each mistake that others made, built on purpose: the laws must see it."""

from dataclasses import dataclass, replace

import pytest
import torch

from nava_lab.flow.levels import shifted
from nava_lab.flow.sampling import Sampler
from nava_lab.flow.solvers.base import OneStep, Solver, between, move
from nava_lab.flow.solvers.churn import Churn
from nava_lab.flow.solvers.dpmpp import DPMSolverPP
from nava_lab.flow.solvers.euler import Euler
from nava_lab.flow.solvers.heun import Heun
from nava_lab.rng import generators
from tests.laws import test_solvers as laws
from tests.laws.flows import gaussian, point_mass, row, tensors


@dataclass(frozen=True)
class ShiftedTwice(Sampler):
    """diffusers' FlowMatchEuler."""

    def rows(self, modalities, clean=()):
        return {name: shifted(part, self.shift) for name, part in super().rows(modalities, clean).items()}


@dataclass(frozen=True)
class LateMidpoint(OneStep):
    """Evaluates at 0.6 of the step."""

    def step(self, x, now, then, velocity):
        late = between(now, then, 0.6)
        return move(x, velocity(move(x, velocity(x, now), now, late), late), now, then)


@dataclass(frozen=True)
class OneLevel(OneStep):
    """Moves every modality by the first one's levels."""

    def step(self, x, now, then, velocity):
        first = next(iter(now))
        return move(x, velocity(x, now), dict.fromkeys(now, now[first]), dict.fromkeys(now, then[first]))


@dataclass(frozen=True)
class SharedNoise(Churn):
    """One generator for the whole batch."""

    def __call__(self, x, schedule, velocity, generators=()):
        return super().__call__(x, schedule, velocity, [generators[0]] * len(generators))


@dataclass(frozen=True)
class WrongSign(DPMSolverPP):
    """Extrapolates the wrong way: the slope's sign is a common slip."""

    def solve(self, x, nodes, velocity, noise):
        known = []

        def flipped(state, levels):
            found = velocity(state, levels)
            clean = {name: state[name] - levels[name] * found[name] for name in found}
            known.append(clean)
            if len(known) > 1:
                clean = {name: clean[name] - 0.5 * (clean[name] - known[-2][name]) for name in clean}
            return {name: (state[name] - clean[name]) / levels[name] for name in found}

        return Euler().solve(x, nodes, flipped, noise)


def test_a_shift_applied_twice_is_seen():
    twice = ShiftedTwice(steps=8, shift=2.0).rows(("x",))["x"]
    assert not torch.allclose(twice, shifted(laws.uniform(8), 2.0))
    torch.testing.assert_close(twice, shifted(laws.uniform(8), 4.0))


@pytest.mark.parametrize(("solver", "order"), [(LateMidpoint(), 2), (WrongSign(), 2)])
def test_a_wrong_coefficient_is_seen_by_the_order(solver, order):
    assert laws.slope(solver) < order - 0.2


def test_a_last_level_above_0_is_seen_by_the_point_mass():
    point = tensors(0, 5)
    end = Euler()({"x": tensors(1, 1, 2, 5)}, {"x": row(1.0, 0.02, 8)}, point_mass(point))["x"]
    assert not torch.allclose(end, point.expand(1, 2, 5), atol=1e-3)


def test_levels_of_one_modality_used_for_another_are_seen():
    velocity, _ = gaussian(tensors(0, 5), tensors(1, 5).exp())
    x, rows = (
        {"video": tensors(2, 1, 3, 5), "audio": tensors(3, 1, 3, 5)},
        {"video": laws.uniform(6, 3.0), "audio": laws.uniform(6)},
    )
    alone = OneLevel()({"audio": x["audio"]}, {"audio": rows["audio"]}, velocity)["audio"]
    assert not torch.allclose(OneLevel()(x, rows, velocity)["audio"], alone, atol=1e-3)


def test_noise_shared_across_the_batch_is_seen():
    velocity, _ = gaussian(tensors(0, 5), tensors(1, 5).exp())
    x, rows = tensors(2, 2, 3, 5), {"x": laws.uniform(5)}

    def second(solver: Solver, select):
        return solver({"x": x[select]}, rows, velocity, generators("s", 0, select))["x"][-1]

    assert torch.equal(second(Churn(), [0, 1]), second(Churn(), [1]))
    assert not torch.equal(second(SharedNoise(), [0, 1]), second(SharedNoise(), [1]))


def test_a_solver_that_remembers_between_calls_would_be_seen():
    """History on the object makes a second call differ; ours are frozen and do not."""
    velocity, _ = gaussian(tensors(0, 5), tensors(1, 5).exp())
    x, rows = {"x": tensors(2, 1, 3, 5)}, {"x": laws.uniform(5)}
    for _, solver, _ in laws.SOLVERS:
        found = [solver(x, rows, velocity, generators("s", 0, [0]))["x"] for _ in range(2)]
        assert torch.equal(*found)
    assert replace(Heun()) == Heun()
