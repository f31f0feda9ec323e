"""Laws of solvers and schedules, for whatever is registered. A new solver is one file; these tests find it."""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_lab.flow import path
from nava_lab.flow.draws import noise_like
from nava_lab.flow.levels import shifted
from nava_lab.flow.sampling import Clean, Sampler
from nava_lab.flow.solvers.base import Solver, noisier
from nava_lab.registry import schedules, solvers, worlds
from nava_lab.rng import generators
from tests.laws.flows import coupled, every_solver, gaussian, point_mass, row, tensors

seeds = st.integers(0, 2**31)
SOLVERS = every_solver()
LABELS = [label for label, _, _ in SOLVERS]
each = pytest.mark.parametrize("solver", [solver for _, solver, _ in SOLVERS], ids=LABELS)
deterministic = pytest.mark.parametrize("solver", [solver.deterministic() for _, solver, _ in SOLVERS], ids=LABELS)


def uniform(steps, shift=1.0, **_):
    return shifted(schedules.get("uniform")()(steps), shift)


def slope(solver, start=0.9, end=0.1, counts=(24, 48, 96)):
    mean, variance = tensors(0, 5), tensors(1, 5).exp()
    velocity, exact = gaussian(mean, variance)
    x, errors = tensors(2, 4, 3, 5), []
    for steps in counts:
        found = solver({"x": x}, {"x": row(start, end, steps)}, velocity)["x"]
        errors.append(float((found - exact(x, start, end)).abs().max()))
    return float(-torch.tensor(errors).log2().diff().mean())


@pytest.mark.parametrize(("solver", "order"), [(s.deterministic(), order) for _, s, order in SOLVERS], ids=LABELS)
class TestOrder:
    def test_on_the_gaussian_flow(self, solver, order):
        assert slope(solver) >= order - 0.2

    def test_of_modalities_that_depend_on_each_other_at_unequal_levels(self, solver, order):
        """Schedules in a straight line of each other, against a much finer solution of another solver."""
        velocity, x = coupled(), {"video": tensors(2, 2, 3, 5), "audio": tensors(3, 2, 4, 5)}

        def ended(by, steps):
            return by(x, {"video": row(0.9, 0.3, steps), "audio": row(0.7, 0.1, steps)}, velocity)

        truth, errors = ended(solvers.get("rk4")(), 768), []
        for steps in (12, 24, 48):
            found = ended(solver, steps)
            errors.append(max(float((found[name] - truth[name]).abs().max()) for name in x))
        assert float(-torch.tensor(errors).log2().diff().mean()) >= order - 0.25

    def test_from_pure_noise_down_to_level_0(self, solver, order):
        """At the order that the solver declares for it. Multistep ones need more steps to show theirs: lambda runs to infinity."""
        order = order if solver.order_to_0 is None else min(order, solver.order_to_0)
        assert slope(solver, 1.0, 0.0, (128, 256, 512)) >= order - 0.2

    def test_no_order_is_given_away(self, solver, order):
        """A solver that declares less than its order down to level 0 has no more."""
        if solver.order_to_0 is not None and solver.order_to_0 < order:
            assert slope(solver, 1.0, 0.0, (128, 256, 512)) < solver.order_to_0 + 0.5


@deterministic
@given(seeds, st.integers(1, 12), st.floats(0.3, 5))
def test_a_point_mass_is_met_exactly(solver, seed, steps, shift):
    point = tensors(seed, 5)
    x = {"x": tensors(seed + 1, 2, 3, 5)}
    end = solver(x, {"x": uniform(steps, shift)}, point_mass(point))
    torch.testing.assert_close(end["x"], point.expand(2, 3, 5), atol=1e-9, rtol=1e-9)


@given(seeds)
def test_euler_meets_a_point_mass_in_one_step(seed):
    x, point = tensors(seed, 1, 2, 3), tensors(seed + 1, 3)
    end = solvers.get("euler")()({"x": x}, {"x": row(1.0, 0.0, 1)}, point_mass(point))["x"]
    torch.testing.assert_close(end, point.expand(1, 2, 3), atol=1e-15, rtol=1e-15)


@given(seeds, st.integers(1, 20), st.floats(0.2, 6))
def test_dpmpp_of_order_1_is_euler(seed, steps, shift):
    velocity, _ = gaussian(tensors(seed, 5), tensors(seed + 1, 5).exp())
    x, levels = {"x": tensors(seed + 2, 2, 3, 5)}, {"x": uniform(steps, shift)}
    first, euler = solvers.get("dpmpp")(steps_used=1), solvers.get("euler")()
    assert torch.equal(first(x, levels, velocity)["x"], euler(x, levels, velocity)["x"])


