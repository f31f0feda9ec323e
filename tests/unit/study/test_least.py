"""The least possible loss: what the best denoiser of a world comes to under a run's own scoring."""

import pytest

from nava_lab.config import load
from nava_lab.evaluation.protocol import evaluate
from nava_lab.study.build import parts
from nava_lab.study.least import least_loss

SMALL = ("world=gaussian", "evaluation.loss_clips=2048", "evaluation.clips=2", "evaluation.steps=1", "world.duration_s=0.8")


@pytest.mark.parametrize("settings", [(), ("flow.modality_dropout=1", "flow.coupling=independent", "flow/levels=uniform")])
def test_the_best_denoiser_reaches_it_and_no_other_world_knows_it(settings):
    config = load([*SMALL, *settings])
    built, cut = parts(config), bool(settings)
    best = config.world.denoiser(joint=not cut)

    def network(streams, levels, *rest, **more):
        velocity = best(streams, levels)
        if config.flow.prediction == "velocity":
            return velocity
        lift = {name: levels[name].double().reshape(-1, 1, 1) for name in velocity}
        return {name: streams[name].tokens.double() - lift[name] * velocity[name] for name in velocity}

    found = evaluate(network, config.world, built.protocol, built.objective, built.scoring, config.seed, keep=1)
    assert least_loss(config) == pytest.approx(found.scores["loss"].value, rel=0.015)
    assert least_loss(load(["world=pulse"])) is None
