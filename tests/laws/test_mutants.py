"""Each mistake that others made, built on purpose and put through the very laws of the other files: the law must fail."""

import contextlib
import itertools
from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch
from hypothesis import Phase, settings

from nava_lab.conditioning.text import without_text
from nava_lab.flow import draws, path
from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.guidance.apg import AdaptiveProjected
from nava_lab.flow.guidance.base import Moment
from nava_lab.flow.guidance.cfg_zero import CFGZero
from nava_lab.flow.guidance.modality import Modality
from nava_lab.flow.guidance.negative import Negative
from nava_lab.flow.guidance.rescale import Rescale
from nava_lab.flow.guidance.text import Text
from nava_lab.flow.guidance.timbre import Timbre
from nava_lab.flow.levels import LevelLaw, LogitNormal, Mode, shifted
from nava_lab.flow.objective import Objective
from nava_lab.flow.sampling import Sampler
from nava_lab.flow.solvers.base import OneStep, Solver, between, move, noisier
from nava_lab.flow.solvers.churn import Churn
from nava_lab.flow.solvers.dpmpp import DPMSolverPP
from nava_lab.flow.solvers.euler import Euler
from nava_lab.flow.solvers.heun import trapezoid
from nava_lab.flow.solvers.sde import AncestralEuler
from nava_lab.flow.weighting import CosMap
from tests.laws import test_equations as equations
from tests.laws import test_flow as flow_laws
from tests.laws import test_guidance as guidance_laws
from tests.laws import test_solvers as laws


@dataclass(frozen=True)
class LateMidpoint(OneStep):
    """Evaluates at 0.6 of the step."""

    def step(self, x, now, then, velocity):
        late = between(now, then, 0.6)
        return move(x, velocity(move(x, velocity(x, now), now, late), late), now, then)


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


@dataclass(frozen=True)
class StopsEarly(OneStep):
    """Ends at a level of 0.02."""

    def step(self, x, now, then, velocity):
        return move(x, velocity(x, now), now, {name: max(level, 0.02) for name, level in then.items()})


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
class MovesWhatStands(OneStep):
    """Adds a velocity times zero to a modality that stands still: minus zero loses its sign."""

    def step(self, x, now, then, velocity):
        v = velocity(x, now)
        return {name: part + (then[name] - now[name]) * v[name] for name, part in x.items()}


@dataclass(frozen=True)
class AlwaysChurns(Churn):
    """Mixes noise in even at churn 0."""

    def solve(self, x, nodes, velocity, noise):
        for now, then in itertools.pairwise(nodes):
            raised = {name: shifted(t, 1.1) if then[name] < t else t for name, t in now.items()}
            x = trapezoid(noisier(x, now, raised, noise), raised, then, velocity)
        return x


@dataclass(frozen=True)
class TooMuchNoise(AncestralEuler):
    """Comes back up by more noise than it took out."""

    def solve(self, x, nodes, velocity, noise):
        return super().solve(x, nodes, velocity, lambda state: {name: 1.2 * part for name, part in noise(state).items()})


class Remembers(Solver):
    """Keeps its last velocity on the object, so that a second clip begins with the first one's."""

    last: dict = {}

    def solve(self, x, nodes, velocity, noise):
        for now, then in itertools.pairwise(nodes):
            v = velocity(x, now)
            known = {name: self.last.get((name, part.shape), part) for name, part in v.items()}
            x = move(x, {name: 1.5 * part - 0.5 * known[name] for name, part in v.items()}, now, then)
            self.last.update({(name, part.shape): part for name, part in v.items()})
        return x


SOLVERS = {
    "a midpoint that is none": lambda: laws.TestOrder().test_on_the_gaussian_flow(LateMidpoint(), 2),
    "a slope of the wrong sign": lambda: laws.TestOrder().test_on_the_gaussian_flow(WrongSign(), 2),
    "a last level above 0": lambda: laws.test_a_point_mass_is_met_exactly(StopsEarly()),
    "one modality's levels for another": lambda: laws.test_levels_of_modalities_do_not_mix(OneLevel()),
    "noise shared across the batch": lambda: laws.test_neither_batch_nor_order_matters(SharedNoise()),
    "a solver that remembers": lambda: laws.test_neither_batch_nor_order_matters(Remembers()),
    "what stands still is moved by nothing": lambda: laws.test_a_modality_that_stands_still_keeps_its_bits(MovesWhatStands()),
    "a solver with state": lambda: laws.test_a_solver_holds_settings_and_no_state(Remembers()),
    "noise where none is asked": lambda: laws.test_without_noise_the_sde_is_the_ode(AlwaysChurns()),
    "more noise than was taken out": lambda: laws.test_noise_keeps_the_data_s_distribution(TooMuchNoise()),
}