@given(seeds, st.integers(2, 12))
def test_the_second_order_of_dpmpp_is_algorithm_2_of_its_paper(seed, steps):
    """Written again in the paper's own symbols: alpha, sigma, lambda, the exponential."""
    velocity, _ = gaussian(tensors(seed, 5), tensors(seed + 1, 5).exp())
    x, levels = tensors(seed + 2, 1, 2, 5), row(0.95, 0.05, steps)
    lam, plain, before = ((1 - levels) / levels).log(), x, None
    for i in range(steps):
        t, goal = float(levels[i]), float(levels[i + 1])
        clean = plain - t * velocity({"x": plain}, {"x": t})["x"]
        h = lam[i + 1] - lam[i]
        r = (lam[i] - lam[i - 1]) / h if i else None
        d = clean if before is None else (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * before
        plain, before = (goal / t) * plain - (1 - goal) * torch.expm1(-h) * d, clean
    torch.testing.assert_close(solvers.get("dpmpp")()({"x": x}, {"x": levels}, velocity)["x"], plain)


def rounded(velocity):
    """As a network in bf16 answers."""
    return lambda x, levels: {name: part.bfloat16().double() for name, part in velocity(x, levels).items()}


@deterministic
@given(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=10, unique=True),
    st.integers(0, 9),
    st.floats(1e-9, 1e-2),
    st.booleans(),
)
def test_any_falling_row_is_walked_about_as_well_as_by_euler(solver, inner, place, gap, rough):
    """Levels anywhere, two of them as close as can be: a solver that remembers must not blow up what lies in the gap."""
    velocity, exact = gaussian(tensors(0, 5), tensors(1, 5).exp())
    x, levels = tensors(2, 4, 3, 5), sorted({1.0, *inner, inner[place % len(inner)] * (1 - gap), 0.0}, reverse=True)
    row, velocity = torch.tensor(levels, dtype=torch.float64), rounded(velocity) if rough else velocity
    truth = exact(x, 1.0, 0.0)
    error, euler = (float((s({"x": x}, {"x": row}, velocity)["x"] - truth).abs().max()) for s in (solver, solvers.get("euler")()))
    assert error < 2 * max(euler, 0.2)


MULTISTEP = [(label, solver) for label, solver, _ in SOLVERS if solver.whole_only]


@pytest.mark.parametrize("solver", [solver for _, solver in MULTISTEP], ids=[label for label, _ in MULTISTEP])
@pytest.mark.parametrize("rough", [False, True], ids=["exact", "rounded"])
def test_a_tiny_gap_throws_no_solver_off_that_remembers(solver, rough):
    velocity, exact = gaussian(tensors(0, 5), tensors(1, 5).exp())
    velocity, x = rounded(velocity) if rough else velocity, tensors(2, 4, 3, 5)

    def error(by, row):
        row = torch.tensor(row, dtype=torch.float64)
        return float((by({"x": x}, {"x": row}, velocity)["x"] - exact(x, 1.0, 0.0)).abs().max())

    for gap in (1e-2, 1e-3, 1e-4, 1e-6):
        row = [1, 0.8, 0.6, 0.5, 0.5 - gap, 0.3, 0.15, 0]
        assert error(solver, row) < 1.02 * error(solvers.get("euler")(), row)


@pytest.mark.parametrize(
    "solver", [s.deterministic() for _, s, _ in SOLVERS if not s.whole_only], ids=[n for n, s, _ in SOLVERS if not s.whole_only]
)
@given(st.integers(1, 11))
def test_two_intervals_are_the_whole(solver, cut):
    velocity, _ = gaussian(tensors(0, 5), tensors(1, 5).exp())
    levels, x = uniform(12, 2.0), {"x": tensors(2, 1, 3, 5)}
    whole = solver(x, {"x": levels}, velocity)["x"]
    halves = solver(solver(x, {"x": levels[: cut + 1]}, velocity), {"x": levels[cut:]}, velocity)["x"]
    assert torch.equal(halves, whole)


@each
@given(st.integers(1, 9), st.sampled_from(schedules.names()), st.floats(0.3, 5))
def test_evaluations_are_counted_and_levels_end_at_0(solver, steps, name, shift):
    schedule = schedules.get(name)()
    levels = {"video": shifted(schedule(steps), shift), "audio": schedule(steps)}
    velocity, asked = coupled(), []

    def counted(x, at):
        asked.append(at)
        return velocity(x, at)

    x = {"video": tensors(2, 2, 3, 5), "audio": tensors(3, 2, 4, 5)}
    solver(x, levels, counted, generators("s", 0, range(2)))
    assert len(asked) == solver.evaluations(levels)
    assert asked == solver.calls(levels)
    assert asked[0] == {name: float(levels[name][0]) for name in x}
    assert all(0 < at[name] <= 1 for at in asked for name in x)
    assert all(float(levels[name][-1]) == 0.0 for name in x)


