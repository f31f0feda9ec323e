"""Laws of path, levels, draws and objective."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_lab.flow import path
from nava_lab.flow.draws import Drawing
from nava_lab.flow.levels import shifted
from nava_lab.flow.objective import Objective
from nava_lab.registry import level_laws, level_weights, worlds
from nava_lab.rng import generators, uniform
from tests.laws.flows import tensors

seeds = st.integers(0, 2**31)
levels = st.floats(0.0, 1.0)


@given(seeds, levels)
def test_velocity_x0_and_eps_round_trip(seed, level):
    x0, eps, t = tensors(seed, 2, 3, 4), tensors(seed + 1, 2, 3, 4), torch.full((2,), level, dtype=torch.float64)
    x, v = path.interpolate(x0, eps, t), path.velocity(x0, eps)
    torch.testing.assert_close(path.x0_from_velocity(x, v, t), x0)
    torch.testing.assert_close(path.eps_from_velocity(x, v, t), eps)
    if 1 - level >= path.LEAST_LEVEL:
        torch.testing.assert_close(path.velocity_from_eps(x, eps, t), v)
        torch.testing.assert_close(path.as_velocity(eps, x, t, "eps"), path.as_velocity(v, x, t, "velocity"))
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


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=6, unique=True), seeds)
def test_draws_depend_on_neither_batch_nor_order(indices, seed):
    world = worlds.get("gaussian")(duration_s=0.4)
    drawing = replace(EVERYTHING, coupling="independent", modality_dropout=0.5)

    def draw(rows):
        return drawing(world.batch("train", torch.tensor(rows)).streams, generators("t", seed, rows))

    whole = draw(indices)
    for place, index in enumerate(indices):
        alone = draw([index])
        for key in whole.noise:
            assert torch.equal(alone.noise[key][0], whole.noise[key][place])
            assert torch.equal(alone.levels[key][0], whole.levels[key][place])
        assert alone.drop_text[0] == whole.drop_text[place]
        assert alone.cut[0] == whole.cut[place]


EVERYTHING = Drawing(
    text_dropout=0.3,
    modality_dropout=0.2,
    modality_given=0.4,
    first_step={"video": 0.25},
    continuation=0.35,
    shifts={"audio": 2.0},
)


def test_dropout_rates_are_exact_at_batch_size_one_and_whatever_the_split():
    """Each sample draws from its own generator: 2000 batches of one and one of 2000 (or a rank's share) realise the same."""
    world, count = worlds.get("gaussian")(duration_s=0.16), 2000
    streams = world.batch("train", torch.tensor([0])).streams
    alone = [EVERYTHING(streams, generators("t", 0, [index])) for index in range(count)]
    assert abs(sum(bool(draw.drop_text[0]) for draw in alone) / count - 0.3) < 0.04
    assert abs(sum(bool(draw.cut[0]) for draw in alone) / count - 0.2) < 0.04
    rank = range(1, count, 2)
    share = EVERYTHING(world.batch("train", torch.tensor(rank)).streams, generators("t", 0, rank))
    for place, index in enumerate(rank):
        assert share.drop_text[place] == alone[index].drop_text[0]
        assert share.cut[place] == alone[index].cut[0]
        assert all(torch.equal(share.clean[name][place], alone[index].clean[name][0]) for name in streams)
    mine = alone[1::2]
    realised = {name: sum(float(draw.rates()[name]) for draw in mine) / len(rank) for name in share.rates()}
    assert {name: float(rate) for name, rate in share.rates().items()} == pytest.approx(realised, abs=1e-6)
    wanted = {"text_dropped": 0.3, "modality_dropped": 0.2, "modality_given": 0.4, "first_step_video": 0.25, "continuation": 0.35}
    assert realised == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("count", [1, 9])
@given(seed=seeds)
def test_logged_rates_are_those_of_the_samples_that_are_given_something(count, seed):
    """Each way of giving alone, told from the clean tokens; beginnings may be too short to hold a token."""
    streams = worlds.get("gaussian")(duration_s=0.4).batch("train", torch.arange(count)).streams
    for drawing, name in (
        (Drawing(modality_given=0.5), "modality_given"),
        (Drawing(coupling="one_clean"), "modality_given"),
        (Drawing(first_step={"video": 0.5}), "first_step_video"),
    ):
        draws = drawing(streams, generators("t", seed, range(count)))
        touched = torch.stack([clean.view(count, -1).any(1) for clean in draws.clean.values()]).any(0)
        rates = {key: float(rate) for key, rate in draws.rates().items()}
        assert rates == {"text_dropped": float(draws.drop_text.float().mean()), name: float(touched.float().mean())}
    draws = Drawing(continuation=0.5)(streams, generators("t", seed, range(count)))
    assert not (draws.clean["video"].any(1) & ~draws.given["continuation"]).any()


@pytest.mark.parametrize("coupling", ["shared", "one_clean"])
def test_one_given_modality_is_any_with_equal_chance_and_the_other_stays_noisy(coupling):
    world = worlds.get("gaussian")(duration_s=0.16)
    drawing = Drawing(coupling=coupling, modality_given=0.5 if coupling == "shared" else 0.0)
    draws = drawing(world.batch("train", torch.arange(2000)).streams, generators("t", 0, range(2000)))
    video, audio = draws.clean["video"], draws.clean["audio"]
    assert not (video & audio).any()
    assert abs(float((video | audio).float().mean()) - drawing.given_rate) < 0.04
    assert abs(float(video.float().mean()) - drawing.given_rate / 2) < 0.04
    assert torch.equal(draws.levels["video"] == 0, video)
    assert torch.equal(draws.levels["audio"][~audio & ~video], draws.levels["video"][~audio & ~video])


def test_a_first_step_and_a_beginning_are_clean_and_nothing_later_is():
    world = worlds.get("pulse")(video_patch=8)
    streams = world.batch("train", torch.arange(64)).streams
    first = Drawing(first_step={"video": 1.0})(streams, generators("t", 0, range(64))).clean
    assert set(first) == {"video"}
    assert first["video"].sum(1).tolist() == [4] * 64  # one frame of 2 x 2 patches
    begun = Drawing(continuation=1.0)(streams, generators("t", 0, range(64)))
    for name, clean in begun.clean.items():
        assert not (clean[:, 1:] & ~clean[:, :-1]).any()
        assert not clean[:, -1].any()
        assert torch.equal(begun.levels[name] == 0, clean)
    until = [begun.clean[name].float().mean(1) for name in ("video", "audio")]
    assert (until[0] - until[1]).abs().max() < 0.06
    assert until[0].max() > 0.9
    assert until[0].min() < 0.1


@given(seeds, st.sampled_from([False, True]))
def test_only_noisy_tokens_are_in_the_loss_unless_asked(seed, clean_loss):
    world = worlds.get("gaussian")(duration_s=0.4)
    batch = world.batch("train", torch.arange(6))
    draws = EVERYTHING(batch.streams, generators("t", seed, range(6)))

    def network(streams, levels, text, cut):
        wrong = {}
        for name, stream in streams.items():
            clean = draws.clean[name]
            assert torch.equal(stream.tokens[clean], batch.streams[name].tokens[clean])
            right = batch.streams[name].tokens * 0 + draws.noise[name] - batch.streams[name].tokens
            wrong[name] = torch.where(clean.unsqueeze(-1), right + 10, right)
        return wrong

    losses = Objective("velocity", clean_loss=clean_loss).per_sample(network, batch, draws)
    for name, loss in losses.items():
        share = draws.clean[name].float().mean(1)
        torch.testing.assert_close(loss, 100 * share if clean_loss else torch.zeros(6), atol=1e-4, rtol=1e-5)


@given(seeds, st.floats(0.06, 1.0), st.floats(0.5, 10))
def test_min_snr_weights_the_loss_on_clean_tokens_as_its_paper_does(seed, level, gamma):
    x, x0, guess = tensors(seed, 1, 2, 3), tensors(seed + 1, 1, 2, 3), tensors(seed + 2, 1, 2, 3)
    t = torch.tensor([level], dtype=torch.float64)
    on_velocity = (path.velocity_from_x0(x, x0, t) - path.velocity_from_x0(x, guess, t)).square().mean()
    snr = ((1 - level) / level) ** 2
    weighted = level_weights.get("min_snr")(gamma)(t)[0] * on_velocity
    torch.testing.assert_close(weighted, min(snr, gamma) * (x0 - guess).square().mean())


def test_laws_that_are_wrong_are_refused():
    for wrong in ({"coupling": "loose"}, {"continuation": 1.5}, {"first_step": {"video": -1.0}}, {"shifts": {"audio": 0.0}}):
        with pytest.raises(ValueError, match=r"flow\."):
            Drawing(**wrong)
    with pytest.raises(ValueError, match=r"leave flow\.modality_given at 0"):
        Drawing(coupling="one_clean", modality_given=0.5)


@pytest.mark.parametrize("prediction", path.PREDICTIONS)
def test_a_perfect_network_has_no_loss(prediction):
    world = worlds.get("gaussian")(duration_s=0.4)
    batch = world.batch("train", torch.arange(8))
    draws = Drawing()(batch.streams, generators("t", 0, range(8)))
    draws = type(draws)({key: level.clamp(0.06, 0.94) for key, level in draws.levels.items()}, draws.noise, draws.drop_text, None)

    def network(streams, levels, text, cut):
        clean, noise = {key: batch.streams[key].tokens for key in streams}, draws.noise
        answers = {"x0": clean, "eps": noise, "velocity": {key: noise[key] - clean[key] for key in streams}}
        return answers[prediction]

    losses = Objective(prediction).per_sample(network, batch, draws)
    assert all(loss.max() < 1e-8 for loss in losses.values())


def test_uniform_numbers_are_uniform_and_independent_of_the_batch():
    numbers = uniform(7, torch.arange(20_000), 4)
    assert torch.equal(uniform(7, torch.tensor([123]), 4)[0], numbers[123])
    histogram = torch.histc(numbers.flatten(), 20, 0, 1) / numbers.numel() * 20
    assert (histogram - 1).abs().max() < 0.05
    correlation = torch.corrcoef(torch.cat((numbers[:-1].T, numbers[1:].T)))
    assert (correlation - torch.eye(8)).abs().max() < 0.03


def wrong_by(amounts, streams, draws):
    """A network whose squared velocity error is ``amounts`` (one per sample) in every modality."""
    right = {name: draws.noise[name] - stream.tokens for name, stream in streams.items()}
    root = amounts.sqrt().view(-1, 1, 1)
    return lambda *_: {name: part + root for name, part in right.items()}


@pytest.mark.parametrize("drawing", [Drawing(coupling="one_clean"), Drawing(modality_given=0.6)], ids=["one_clean", "given"])
@given(seed=seeds, size=st.integers(1, 6))
def test_the_loss_is_the_mean_over_samples_with_noisy_tokens_whatever_is_given(drawing, seed, size):
    """A modality that is given in some samples keeps its weight; the mean is over one batch or over two processes' shares."""
    batch = worlds.get("gaussian")(duration_s=0.16).batch("train", torch.arange(size))
    draws, amounts = drawing(batch.streams, generators("t", seed, range(size))), torch.arange(1.0, size + 1)
    objective = Objective("velocity")
    losses = objective.per_sample(wrong_by(amounts, batch.streams, draws), batch, draws)
    counts, means = objective.counts(batch, draws), objective.means(losses, objective.counts(batch, draws))
    for name, mean in means.items():
        noisy = ~draws.clean[name]
        assert float(counts[name]) == int(noisy.sum())
        torch.testing.assert_close(mean, amounts[noisy].mean() if noisy.any() else torch.zeros(()), atol=1e-4, rtol=1e-4)
        average = {name: counts[name] / 2}  # of two processes, each with a share of the samples
        shares = [objective.means({name: part}, average)[name] for part in (losses[name][:1], losses[name][1:])]
        torch.testing.assert_close(sum(shares) / 2, mean)
    torch.testing.assert_close(objective.total(losses, counts), sum(means.values()) / 2)


def test_a_batch_in_which_nothing_is_noisy_has_no_loss_and_no_gradient():
    batch = worlds.get("gaussian")(duration_s=0.16).batch("train", torch.arange(3))
    draws = Drawing(modality_given=1.0)(batch.streams, generators("t", 0, range(3)))
    everything = torch.ones(3, dtype=torch.bool)
    draws = replace(draws, clean=dict.fromkeys(batch.streams, everything), levels=dict.fromkeys(batch.streams, torch.zeros(3)))
    weight, objective = torch.ones((), requires_grad=True), Objective()
    losses = objective.per_sample(lambda x, *_: {n: weight * s.tokens + weight for n, s in x.items()}, batch, draws)
    loss = objective.total(losses, objective.counts(batch, draws))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(weight.grad) == 0


@pytest.mark.parametrize("drawing", [Drawing(coupling="one_clean"), EVERYTHING, Drawing(coupling="independent")])
def test_a_comparable_loss_has_every_token_noisy(drawing):
    streams = worlds.get("gaussian")(duration_s=0.16).batch("test", torch.arange(64)).streams
    draws = drawing.plain()(streams, generators("t", 0, range(64)))
    assert not draws.clean
    assert all((level > 0).all() for level in draws.levels.values())
    assert not draws.drop_text.any()


def test_a_negative_loss_weight_is_refused():
    for wrong in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"flow\.weights\.audio=.* must be at least 0"):
            Objective(weights={"audio": wrong})
