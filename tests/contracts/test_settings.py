"""No dead knobs outside variants and worlds: every setting of the objective, the sampler and attention changes a result."""

import dataclasses

import pytest
import torch

from nava_lab.attention import Cut
from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.objective import Objective
from nava_lab.flow.sampling import Sampler
from nava_lab.registry import guidance, level_laws, level_weights, masks, schedules, solvers, variants
from nava_lab.rng import generators
from nava_lab.streams import Batch
from nava_lab.training.settings import Training
from tests.conftest import Inputs, lively

MODEL = lively(variants.get("unified")(depth=2))


def loss(drawing, objective, model=MODEL):
    inputs = Inputs(16)
    batch = Batch(inputs.streams, inputs.text, torch.arange(16))
    return objective.total(objective.per_sample(model, batch, drawing(batch.streams, generators("t", 0, range(16)))))


@pytest.mark.parametrize(
    "change",
    [
        {"coupling": "independent"},
        {"coupling": "one_clean"},
        {"text_dropout": 0.9},
        {"modality_dropout": 0.9},
        {"levels": level_laws.get("uniform")()},
        {"shifts": {"audio": 3.0}},
        {"modality_given": 0.9},
        {"first_step": {"video": 0.9}},
        {"continuation": 0.9},
    ],
)
def test_every_law_of_the_draws_changes_the_loss(change):
    assert loss(Drawing(), Objective()) != loss(dataclasses.replace(Drawing(), **change), Objective())


@pytest.mark.parametrize("name", level_laws.names())
def test_every_field_of_a_level_law_changes_the_levels(name):
    law, u = level_laws.get(name)(), torch.rand(64, generator=torch.Generator().manual_seed(0))
    for field in dataclasses.fields(law):
        changed = dataclasses.replace(law, **{field.name: getattr(law, field.name) * 0.5 + 0.3})
        assert not torch.allclose(law(u), changed(u)), field.name


def test_prediction_and_weights_change_the_loss():
    base = loss(Drawing(), Objective())
    assert base != loss(Drawing(), Objective(prediction="velocity"))
    assert base != loss(Drawing(), Objective(weights={"audio": 0.2}))


def test_clean_tokens_count_in_the_loss_only_where_asked():
    given = Drawing(first_step={"video": 1.0})
    assert loss(given, Objective()) != loss(given, Objective(clean_loss=True))
    assert loss(Drawing(), Objective()) == loss(Drawing(), Objective(clean_loss=True))


@pytest.mark.parametrize("name", level_weights.names())
def test_every_level_weight_and_its_fields_change_the_loss(name):
    weight = level_weights.get(name)()
    if name != "even":
        assert loss(Drawing(), Objective(weighting=weight)) != loss(Drawing(), Objective())
    for field in dataclasses.fields(weight):
        changed = dataclasses.replace(weight, **{field.name: getattr(weight, field.name) * 0.1})
        assert loss(Drawing(), Objective(weighting=weight)) != loss(Drawing(), Objective(weighting=changed)), field.name


def test_weights_by_level_train_and_do_not_score():
    weighted = Objective(weighting=level_weights.get("min_snr")())
    given = Drawing(first_step={"video": 1.0})
    assert loss(given, dataclasses.replace(weighted, clean_loss=True).plain()) == loss(given, Objective())


@pytest.mark.parametrize("name", schedules.names())
def test_every_field_of_a_schedule_changes_its_levels(name):
    schedule = schedules.get(name)()
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        other = [1.0, 0.9, 0.5, 0.2, 0.0] if isinstance(value, list) else value * 1.5
        assert not torch.equal(schedule(8), dataclasses.replace(schedule, **{field.name: other})(8)), field.name