EVALUATIONS = {"euler": 10, "heun": 19, "midpoint": 20, "rk4": 39, "dpmpp": 10, "unipc": 10, "churn": 19, "sde": 10}


@pytest.mark.parametrize("name", sorted(EVALUATIONS))
def test_known_counts_of_ten_steps(name):
    assert solvers.get(name)().evaluations({"x": uniform(10)}) == EVALUATIONS[name]


@each
@given(seeds, st.integers(1, 6))
def test_a_clean_modality_comes_back_to_the_bit_and_is_shown_at_level_0(solver, seed, steps):
    velocity, asked = coupled(), []

    def watched(x, at):
        asked.append((at["audio"], x["audio"]))
        return velocity(x, at)

    x = {"video": tensors(seed, 2, 3, 5), "audio": -torch.zeros(2, 4, 5, dtype=torch.float64) + tensors(seed + 1, 2, 4, 5)}
    levels = {"video": uniform(steps), "audio": torch.zeros(steps + 1, dtype=torch.float64)}
    found = solver(x, levels, watched, generators("s", seed, range(2)))
    assert torch.equal(found["audio"], x["audio"])
    assert not torch.equal(found["video"], x["video"])
    assert all(level == 0 and torch.equal(shown, x["audio"]) for level, shown in asked)


@each
@given(seeds)
def test_levels_of_modalities_do_not_mix(solver, seed):
    """Where the field does not couple them, a modality ends where it would end alone, whatever the other's schedule."""
    velocity, _ = gaussian(tensors(seed, 5), tensors(seed + 1, 5).exp())
    x = {"video": tensors(seed + 2, 2, 3, 5), "audio": tensors(seed + 3, 2, 4, 5)}
    rows = {"video": uniform(6, 3.0), "audio": torch.cat((torch.ones(2), torch.linspace(1, 0, 3), torch.zeros(2))).double()}
    solver = solver.deterministic()
    both = solver(x, rows, velocity)
    for name in x:
        alone = solver({name: x[name]}, {name: rows[name]}, velocity)[name]
        torch.testing.assert_close(both[name], alone, atol=1e-12, rtol=0)


@each
def test_a_modality_that_stands_still_keeps_its_bits(solver):
    velocity, x = coupled(), {"video": tensors(0, 2, 3, 5), "audio": -torch.zeros(2, 4, 5, dtype=torch.float64)}
    rows = {"video": row(0.8, 0.4, 3), "audio": torch.full((4,), 0.6, dtype=torch.float64)}
    found = solver.deterministic()(x, rows, velocity)["audio"]
    assert torch.equal(found, x["audio"])
    assert torch.signbit(found).all()


@each
@given(seeds, st.permutations(range(4)))
def test_neither_batch_nor_order_matters(solver, seed, order):
    velocity = coupled()
    rows = {"video": uniform(4, 3.0), "audio": uniform(4)}
    x = {"video": tensors(seed, 4, 3, 5), "audio": tensors(seed + 1, 4, 4, 5)}
    whole = solver(x, rows, velocity, generators("s", seed, range(4)))
    moved = solver({name: part[order] for name, part in x.items()}, rows, velocity, generators("s", seed, order))
    for place, index in enumerate(order):
        alone = solver({name: part[[index]] for name, part in x.items()}, rows, velocity, generators("s", seed, [index]))
        for name in x:
            assert torch.equal(moved[name][place], whole[name][index])
            assert torch.equal(alone[name][0], whole[name][index])


STOCHASTIC = [(label, solver) for label, solver, _ in SOLVERS if solver.deterministic() != solver]
stochastic = pytest.mark.parametrize("solver", [solver for _, solver in STOCHASTIC], ids=[label for label, _ in STOCHASTIC])


@stochastic
@given(seeds, st.integers(1, 9), st.floats(0.3, 4))
def test_without_noise_the_sde_is_the_ode(solver, seed, steps, shift):
    velocity, _ = gaussian(tensors(seed, 5), tensors(seed + 1, 5).exp())
    x, rows = {"x": tensors(seed + 2, 2, 3, 5)}, {"x": uniform(steps, shift)}
    off = solver.deterministic()
    assert torch.equal(off(x, rows, velocity)["x"], off.twin()(x, rows, velocity)["x"])
    if steps > 2:
        assert not torch.equal(solver(x, rows, velocity, generators("s", seed, range(2)))["x"], off(x, rows, velocity)["x"])


