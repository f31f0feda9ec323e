"""The gaussian world against its closed form."""

import pytest
import torch

from nava_lab.registry import worlds

LEVELS = torch.sigmoid(torch.special.ndtri((torch.arange(400).double() + 0.5) / 400))


@pytest.mark.parametrize(("rho", "gap"), [(0.5, 0.04), (0.9, 0.19), (0.99, 0.28)])
def test_the_gap_between_unimodal_and_joint_loss(rho, gap):
    world = worlds.get("gaussian")(rho=rho)
    levels = {"video": LEVELS, "audio": LEVELS}
    alone, best = (sum(world.bayes_loss(levels, joint).values()).mean() for joint in (False, True))
    assert abs((alone - best) / alone - gap) < 0.005


def test_the_unimodal_loss_is_the_scalar_formula():
    t = LEVELS
    expected = 1 / ((1 - t) ** 2 + t**2)
    torch.testing.assert_close(worlds.get("gaussian")().bayes_loss({"video": t, "audio": t}, False)["video"], expected)


@pytest.mark.parametrize("audio_hz", [12.5, 50.0])
def test_the_bayes_loss_is_what_the_best_linear_estimator_reaches(audio_hz):
    """Monte Carlo: the regression of the velocity on the noisy tokens, fitted on samples, has this error."""
    world = worlds.get("gaussian")(duration_s=0.4, audio_hz=audio_hz)
    clean = world.batch("train", torch.arange(20_000)).streams
    x0 = torch.cat([clean[key].tokens.double() for key in ("video", "audio")], 1).transpose(1, 2).flatten(0, 1)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.cat([torch.full((len(clean["video"]),), 0.6), torch.full((len(clean["audio"]),), 0.35)]).double()
    x, v = (1 - t) * x0 + t * eps, eps - x0
    fitted = x @ torch.linalg.lstsq(x, v).solution
    measured = (v - fitted).square().mean(0).split((len(clean["video"]), len(clean["audio"])))
    exact = world.bayes_loss({"video": torch.tensor([0.6]), "audio": torch.tensor([0.35])}, True)
    torch.testing.assert_close(measured[0].mean(), exact["video"][0], rtol=0.01, atol=0)
    torch.testing.assert_close(measured[1].mean(), exact["audio"][0], rtol=0.01, atol=0)