@pytest.mark.parametrize("name", solvers.names())
def test_every_field_of_a_solver_changes_the_clips(name):
    inputs, solver = Inputs(2), solvers.get(name)()
    settings = {key: value for example, _ in solver.examples for key, value in example.items()}
    assert set(settings) == {field.name for field in dataclasses.fields(solver)}
    for key, value in settings.items():
        found = [
            Sampler(by, steps=20)(MODEL, inputs.streams, inputs.text, generators("s", 0, range(2)))["video"]
            for by in (solver, dataclasses.replace(solver, **{key: value}))
        ]
        assert not torch.equal(*found), key


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"shift": 3.0},
        {"shifts": {"audio": 3.0}},
        {"prediction": "velocity"},
        {"cut": True},
        {"solver": solvers.get("euler")()},
        {"schedule": schedules.get("karras")()},
        {"schedules": {"audio": schedules.get("karras")()}},
        {"guidance": Guidance((guidance.get("text")(2.0),))},
    ],
)
def test_every_field_of_the_sampler_changes_the_clips(change):
    inputs = Inputs(2)

    def made(sampler):
        return sampler(MODEL, inputs.streams, inputs.text, generators("s", 0, range(2)))["video"]

    base = Sampler(steps=4)
    assert not torch.allclose(made(base), made(dataclasses.replace(base, **change)))


def test_a_window_changes_the_output_and_an_infinite_one_does_not():
    inputs = Inputs()

    def out(window):
        return lively(variants.get("unified")(depth=2), window_s=window)(inputs.streams, inputs.levels, inputs.text)["video"]

    assert torch.equal(out(float("inf")), out(10.0))
    assert not torch.allclose(out(float("inf")), out(0.03))


@pytest.mark.parametrize("name", masks.names())
def test_every_registered_mask_changes_the_output(name):
    inputs = Inputs()

    def out(**options):
        return lively(variants.get("unified")(depth=1), **options)(inputs.streams, inputs.levels, inputs.text)["video"]

    assert torch.allclose(out(), out(mask=masks.get(name)())) == (name == "none")


def test_a_one_way_cut_changes_the_one_who_is_cut_off():
    inputs, cut = Inputs(), torch.tensor([True, True, True])

    def out(**options):
        return lively(variants.get("dual_tower")(depth=1), **options)(inputs.streams, inputs.levels, inputs.text, cut)

    both, audio, none = out(), out(cut_off="audio"), lively(variants.get("dual_tower")(depth=1))(*inputs.rows(slice(None)))
    torch.testing.assert_close(audio["audio"], both["audio"])
    torch.testing.assert_close(audio["video"], none["video"])
    assert not torch.allclose(both["video"], none["video"])
    with pytest.raises(ValueError, match=r"attention.cut=sound is not one of all, video, audio"):
        out(cut_off="sound")


def test_a_cut_can_say_itself_who_is_cut_off():
    inputs, model, everyone = Inputs(), lively(variants.get("unified")(depth=2)), torch.tensor([True, True, True])
    named = lively(variants.get("unified")(depth=2), cut_off="video")(inputs.streams, inputs.levels, inputs.text, everyone)
    given = model(inputs.streams, inputs.levels, inputs.text, Cut(everyone, ("video",)))
    assert all(torch.equal(given[name], named[name]) for name in named)


def test_packing_works_on_real_tokens_alone_and_changes_nothing():
    inputs = Inputs(3, padded=True)
    levels = {name: level.unsqueeze(-1).expand(-1, len(inputs.streams[name])) for name, level in inputs.levels.items()}
    real = sum(int(stream.valid.sum()) for stream in inputs.streams.values())
    for given in (inputs.levels, levels):
        seen = []
        packed, padded = (lively(variants.get("align_then_fuse")(depth=2), packed=choice) for choice in (True, False))
        packed.blocks[0].register_forward_pre_hook(lambda block, inputs, seen=seen: seen.append(inputs[0]))
        out, expected = (model(inputs.streams, given, inputs.text) for model in (packed, padded))
        assert [sum(part.shape[0] * part.shape[1] for part in x.values()) for x in seen] == [real]
        for name, stream in inputs.streams.items():
            torch.testing.assert_close(out[name][stream.valid], expected[name][stream.valid], atol=1e-5, rtol=1e-5)
            assert not out[name][~stream.valid].any()


def test_the_learning_rate_rises_and_falls_to_zero():
    training = Training(steps=100, warmup=0.1)
    rates = [training.rate(step) for step in range(101)]
    assert max(rates) == max(rates[8:12]) > 0.95
    assert rates[-1] == 0
    assert Training(steps=100, warmup=0.5).rate(20) < training.rate(20)
