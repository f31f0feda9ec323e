"""From a config to the objects that train and score."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nava_lab.attention.attend import known
from nava_lab.budget.solve import Solution, solve
from nava_lab.config import Config, ConfigError
from nava_lab.evaluation.protocol import Protocol
from nava_lab.flow.draws import Drawing
from nava_lab.flow.objective import Objective
from nava_lab.flow.sampling import Sampler
from nava_lab.models.denoiser import Denoiser


@dataclass(frozen=True)
class Parts:
    """Everything a run needs besides a trainer.

    Attributes:
        solution: size and cost.
        objective: the loss.
        drawing: laws of the training draws.
        scoring: laws of the evaluation draws: no dropout, and attention cut only where training always cut it.
        protocol: how the model is scored.
    """

    solution: Solution
    objective: Objective
    drawing: Drawing
    scoring: Drawing
    protocol: Protocol


def parts(config: Config) -> Parts:
    """Build and check; whatever a part refuses becomes a ConfigError."""
    flow, scoring = config.flow, config.evaluation
    try:
        objective = Objective(flow.prediction, dict(flow.weights))
        unknown = sorted(set(flow.weights) - set(config.world.interface().modalities))
        if unknown:
            raise ValueError(f"flow.weights names {', '.join(unknown)}, which world {config.world.name} does not have")
        drawing = Drawing(flow.levels, flow.coupling, flow.text_dropout, flow.modality_dropout)
        always_cut = flow.modality_dropout >= 1
        if scoring.clips < 2 or scoring.loss_clips < 2 or scoring.batch_size < 1:
            raise ValueError("evaluation: needs at least 2 clips, 2 loss_clips and a batch_size of 1")
        if scoring.shift <= 0 or scoring.steps < 1:
            raise ValueError("evaluation: steps must be at least 1 and shift positive")
        known(config.attention.backend)
        if config.attention.cut not in ("all", *config.world.interface().modalities):
            names = ", ".join(("all", *config.world.interface().modalities))
            raise ValueError(f"attention.cut={config.attention.cut} is not one of {names}")
        if config.attention.cut != "all" and not flow.modality_dropout:
            raise ValueError(
                f"attention.cut={config.attention.cut} does nothing while no attention is cut: set flow.modality_dropout too"
            )
        if not config.attention.window_s >= 0:
            raise ValueError(f"attention.window_s={config.attention.window_s} must not be negative")
        sampler = Sampler(scoring.solver, scoring.steps, scoring.shift, flow.prediction, always_cut)
        solution = solve(config.variant, config.world.interface(), config.budget)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return Parts(
        solution,
        objective,
        drawing,
        replace(drawing, text_dropout=0.0, modality_dropout=1.0 if always_cut else 0.0),
        Protocol(sampler, scoring.clips, scoring.loss_clips, scoring.batch_size),
    )


def network(config: Config, solution: Solution) -> Denoiser:
    """A freshly initialised denoiser; seed the global generator before."""
    return Denoiser(
        config.variant,
        config.world.interface(),
        solution.size,
        window_s=config.attention.window_s,
        backend=config.attention.backend,
        cut_off=config.attention.cut,
        packed=config.attention.packed,
    )
