"""The papers' equations, written again in their own symbols: what each term, modifier, law and weight must equal, by value.

The laws of the other files say what holds of any term or modifier; a formula with a sign flipped may keep all of them.
"""

import math
from dataclasses import replace

import pytest
import torch

from nava_lab.flow.guidance.base import Moment
from nava_lab.flow.sampling import Clean, Sampler
from nava_lab.registry import guidance, level_laws, level_weights, solvers
from nava_lab.rng import generators
from tests.laws.flows import tensors
from tests.laws.test_guidance import LEVELS, WORDS, algebra, ask, example, situation

RAGGED = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [False, True, True, False, False]])
ragged = pytest.mark.parametrize("valid", [None, RAGGED], ids=["whole", "ragged"])
U = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)


# What a null branch is asked


def no_reference(call):
    heard = call.text.references
    return replace(call.text, references=replace(heard, valid=torch.zeros_like(heard.valid)))


def nothing_said(call):
    """No word, and with it no mark and no reference."""
    ids = torch.zeros_like(call.text.tokens)
    ids[:, 0] = 1
    return replace(no_reference(call), tokens=ids, valid=ids != 0, span=torch.full_like(call.text.span, -1))


def red_disc(call):
    said = WORDS(["red disc"] * 3)
    return replace(said, span=call.text.span * 0 - 1, references=no_reference(call).references)  # it marks no span


ASKED = {  # of three samples: their text and who is cut
    "text": lambda call: (nothing_said(call), None),
    "modality": lambda call: (call.text, torch.tensor([True] * 3)),
    "timbre": lambda call: (no_reference(call), None),
    "negative": lambda call: (red_disc(call), None),
}


def asked(name, call):
    text, cut = ASKED[name](call)
    return replace(call, text=text, cut=cut)


def plain(text):
    """What a text stream holds, for comparison."""
    span = torch.full(text.tokens.shape, -1) if text.span is None else text.span
    return [text.tokens, text.positions, text.valid, span, text.references.features, text.references.valid]


@pytest.mark.parametrize("name", ASKED)
def test_a_null_branch_is_asked_this_and_nothing_else(name):
    call, _ = situation()
    found, wanted = example(name).null(call, WORDS), asked(name, call)
    assert all(torch.equal(a, b) for a, b in zip(plain(found.text), plain(wanted.text), strict=True))
    assert (found.cut is None) == (wanted.cut is None)
    assert found.cut is None or torch.equal(found.cut, wanted.cut)
    assert all(found.streams[key] is call.streams[key] and found.levels[key] is call.levels[key] for key in call.streams)


@pytest.mark.parametrize("name", ASKED)
def test_a_term_is_its_scale_less_one_times_the_difference_from_that_branch(name):
    call, moment = situation()
    found, conditional, null = algebra(example(name, scale=3.5))(ask, call, moment), ask(call), ask(asked(name, call))
    for key in found:
        torch.testing.assert_close(found[key], 3.5 * conditional[key] - 2.5 * null[key])


# What a modifier makes of them: sample by sample, over the tokens that count, flattened


def branches(call, valid, key):
    """(sample, its counted tokens, v_c and v_null over them, flat)."""
    conditional, null = ask(call)[key], ask(asked("text", call))[key]
    for row in range(3):
        counted = slice(None) if valid is None or key != "video" else valid[row]
        yield row, counted, conditional[row][counted].flatten(), null[row][counted].flatten()


def same(found, row, counted, expected):
    torch.testing.assert_close(found[row][counted].flatten(), expected, atol=1e-10, rtol=1e-10)


@ragged
def test_cfg_zero_is_algorithm_1_of_its_paper(valid):
    """s* = <v_c, v_u> / |v_u|^2 and v = (1 - w) s* v_u + w v_c."""
    call, moment = situation(valid=valid)
    found = algebra(example("text", scale=3.0), guidance.get("cfg_zero")(fitted=True))(ask, call, moment)
    for key, part in found.items():
        for row, counted, v_c, v_u in branches(call, valid, key):
            s = torch.dot(v_c, v_u) / torch.dot(v_u, v_u)
            same(part, row, counted, (1 - 3.0) * s * v_u + 3.0 * v_c)


@ragged
@pytest.mark.parametrize("share", [0.7, 0.25])
def test_rescaling_is_equations_15_and_16_of_its_paper(valid, share):
    """x_rescaled = x_cfg std(x_pos) / std(x_cfg), and phi x_rescaled + (1 - phi) x_cfg."""
    call, moment = situation(valid=valid)
    found = algebra(example("text", scale=3.0), guidance.get("rescale")(share))(ask, call, moment)
    for key, part in found.items():
        for row, counted, v_c, v_u in branches(call, valid, key):
            x_cfg = v_u + 3.0 * (v_c - v_u)
            rescaled = x_cfg * (v_c - v_c.mean()).square().mean().sqrt() / (x_cfg - x_cfg.mean()).square().mean().sqrt()
            same(part, row, counted, share * rescaled + (1 - share) * x_cfg)