@stochastic
@pytest.mark.parametrize("count", [0, 1, 3])
def test_noise_without_a_generator_for_each_sample_is_refused(solver, count):
    velocity, x = gaussian(tensors(0, 5), tensors(1, 5).exp())[0], {"x": tensors(2, 2, 3, 5)}
    with pytest.raises(ValueError, match=rf"2 samples of x needs as many generators, not {count}"):
        solver(x, {"x": uniform(4)}, velocity, generators("s", 0, range(count)))
    with pytest.raises(ValueError, match="as many generators"):
        noise_like(small()[0], generators("s", 0, range(count)))


@stochastic
def test_noise_keeps_the_data_s_distribution(solver):
    """Mean and deviation of many samples, whose exact values are known; the same draws without churn miss neither."""
    mean, variance = torch.tensor([0.7, -0.3], dtype=torch.float64), torch.tensor([0.25, 2.0], dtype=torch.float64)
    velocity, _ = gaussian(mean, variance)
    x = {"x": tensors(0, 2, 20_000, 2)}
    found = solver(x, {"x": uniform(160)}, velocity, generators("s", 0, range(2)))["x"].reshape(-1, 2)
    torch.testing.assert_close(found.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(found.var(0), variance, atol=0.0, rtol=0.06)


@given(seeds, st.floats(0.05, 0.9), st.floats(0.01, 0.99))
def test_mixing_noise_in_lands_on_the_path(seed, level, share):
    """Variance of data and noise after renoising are (1 - t)^2 and t^2 of the higher level."""
    raised = level + share * (1 - level)
    kept = float(path.renoised(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), level, raised))
    fresh = float(path.renoised(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), level, raised))
    assert kept * (1 - level) == pytest.approx(1 - raised, abs=1e-12)
    assert (kept * level) ** 2 + fresh**2 == pytest.approx(raised**2, abs=1e-12)
    same = noisier({"x": tensors(seed, 1, 2, 3)}, {"x": level}, {"x": level}, lambda state: {})
    assert torch.equal(same["x"], tensors(seed, 1, 2, 3))


@pytest.mark.parametrize("name", schedules.names())
@given(st.integers(1, 40))
def test_a_schedule_falls_from_1_to_exactly_0(name, steps):
    found = schedules.get(name)()(steps)
    assert len(found) == steps + 1
    assert found[0] == 1
    assert found[-1] == 0
    assert (found.diff() < 0).all()