@pytest.fixture(autouse=True)
def first_failure_is_enough(monkeypatch):
    """A law that fails is not searched for its smallest failure, which costs many times the law itself."""
    applied = "_hypothesis_internal_use_settings"
    for module in (laws, flow_laws, guidance_laws):
        places = [module, *(part for part in vars(module).values() if isinstance(part, type))]
        for law in [part for place in places for part in vars(place).values() if hasattr(part, applied)]:
            quick = settings(getattr(law, applied), phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
            monkeypatch.setattr(law, applied, quick)


@contextlib.contextmanager
def fails():
    """The law does not hold: one assertion, a demanded error that did not come, or several of them that Hypothesis found."""
    try:
        yield
    except (AssertionError, pytest.fail.Exception):
        return
    except BaseExceptionGroup as group:
        if group.split((AssertionError, pytest.fail.Exception))[1] is not None:
            raise
        return
    pytest.fail("the law holds for it")


@pytest.mark.parametrize("mutant", SOLVERS)
def test_a_wrong_solver_is_seen(mutant):
    with fails():
        SOLVERS[mutant]()


def shifted_twice():
    """diffusers' FlowMatchEuler."""
    right = Sampler.rows

    def wrong(self, modalities, clean=()):
        return {name: shifted(part, self.shifts.get(name, self.shift)) for name, part in right(self, modalities, clean).items()}

    return mock.patch.object(Sampler, "rows", wrong)


def law_shifted_twice():
    right = LevelLaw.__call__

    def wrong(self, u):
        return shifted(right(self, u), self.shift)

    return mock.patch.object(LevelLaw, "__call__", wrong)


def given_tokens_at_the_level_of_the_others():
    """First frames are shown clean and called noisy."""

    def wrong(streams, levels, given):
        return {name: torch.full(stream.tokens.shape[:2], levels[name]) for name, stream in streams.items()}

    return mock.patch("nava_lab.flow.sampling._level_tensors", wrong)


def noise_of_the_batch():
    """All modalities and samples from the first sample's generator (Ovi: both modalities' noise from one seed)."""
    right = draws.noise_like
    return mock.patch.object(draws, "noise_like", lambda streams, generators: right(streams, [generators[0]] * len(generators)))


def dropped_by_the_batch():
    """A whole batch is dropped or none of it (NAVA's trainer: at batch size 1 never)."""
    right = Drawing.__call__

    def wrong(self, streams, generators):
        found = right(self, streams, generators)
        return mock.Mock(wraps=found, drop_text=found.drop_text.all().expand_as(found.drop_text) & (len(generators) > 1),
                         levels=found.levels, noise=found.noise, cut=found.cut, clean=found.clean, given=found.given)  # fmt: skip

    return mock.patch.object(Drawing, "__call__", wrong)


def clean_tokens_counted():
    return mock.patch.object(Objective, "_counted", lambda self, stream, clean: stream.valid)


def rescaled_over_the_batch():
    """diffusers' LTX-2 guider."""
    return mock.patch.object(Moment, "spread", lambda self, name, a: a.std(correction=0).view(1, 1, 1))


def scale_counted_from_zero():
    right = Guidance._combined

    def wrong(self, name, conditional, nulls, moment):
        guided = right(self, name, conditional, nulls, moment)
        for _, null in nulls:
            guided = guided + (conditional - null)
        return guided

    return mock.patch.object(Guidance, "_combined", wrong)


def padding_measured():
    return mock.patch.object(Moment, "spread", lambda self, name, a: a.std((1, 2), keepdim=True, correction=0))


def null_takes_nothing():
    return mock.patch.object(Text, "null", lambda self, call, encode: call)


def velocity_of_the_other_sign():
    return mock.patch.object(
        path, "velocity_from_x0", lambda x, x0, level, least=1e-3: (x0 - x) / path.broadcast(level, x).clamp(min=least)
    )


PLANTED = {
    "a shift applied twice in sampling": (shifted_twice, lambda: laws.test_a_shift_is_applied_once_and_to_its_modality()),
    "a shift applied twice in training": (
        law_shifted_twice,
        lambda: flow_laws.test_a_law_rises_from_0_to_1_and_its_shift_is_applied_once("logit_normal"),
    ),
    "given tokens called noisy": (
        given_tokens_at_the_level_of_the_others,
        lambda: laws.test_clean_tokens_are_shown_clean_and_come_back_to_the_bit(Euler()),
    ),
    "noise of the whole batch": (noise_of_the_batch, lambda: flow_laws.test_draws_depend_on_neither_batch_nor_order()),
    "dropout of the whole batch": (
        dropped_by_the_batch,
        lambda: flow_laws.test_dropout_rates_are_exact_at_batch_size_one_and_whatever_the_split(),
    ),
    "clean tokens in the loss": (clean_tokens_counted, lambda: flow_laws.test_only_noisy_tokens_are_in_the_loss_unless_asked()),
    "velocity of the other sign": (velocity_of_the_other_sign, lambda: flow_laws.test_a_perfect_network_has_no_loss("x0")),
    "a rescaling over the batch": (
        rescaled_over_the_batch,
        lambda: guidance_laws.test_neither_batch_nor_order_matters([guidance_laws.example("text"), guidance_laws.example("rescale")]),
    ),
    "a scale counted from 0": (scale_counted_from_zero, lambda: guidance_laws.TestEveryTerm().test_the_formula("text")),
    "padding in a deviation": (padding_measured, lambda: guidance_laws.TestEveryModifier().test_padding_changes_nothing("rescale")),
    "a null branch that takes nothing away": (
        null_takes_nothing,
        lambda: guidance_laws.TestEveryTerm().test_a_null_branch_takes_something_away_and_only_once("text"),
    ),
}  # fmt: skip


# Formulas that keep every general law and are not their paper's


def everyone(call):
    return torch.ones(len(call.text.tokens), dtype=torch.bool)


def flipped_fit(self, name, conditional, null, moment):
    return -null * moment.inner(name, conditional, null) / moment.inner(name, null, null)


def fit_by_lengths(self, name, conditional, null, moment):
    return null * (moment.inner(name, conditional, conditional) / moment.inner(name, null, null)).sqrt()


def share_to_the_fourth(self, name, guided, conditional, moment):
    return RESCALED(replace(self, share=self.share**4), name, guided, conditional, moment)


def momentum_of_the_other_sign(self, term, name, direction, conditional, moment):
    return PROJECTED(replace(self, momentum=-self.momentum), term, name, direction, conditional, moment)


def momentum_of_the_last_direction(self, term, name, direction, conditional, moment):
    """Remembers the direction and not what momentum has made of it."""
    found = PROJECTED(self, term, name, direction, conditional, moment)
    if self.momentum:
        moment.memory[f"apg {term} {name}"] = moment.levels[name] * direction
    return found


RESCALED, PROJECTED = Rescale.guided, AdaptiveProjected.direction
FORMULAS = {
    "a fit of the other sign": (CFGZero, "null", flipped_fit, lambda: equations.test_cfg_zero_is_algorithm_1_of_its_paper(None)),
    "a fit by lengths": (CFGZero, "null", fit_by_lengths, lambda: equations.test_cfg_zero_is_algorithm_1_of_its_paper(None)),
    "a share to the fourth power": (
        Rescale, "guided", share_to_the_fourth, lambda: equations.test_rescaling_is_equations_15_and_16_of_its_paper(None, 0.7),
    ),
    "momentum of the other sign": (
        AdaptiveProjected, "direction", momentum_of_the_other_sign,
        lambda: equations.test_projected_guidance_is_algorithm_1_of_its_paper(None, {"momentum": -0.5}),
    ),
    "momentum that does not accumulate": (
        AdaptiveProjected, "direction", momentum_of_the_last_direction,
        lambda: equations.test_projected_guidance_is_algorithm_1_of_its_paper(None, {"momentum": -0.5}),
    ),
    "a cut that drops the caption": (
        Modality, "null",
        lambda self, call, encode: replace(call, cut=everyone(call), text=without_text(call.text, everyone(call))),
        lambda: equations.test_a_null_branch_is_asked_this_and_nothing_else("modality"),
    ),
    "no timbre that cuts attention": (
        Timbre, "null", lambda self, call, encode: replace(call, cut=everyone(call)),
        lambda: equations.test_a_null_branch_is_asked_this_and_nothing_else("timbre"),
    ),
    "a negative prompt that says nothing": (
        Negative, "null", lambda self, call, encode: replace(call, text=without_text(call.text, everyone(call))),
        lambda: equations.test_a_null_branch_is_asked_this_and_nothing_else("negative"),
    ),
    "a logistic law for a normal one": (
        LogitNormal, "quantile", lambda self, u: torch.sigmoid(self.mean + self.std * torch.logit(u) / 1.7),
        lambda: equations.test_logit_normal_levels_have_its_distribution(0.0, 1.0),
    ),
    "a mode with a sine": (
        Mode, "quantile", lambda self, u: u - self.scale * torch.sin(2 * torch.pi * u) / 9,
        lambda: equations.test_mode_levels_are_equation_20_of_their_paper(1.29),
    ),
    "another cosine weight": (
        CosMap, "__call__", lambda self, level: 1 + level, lambda: equations.test_cosmap_weights_are_the_density_of_the_cosine_map(),
    ),
}  # fmt: skip
PLANTED |= {
    name: (lambda cls=cls, method=method, wrong=wrong: mock.patch.object(cls, method, wrong), law)
    for name, (cls, method, wrong, law) in FORMULAS.items()
}
PLANTED |= {
    f"given tokens in what {part.name} measures": (
        lambda: mock.patch("nava_lab.flow.sampling._counted", lambda stream, clean: stream.valid),
        lambda part=part: equations.test_given_tokens_count_in_no_norm_and_no_deviation(part),
    )
    for part in equations.MEASURED
}


@pytest.mark.parametrize("mutant", PLANTED)
def test_a_planted_mistake_is_seen(mutant):
    plant, law = PLANTED[mutant]
    law()
    with contextlib.ExitStack() as planted:
        planted.enter_context(plant())
        with fails():
            law()
