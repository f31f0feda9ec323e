"""Cross-checks with diffusers' flow schedulers, where those are right; where they are not, the test says what differs."""

import numpy as np
import pytest
import torch

from nava_lab.flow.levels import shifted
from nava_lab.registry import solvers
from nava_lab.rng import generators
from tests.laws.flows import gaussian, tensors

diffusers = pytest.importorskip("diffusers", reason="a peer for tests: pip install -e .[test]")

VELOCITY, _ = gaussian(tensors(0, 5), tensors(1, 5).exp())
X = tensors(2, 2, 3, 5)
COMMON = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "zero"}


def theirs(scheduler, x, noises=None):
    """Their walk, with our velocity at their levels."""
    scheduler.set_begin_index(0)
    x = x.float()
    for i, t in enumerate(scheduler.timesteps):
        v = VELOCITY({"x": x.double()}, {"x": float(scheduler.sigmas[i])})["x"].float()
        more = {} if noises is None else {"variance_noise": noises[i].float()}
        x = scheduler.step(v, t, x, return_dict=False, **more)[0]
    return x


def ours(solver, x, scheduler, given=()):
    return solver({"x": x}, {"x": scheduler.sigmas.double()}, VELOCITY, given)["x"].float()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler(steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    torch.testing.assert_close(theirs(scheduler, X), ours(solvers.get("euler")(), X, scheduler), atol=2e-5, rtol=2e-5)


def test_their_euler_shifts_twice_and_ours_once():
    """Without explicit sigmas FlowMatchEuler spaces its levels between ends that the shift has already moved, and shifts again.

    So its last level before 0 is the shift of a shift. Ours is shifted once, from 1 to exactly 0.
    """
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    least = shifted(torch.tensor(1 / 1000, dtype=torch.float64), 3.0)
    twice = shifted(torch.linspace(1, float(least), 8, dtype=torch.float64), 3.0)
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), twice, atol=1e-6, rtol=0)
    assert float(scheduler.sigmas[-2]) == pytest.approx(float(shifted(least, 3.0)), rel=1e-4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [2, 6, 20])
def test_dpm_solver_pp(order, steps):
    """They start at level 0.999 and not at 1, where their lambda would be infinite; at equal levels the walks are equal."""
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=order, algorithm_type="dpmsolver++", **COMMON)
    scheduler.set_timesteps(steps)
    assert float(scheduler.sigmas[0]) == pytest.approx(0.999)
    found = ours(solvers.get("dpmpp")(steps_used=order), X, scheduler)
    torch.testing.assert_close(theirs(scheduler, X), found, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order):
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=order, **COMMON)
    scheduler.set_timesteps(sigmas=np.linspace(0.95, 0.05, 12))
    found = ours(solvers.get("unipc")(steps_used=order), X, scheduler)
    torch.testing.assert_close(theirs(scheduler, X), found, atol=5e-5, rtol=5e-5)


def test_unipc_from_pure_noise_differs_by_their_finite_start_only():
    """From sigma 1 they start at 1 - 1e-6, so that lambda is finite, and let that node count as one in the slope.

    Ours takes the limit: a node infinitely far back says nothing. The results are close and not equal.
    """
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=2, **COMMON)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.05, 20))
    assert 0 < 1 - float(scheduler.sigmas[0]) < 2e-6
    exact = solvers.get("unipc")()({"x": X}, {"x": torch.cat((torch.ones(1).double(), scheduler.sigmas[1:].double()))}, VELOCITY)
    found = theirs(scheduler, X)
    torch.testing.assert_close(found, exact["x"].float(), atol=1e-2, rtol=0)
    assert not torch.allclose(found, exact["x"].float(), atol=1e-6, rtol=0)


def test_ancestral_steps_are_those_of_the_first_order_sde_solver():
    """SDE-DPM-Solver++(1), given the very noise that our per-sample generators draw."""
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=1, algorithm_type="sde-dpmsolver++", **COMMON)
    scheduler.set_timesteps(9)
    draw = generators("s", 0, range(2))
    noises = [torch.stack([torch.randn(3, 5, generator=g, dtype=torch.float64) for g in draw]) for _ in range(8)]
    found = ours(solvers.get("sde")(), X, scheduler, generators("s", 0, range(2)))
    torch.testing.assert_close(theirs(scheduler, X, [*noises, torch.zeros_like(X)]), found, atol=5e-5, rtol=5e-5)