def test_the_listed_levels_are_met_and_any_number_of_steps_is_spread_over_them():
    custom = schedules.get("custom")
    assert custom([1.0, 0.4, 0.0])(4).tolist() == pytest.approx([1.0, 0.7, 0.4, 0.2, 0.0])
    assert custom([1.0, 0.4, 0.0])(3).tolist() == pytest.approx([1.0, 0.6, 0.8 / 3, 0.0])
    assert custom([1.0, 0.4, 0.0])(1).tolist() == [1.0, 0.0]
    places = torch.linspace(0, 2, 26)
    expected = torch.where(places < 1, 1 - 0.6 * places, 0.4 * (2 - places)).double()
    torch.testing.assert_close(custom([1.0, 0.4, 0.0])(25), expected, atol=1e-6, rtol=0)
    levels = [1.0, 0.83, 0.31, 0.0]
    parts = [high + (low - high) * torch.arange(7).double() / 7 for high, low in itertools.pairwise(levels)]
    assert torch.equal(custom(levels)(21)[:-1], torch.cat(parts))  # each interval by itself, to the bit
    for levels in ([1.0], [1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [0.9, 0.0]):
        with pytest.raises(ValueError, match="must fall"):
            custom(levels)


@pytest.mark.parametrize(
    ("levels", "complaint"),
    [([0.0, 1.0], "must fall"), ([1.0, 0.5, 0.6], "must fall"), ([1.2, 0.0], "between 0 and 1"), ([math.nan, 0.0], "between")],
)
def test_rows_that_are_no_way_to_the_data_are_refused(levels, complaint):
    with pytest.raises(ValueError, match=complaint):
        solvers.get("euler")()({"x": torch.zeros(1, 1, 1)}, {"x": torch.tensor(levels, dtype=torch.float64)}, lambda x, t: x)


def test_rows_of_other_modalities_or_lengths_are_refused():
    euler, x = solvers.get("euler")(), {"x": torch.zeros(1, 1, 1), "y": torch.zeros(1, 1, 1)}
    with pytest.raises(ValueError, match="are given for x, tokens for x, y"):
        euler(x, {"x": row(1, 0, 2)}, lambda x, t: x)
    with pytest.raises(ValueError, match="one length"):
        euler(x, {"x": row(1, 0, 2), "y": row(1, 0, 3)}, lambda x, t: x)


@each
def test_a_solver_holds_settings_and_no_state(solver):
    with pytest.raises(AttributeError):
        solver.anything = 1
    assert hash(solver) == hash(
        type(solver)(**{name: getattr(solver, name) for name in inspect.signature(type(solver)).parameters})
    )
    assert isinstance(solver, Solver)


@given(st.floats(1e-12, 1 - 1e-12))
def test_half_log_snr_is_safe_at_both_ends(level):
    assert path.half_log_snr(0.0) == math.inf
    assert path.half_log_snr(1.0) == -math.inf
    assert path.half_log_snr(level) == pytest.approx(-path.half_log_snr(1 - level), abs=1e-3)
    assert 1 / (1 + math.exp(path.half_log_snr(level))) == pytest.approx(level, rel=1e-9)


# The sampler: a solver with a network


def echo(streams, levels, text, cut):
    """A network whose output depends on tokens, levels (per sample or token) and nothing of other samples."""
    total = sum(stream.tokens.mean((1, 2)) for stream in streams.values())
    found = {}
    for name, stream in streams.items():
        level = levels[name].unsqueeze(-1) if levels[name].ndim == 1 else levels[name]
        found[name] = stream.tokens.tanh() * level.unsqueeze(-1) + total.view(-1, 1, 1)
    return found


def small():
    batch = worlds.get("gaussian")(duration_s=0.4).batch("test", torch.arange(5))
    return batch.streams, batch.text


@each
def test_sampling_does_not_depend_on_the_batch_split(solver):
    streams, text = small()
    sampler = Sampler(solver=solver, steps=4, shifts={"audio": 3.0})
    whole = sampler(echo, streams, text, generators("s", 0, range(5)))
    for index in range(5):
        one = {key: stream.rows(slice(index, index + 1)) for key, stream in streams.items()}
        alone = sampler(echo, one, text.rows(slice(index, index + 1)), generators("s", 0, [index]))
        for key in whole:
            torch.testing.assert_close(alone[key][0], whole[key][index], atol=1e-6, rtol=0)


@each
@given(seeds)
def test_clean_tokens_are_shown_clean_and_come_back_to_the_bit(solver, seed):
    streams, text = small()
    tokens = {name: tensors(seed, *stream.tokens.shape).float() for name, stream in streams.items()}
    keep = torch.rand(5, 5, generator=torch.Generator().manual_seed(seed)) < 0.5
    clean = {"video": Clean(tokens["video"], keep), "audio": Clean(tokens["audio"])}
    shown = []

    def watching(streams, levels, text, cut):
        shown.append((streams["video"].tokens[keep], levels["video"][keep], streams["audio"].tokens, levels["audio"]))
        return echo(streams, levels, text, cut)

    found = Sampler(solver=solver, steps=3)(watching, streams, text, generators("s", seed, range(5)), clean)
    assert torch.equal(found["video"][keep], tokens["video"][keep])
    assert torch.equal(found["audio"], tokens["audio"])
    assert not torch.equal(found["video"][~keep], tokens["video"][~keep])
    for video, level, audio, audio_level in shown:
        assert torch.equal(video, tokens["video"][keep])
        assert torch.equal(audio, tokens["audio"])
        assert not level.any()
        assert not audio_level.any()


def test_a_shift_is_applied_once_and_to_its_modality():
    rows = Sampler(steps=8, shift=2.0, shifts={"audio": 5.0}).rows(("video", "audio"))
    torch.testing.assert_close(rows["video"], shifted(uniform(8), 2.0))
    torch.testing.assert_close(rows["audio"], shifted(uniform(8), 5.0))


def test_the_sampler_counts_what_it_asks_of_the_network():
    streams, text = small()
    calls = []

    def counting(streams, levels, text, cut):
        calls.append(len(text.tokens))
        return echo(streams, levels, text, cut)

    for _, solver, _ in SOLVERS:
        calls.clear()
        sampler = Sampler(solver=solver, steps=5)
        sampler(counting, streams, text, generators("s", 0, range(5)))
        assert sum(calls) == 5 * sampler.evaluations(tuple(streams))