@ragged
@pytest.mark.parametrize(
    "settings",
    [{"momentum": -0.5}, {"momentum": 0.3, "norm": 0.05}, {"parallel": 0.3}, {"parallel": 0.0, "norm": 0.05, "momentum": -0.5}],
    ids=lambda settings: " ".join(settings),
)
def test_projected_guidance_is_algorithm_1_of_its_paper(valid, settings):
    """Three steps, in predicted clean tokens D: a running average, then min(1, r / |d|), then the projection on D_c."""
    beta, norm, eta = settings.get("momentum", 0.0), settings.get("norm", math.inf), settings.get("parallel", 1.0)
    guide, memory, average = algebra(example("text", scale=3.0), guidance.get("apg")(**settings)), {}, {}
    for step, shrink in enumerate((1.0, 0.7, 0.4)):
        call, moment = situation(seed=11 * step, valid=valid)
        levels = {name: shrink * level for name, level in LEVELS.items()}
        call = replace(call, levels={name: shrink * level for name, level in call.levels.items()})
        moment = Moment(moment.x, levels, moment.counted, memory)
        for key, part in guide(ask, call, moment).items():
            for row, counted, v_c, v_u in branches(call, valid, key):
                x, t = moment.x[key][row][counted].flatten(), levels[key]
                d_c, d_u = x - t * v_c, x - t * v_u
                diff = d_c - d_u + beta * average.get((key, row), 0.0)
                average[key, row] = diff
                diff = diff * min(1.0, norm * math.sqrt(len(diff)) / float(diff.norm()))
                unit = d_c / d_c.norm()
                along = torch.dot(diff, unit) * unit
                guided = d_c + (3.0 - 1) * (diff - along + eta * along)
                same(part, row, counted, (x - guided) / t)


def local(streams, levels, text, cut):
    """A network in which no token hears of another; the caption moves each by its own amount."""
    said = text.tokens.double().sum(1).view(-1, 1, 1)
    found = {}
    for name, stream in streams.items():
        phase = torch.arange(stream.tokens[0].numel(), dtype=torch.float64).view(stream.tokens.shape[1:])
        found[name] = stream.tokens + torch.sin(phase + said)
    return found


MEASURED = [guidance.get("cfg_zero")(fitted=True), guidance.get("rescale")(0.7), example("apg")]


@pytest.mark.parametrize("part", MEASURED, ids=lambda part: part.name)
def test_given_tokens_count_in_no_norm_and_no_deviation(part):
    """Whatever stands in them: the others end as if they were zeros."""
    call, _ = situation()
    keep = torch.arange(5) < torch.tensor([[1], [3], [2]])
    sampler = Sampler(solvers.get("euler")(), steps=4, prediction="velocity", guidance=algebra(example("text"), part))

    def ended(tokens):
        clean = {"video": Clean(tokens, keep)}
        return sampler(local, call.streams, call.text, generators("s", 0, range(3)), clean)

    zeros = torch.zeros(3, 5, 6, dtype=torch.float64)
    quiet, loud = ended(zeros), ended(zeros + 100 * tensors(5, 3, 5, 6))
    torch.testing.assert_close(loud["video"][~keep], quiet["video"][~keep], atol=1e-10, rtol=0)
    assert torch.equal(loud["audio"], quiet["audio"])


# Laws of levels and weights by level


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.7, 0.5), (0.4, 1.7)])
def test_logit_normal_levels_have_its_distribution(mean, std):
    """P(t <= q) = Phi((logit(q) - mean) / std)."""
    t = level_laws.get("logit_normal")(mean=mean, std=std)(U)
    torch.testing.assert_close(torch.special.ndtr((torch.logit(t) - mean) / std), U, atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.8, 1.29])
def test_mode_levels_are_equation_20_of_their_paper(scale):
    """f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u) of a uniform u, which falls with u: its quantile at p is f(1 - p)."""
    found = level_laws.get("mode")(scale=scale)(U).tolist()
    wanted = [1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u) for u in (1 - U).tolist()]
    assert found == pytest.approx(wanted, abs=1e-12)


def test_uniform_levels_are_uniform():
    assert torch.equal(level_laws.get("uniform")()(U), U)


def test_cosmap_weights_are_the_density_of_the_cosine_map():
    """Its levels are ``t = 1 - 1 / (tan(pi u / 2) + 1)``, so that ``u = (2 / pi) atan(t / (1 - t))`` is their distribution."""
    t = U.clone().requires_grad_()
    (density,) = torch.autograd.grad((2 / math.pi * torch.atan(t / (1 - t))).sum(), t)
    torch.testing.assert_close(level_weights.get("cosmap")()(U), density)


def test_even_weights_are_one():
    assert torch.equal(level_weights.get("even")()(U), torch.ones_like(U))
