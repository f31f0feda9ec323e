"""Laws of path, levels, draws, objective and solvers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_lab.flow import path
from nava_lab.flow.draws import Drawing
from nava_lab.flow.levels import shifted
from nava_lab.flow.objective import Objective
from nava_lab.flow.sampling import Sampler
from nava_lab.flow.solvers import level_schedule
from nava_lab.registry import level_laws, solvers, worlds
from nava_lab.rng import generators, uniform

seeds = st.integers(0, 2**31)
levels = st.floats(0.0, 1.0)
# Least order that each solver must show; a solver that is not named here must at least be of order 1.
ORDERS = {"heun": 2.0}


def tensors(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds, levels)
def test_velocity_x0_and_eps_round_trip(seed, level):
    x0, eps, t = tensors(seed, 2, 3, 4), tensors(seed + 1, 2, 3, 4), torch.full((2,), level, dtype=torch.float64)
    x, v = path.interpolate(x0, eps, t), path.velocity(x0, eps)
    torch.testing.assert_close(path.x0_from_velocity(x, v, t), x0)
    torch.testing.assert_close(path.eps_from_velocity(x, v, t), eps)
    if level >= path.LEAST_LEVEL:
        torch.testing.assert_close(path.velocity_from_x0(x, x0, t), v)
        torch.testing.assert_close(path.as_velocity(x0, x, t, "x0"), path.as_velocity(v, x, t, "velocity"))


@given(seeds)
def test_levels_per_token_are_levels_per_sample(seed):
    x0, eps = tensors(seed, 2, 3, 4), tensors(seed + 1, 2, 3, 4)
    t = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.equal(path.interpolate(x0, eps, t), path.interpolate(x0, eps, t.unsqueeze(-1).expand(2, 3)))


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_shifts_compose_and_keep_the_ends(first, second):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shifted(shifted(t, first), second), shifted(t, first * second))
    torch.testing.assert_close(shifted(t, first)[[0, -1]], t[[0, -1]])


@pytest.mark.parametrize("name", level_laws.names())
def test_a_law_rises_from_0_to_1_and_its_shift_is_applied_once(name):
    u = torch.linspace(0.001, 0.999, 201, dtype=torch.float64)
    law, strong = level_laws.get(name)(), level_laws.get(name)(shift=3.0)
    assert (law(u).diff() > 0).all()
    assert ((law(u) >= 0) & (law(u) <= 1)).all()
    torch.testing.assert_close(strong(u), shifted(law(u), 3.0))


def flow_of(mean, variance):
    """The exact velocity field of data N(mean, diag(variance)), and where it carries noise."""

    def velocity(x, t):
        seen = (1 - t) ** 2 * variance + t**2
        return {"x": -mean + (t - (1 - t) * variance) / seen * (x["x"] - (1 - t) * mean)}

    def exact(x, start, end):
        scale = ((1 - end) ** 2 * variance + end**2) / ((1 - start) ** 2 * variance + start**2)
        return (1 - end) * mean + scale.sqrt() * (x - (1 - start) * mean)

    return velocity, exact


@pytest.mark.parametrize("name", solvers.names())
def test_order_of_convergence_on_the_gaussian_flow(name):
    mean, variance = tensors(0, 5), tensors(1, 5).exp()
    velocity, exact = flow_of(mean, variance)
    x, solver = tensors(2, 4, 3, 5), solvers.get(name)()
    counts, errors = [16, 32, 64, 128], []
    for steps in counts:
        row = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        errors.append(float((solver({"x": x}, row, velocity)["x"] - exact(x, 0.9, 0.1)).abs().max()))
    slope = -torch.tensor(errors).log().diff().mean() / torch.tensor(2.0).log()
    assert slope >= ORDERS.get(name, 1.0) - 0.2


@pytest.mark.parametrize("name", solvers.names())
@given(seeds, st.integers(1, 12), st.floats(0.3, 5))
def test_solvers_end_exactly_on_a_point_mass(name, seed, steps, shift):
    point = tensors(seed, 5)
    end = solvers.get(name)()(
        {"x": tensors(seed + 1, 2, 3, 5)}, level_schedule(steps, shift), lambda x, t: {"x": (x["x"] - point) / t}
    )
    torch.testing.assert_close(end["x"], point.expand(2, 3, 5), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", solvers.names())
def test_intervals_compose_and_evaluations_are_counted(name):
    velocity, _ = flow_of(tensors(0, 5), tensors(1, 5).exp())
    solver, calls = solvers.get(name)(), []

    def counted(x, t):
        calls.append(t)
        return velocity(x, t)

    row, x = level_schedule(8, 2.0), {"x": tensors(2, 1, 3, 5)}
    whole = solver(x, row, counted)["x"]
    assert len(calls) == solver.evaluations(8)
    assert row[-1] == 0
    halves = solver(solver(x, row[:5], velocity), row[4:], velocity)["x"]
    torch.testing.assert_close(halves, whole)


def test_levels_must_fall():
    with pytest.raises(ValueError, match="must fall"):
        solvers.get("euler")()({"x": torch.zeros(1, 1, 1)}, torch.tensor([0.0, 1.0]), lambda x, t: x)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=6, unique=True), seeds)
def test_draws_depend_on_neither_batch_nor_order(indices, seed):
    world = worlds.get("gaussian")(duration_s=0.4)
    drawing = Drawing(coupling="independent", modality_dropout=0.5)

    def draw(rows):
        return drawing(world.batch("train", torch.tensor(rows)).streams, generators("t", seed, rows))

    whole = draw(indices)
    for place, index in enumerate(indices):
        alone = draw([index])
        for key in whole.noise:
            assert torch.equal(alone.noise[key][0], whole.noise[key][place])
            assert alone.levels[key][0] == whole.levels[key][place]
        assert alone.drop_text[0] == whole.drop_text[place]
        assert alone.cut[0] == whole.cut[place]


def test_dropout_rates_are_exact_at_batch_size_one():
    world = worlds.get("gaussian")(duration_s=0.08)
    drawing = Drawing(text_dropout=0.3, modality_dropout=0.2)
    streams = world.batch("train", torch.tensor([0])).streams
    draws = [drawing(streams, generators("t", 0, [index])) for index in range(2000)]
    assert abs(sum(bool(draw.drop_text[0]) for draw in draws) / 2000 - 0.3) < 0.04
    assert abs(sum(bool(draw.cut[0]) for draw in draws) / 2000 - 0.2) < 0.04


@pytest.mark.parametrize("prediction", path.PREDICTIONS)
def test_a_perfect_network_has_no_loss(prediction):
    world = worlds.get("gaussian")(duration_s=0.4)
    batch = world.batch("train", torch.arange(8))
    draws = Drawing()(batch.streams, generators("t", 0, range(8)))
    draws = type(draws)({key: level.clamp(min=0.06) for key, level in draws.levels.items()}, draws.noise, draws.drop_text, None)

    def network(streams, levels, text, cut):
        clean = {key: batch.streams[key].tokens for key in streams}
        return clean if prediction == "x0" else {key: draws.noise[key] - clean[key] for key in streams}

    losses = Objective(prediction).per_sample(network, batch, draws)
    assert all(loss.max() < 1e-8 for loss in losses.values())


@pytest.mark.parametrize("name", solvers.names())
def test_sampling_does_not_depend_on_the_batch_split(name):
    world = worlds.get("gaussian")(duration_s=0.4)
    batch = world.batch("test", torch.arange(5))

    def network(streams, levels, text, cut):
        return {key: stream.tokens.tanh() * levels[key].view(-1, 1, 1) for key, stream in streams.items()}

    sampler = Sampler(solver=solvers.get(name)(), steps=4)
    whole = sampler(network, batch.streams, batch.text, generators("s", 0, range(5)))
    for row in range(5):
        one = {key: stream.rows(slice(row, row + 1)) for key, stream in batch.streams.items()}
        alone = sampler(network, one, batch.text.rows(slice(row, row + 1)), generators("s", 0, [row]))
        for key in whole:
            assert torch.equal(alone[key][0], whole[key][row])


def test_uniform_numbers_are_uniform_and_independent_of_the_batch():
    numbers = uniform(7, torch.arange(20_000), 4)
    assert torch.equal(uniform(7, torch.tensor([123]), 4)[0], numbers[123])
    histogram = torch.histc(numbers.flatten(), 20, 0, 1) / numbers.numel() * 20
    assert (histogram - 1).abs().max() < 0.05
    correlation = torch.corrcoef(torch.cat((numbers[:-1].T, numbers[1:].T)))
    assert (correlation - torch.eye(8)).abs().max() < 0.03
