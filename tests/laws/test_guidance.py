"""Laws of guidance, for whatever terms and modifiers are registered. A new one is one file with an ``example``; these tests find it."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nava_lab.conditioning.text import WordTokenizer
from nava_lab.flow.agreement import check_guidance, check_use, disagreements
from nava_lab.flow.draws import Drawing, noise_like
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.guidance.base import Call, Moment, Term
from nava_lab.flow.levels import LogitNormal, shifted
from nava_lab.flow.sampling import Clean, Sampler
from nava_lab.registry import guidance, level_laws, schedules, solvers
from nava_lab.rng import generators
from nava_lab.streams import References, Stream, time_positions
from tests.laws.flows import every_solver, tensors

seeds = st.integers(0, 2**31)
WORDS = WordTokenizer(["red", "blue", "disc"], 2)
TERMS = [name for name in guidance if issubclass(guidance.get(name), Term)]
MODIFIERS = [name for name in guidance if name not in TERMS]
LEVELS = {"video": 0.6, "audio": 0.5}
TOLD = replace(WORDS.spec, references=2, timbre=3)


def example(name, **changes):
    cls = guidance.get(name)
    return cls(**{**cls.example, **changes})


def algebra(*parts, rows=256):
    return Guidance(tuple(parts), rows, WORDS)


def ask(call):
    """Velocities that depend on tokens, level, words and cut, and on nothing of other samples."""
    said = (call.text.tokens.double() * torch.tensor([1.0, 0.3])).sum(-1)
    heard = call.text.references
    if heard is not None:
        said = said + (heard.features.double() * heard.valid.unsqueeze(-1)).sum((1, 2))
    cut = torch.zeros_like(said) if call.cut is None else call.cut.double()
    mean = {name: stream.tokens.mean((1, 2)) for name, stream in call.streams.items()}
    found = {}
    for place, (name, stream) in enumerate(call.streams.items()):
        across = sum(value for other, value in mean.items() if other != name) * (1 - cut)
        level = call.levels[name].view(len(said), -1, 1)
        phase = torch.arange(stream.tokens.shape[1] * stream.tokens.shape[2]).view(stream.tokens.shape[1:]).double()
        shape = torch.sin(phase * (0.3 + place) + said.view(-1, 1, 1) + 2 * across.view(-1, 1, 1))
        found[name] = stream.tokens * level + shape
    return found


def situation(seed=0, batch=3, valid=None):
    streams = {
        "video": Stream(tensors(seed, batch, 5, 6), time_positions(5, 0.1), valid),
        "audio": Stream(tensors(seed + 1, batch, 7, 4), time_positions(7, 0.07)),
    }
    levels = {name: torch.full((batch,), level, dtype=torch.float64) for name, level in LEVELS.items()}
    text = WORDS((["red disc", "blue disc", "blue"] * batch)[:batch])
    heard = References(tensors(seed + 2, batch, 2, 3), torch.arange(2) <= torch.arange(batch).unsqueeze(-1) % 2)
    text = replace(text, span=torch.arange(2).expand(batch, -1), references=heard)
    call = Call(streams, levels, text, None)
    return call, Moment({name: stream.tokens for name, stream in streams.items()}, LEVELS, {"video": valid})


def rows(call, moment, select):
    select = torch.tensor(select)
    some = Call(
        {name: stream.rows(select) for name, stream in call.streams.items()},
        {name: level[select] for name, level in call.levels.items()},
        call.text.rows(select),
        None if call.cut is None else call.cut[select],
    )
    counted = {name: None if part is None else part[select] for name, part in moment.counted.items()}
    return some, Moment({name: part[select] for name, part in moment.x.items()}, moment.levels, counted)


def counting(calls):
    def counted(call):
        calls.append(len(call.text.tokens))
        return ask(call)

    return counted


def off(name):
    return guidance.get(name)()


def test_the_registry_holds_what_the_comparison_needs():
    assert {"text", "modality", "negative"} <= set(TERMS)
    assert {"rescale", "interval", "apg", "cfg_zero"} <= set(MODIFIERS)


@pytest.mark.parametrize("name", TERMS)
class TestEveryTerm:
    @given(seed=seeds)
    def test_scale_1_is_off_to_the_bit_and_costs_nothing(self, name, seed):
        call, moment = situation(seed)
        calls = []
        found = algebra(*map(off, guidance))(counting(calls), call, moment)
        assert calls == [3]
        assert all(torch.equal(found[key], ask(call)[key]) for key in found)
        assert not off(name).on
        one = dataclasses.replace(off(name), scale={"video": 1.0})
        assert not one.on

    @given(seed=seeds, scale=st.floats(-3, 8))
    def test_the_formula(self, name, seed, scale):
        call, moment = situation(seed)
        if scale == 1:
            return
        term = example(name, scale=scale)
        conditional, null = ask(call), ask(term.null(call, WORDS))
        found = algebra(term)(ask, call, moment)
        for key in found:
            torch.testing.assert_close(found[key], conditional[key] + (scale - 1) * (conditional[key] - null[key]))

    def test_scale_0_is_the_null_branch(self, name):
        call, moment = situation()
        term = example(name, scale=0.0)
        found = algebra(term)(ask, call, moment)
        for key, null in ask(term.null(call, WORDS)).items():
            torch.testing.assert_close(found[key], null)

    def test_a_null_branch_takes_something_away_and_only_once(self, name):
        call, _ = situation()
        term = example(name)
        once = term.null(call, WORDS)
        assert any(not torch.allclose(ask(once)[key], ask(call)[key]) for key in LEVELS)
        assert all(torch.equal(ask(term.null(once, WORDS))[key], ask(once)[key]) for key in LEVELS)
        assert all(once.streams[key] is call.streams[key] and once.levels[key] is call.levels[key] for key in LEVELS)

    def test_a_scale_per_modality_guides_that_one_alone(self, name):
        call, moment = situation()
        both = algebra(example(name, scale=2.5))(ask, call, moment)
        found = algebra(example(name, scale={"audio": 2.5}))(ask, call, moment)
        assert torch.equal(found["video"], ask(call)["video"])
        assert torch.equal(found["audio"], both["audio"])

    def test_it_costs_one_evaluation_in_one_call_or_in_two(self, name):
        call, moment = situation()
        together, apart = [], []
        found = algebra(example(name), rows=6)(counting(together), call, moment)
        again = algebra(example(name), rows=5)(counting(apart), call, moment)
        assert together == [6]
        assert apart == [3, 3]
        for key in found:
            torch.testing.assert_close(found[key], again[key], atol=1e-12, rtol=0)
        assert algebra(example(name)).branches(LEVELS) == 2

    def test_a_branch_that_was_never_trained_is_refused_with_the_remedy(self, name):
        never = Drawing(text_dropout=1.0, modality_dropout=0.0)
        with pytest.raises(ValueError, match=rf"evaluation\.guidance\.{name} is refused: .*train with flow\."):
            check_guidance(algebra(example(name)), never, TOLD)
        check_guidance(algebra(example(name)), Drawing(text_dropout=0.1, modality_dropout=0.2, timbre_dropout=0.1), TOLD)

    def test_a_scale_that_is_no_number_is_refused(self, name):
        for scale in ("two", float("nan"), float("inf"), {"video": "x"}, True):
            with pytest.raises(Exception, match=r"must be a number|type"):
                example(name, scale=scale)


def test_terms_add_up():
    call, moment = situation()
    conditional = ask(call)
    parts = [example(name, scale=1.5 + place) for place, name in enumerate(TERMS)]
    together = algebra(*parts)(ask, call, moment)
    alone = [algebra(part)(ask, call, moment) for part in parts]
    for key in together:
        torch.testing.assert_close(together[key] - conditional[key], sum(one[key] - conditional[key] for one in alone))
    assert algebra(*parts).branches(LEVELS) == 1 + len(TERMS)


@pytest.mark.parametrize("name", MODIFIERS)
class TestEveryModifier:
    def test_at_its_defaults_it_is_off_to_the_bit(self, name):
        call, moment = situation()
        with_it = algebra(example("text"), off(name))(ask, call, moment)
        assert all(torch.equal(part, algebra(example("text"))(ask, call, moment)[key]) for key, part in with_it.items())

    def test_every_setting_acts(self, name):
        call, moment = situation()
        defaults = off(name)
        for setting in dataclasses.fields(defaults):
            part = dataclasses.replace(defaults, **{setting.name: example(name).__getattribute__(setting.name)})
            assert part.on
            guide = algebra(example("text"), part)
            found, plain = [], []
            memory = {}
            for level in (0.97, 0.6, 0.1):
                levels = dict.fromkeys(LEVELS, level)
                at = dataclasses.replace(moment, levels=levels, memory=memory)
                found.append(guide(ask, call, at)["video"])
                plain.append(algebra(example("text"))(ask, call, at)["video"])
            moved = Sampler(steps=50, guidance=guide).walk(("video",))["video"]
            acts = any(not torch.allclose(a, b) for a, b in zip(found, plain, strict=True))
            assert acts or not torch.equal(moved, Sampler(steps=50).rows(("video",))["video"]), setting.name

    def test_without_a_term_it_is_refused(self, name):
        with pytest.raises(ValueError, match=rf"guidance\.{name} changes guidance, and no term is on"):
            algebra(example(name))

    def test_padding_changes_nothing(self, name):
        valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True, *[False] * 4]])
        call, moment = situation(valid=valid)
        guide = algebra(example("text"), example(name))
        real = guide(ask, call, moment)["video"]

        def noisy(asked):
            found = ask(asked)
            found["video"] = torch.where(
                valid.repeat(len(asked.text.tokens) // 3, 1).unsqueeze(-1), found["video"], 1e3 * found["video"]
            )
            return found

        fresh = replace(moment, memory={})
        assert torch.equal(guide(noisy, call, fresh)["video"][valid], real[valid])


COMBINATIONS = [[example("text"), example(name)] for name in MODIFIERS] + [[example(name) for name in guidance]]


@pytest.mark.parametrize("parts", COMBINATIONS, ids=[*MODIFIERS, "everything"])
@given(seed=seeds, order=st.permutations(range(3)))
def test_neither_batch_nor_order_matters(parts, seed, order):
    call, moment = situation(seed)
    guide = algebra(*parts)
    whole = guide(ask, call, moment)
    moved = guide(ask, *rows(call, moment, order))
    for place, index in enumerate(order):
        alone = guide(ask, *rows(call, moment, [index]))
        for key in whole:
            torch.testing.assert_close(moved[key][place], whole[key][index], atol=1e-12, rtol=0)
            torch.testing.assert_close(alone[key][0], whole[key][index], atol=1e-12, rtol=0)


@given(seeds, st.floats(1.5, 9))
def test_full_rescaling_keeps_each_sample_s_and_modality_s_deviation(seed, scale):
    call, moment = situation(seed)
    found = algebra(example("text", scale=scale), guidance.get("rescale")(1.0))(ask, call, moment)
    for key, part in ask(call).items():
        torch.testing.assert_close(found[key].std((1, 2)), part.std((1, 2)))


def test_a_rescaling_over_the_batch_would_be_caught():
    """The trap of diffusers' LTX-2 guider: one deviation for all samples. The law above tells it from ours."""
    call, moment = situation()
    guided, conditional = algebra(example("text"))(ask, call, moment)["video"], ask(call)["video"]
    wrong = guided * (conditional.std() / guided.std())
    assert not torch.allclose(wrong.std((1, 2)), conditional.std((1, 2)), rtol=1e-3)


@given(seeds)
def test_projected_guidance_leaves_the_predicted_clean_tokens_length_alone(seed):
    """With no parallel part, the change is orthogonal to D = x - t v_c; with all of it, guidance is the plain one."""
    call, moment = situation(seed)
    found = algebra(example("text"), guidance.get("apg")(parallel=0.0))(ask, call, moment)
    for key, part in ask(call).items():
        clean = call.streams[key].tokens - LEVELS[key] * part
        assert ((found[key] - part) * clean).sum((1, 2)).abs().max() < 1e-9


def test_projected_guidance_shortens_a_long_direction_to_its_norm():
    call, moment = situation()
    found = algebra(example("text", scale=2.0), guidance.get("apg")(norm=0.01))(ask, call, moment)
    for key, part in ask(call).items():
        change = LEVELS[key] * (found[key] - part)
        torch.testing.assert_close(change.square().mean((1, 2)).sqrt(), torch.full((3,), 0.01, dtype=torch.float64))


@given(seeds, st.floats(0.2, 4))
def test_a_fitted_null_branch_forgets_its_length(seed, factor):
    """CFG-Zero*: multiplying the null velocity by any number changes nothing."""
    call, moment = situation(seed)

    def scaled(asked):
        found = ask(asked)
        null = (asked.text.tokens[:, 0] == 1).view(-1, 1, 1)
        return {key: torch.where(null, factor * part, part) for key, part in found.items()}

    guide = algebra(example("text"), guidance.get("cfg_zero")(fitted=True))
    for key, part in guide(scaled, call, moment).items():
        torch.testing.assert_close(part, guide(ask, call, moment)[key])


def test_outside_its_interval_guidance_costs_nothing():
    call, moment = situation()
    guide = algebra(example("text"), guidance.get("interval")(0.55, 0.7))
    found = guide(ask, call, moment)
    assert torch.equal(found["audio"], ask(call)["audio"])
    assert not torch.allclose(found["video"], ask(call)["video"])
    assert [guide.branches({"video": level, "audio": level}) for level in (0.8, 0.7, 0.6, 0.5)] == [1, 2, 2, 1]


# Together with a sampler


def network(streams, levels, text, cut):
    call = Call(
        {k: s.with_tokens(s.tokens.double()) for k, s in streams.items()}, {k: v.double() for k, v in levels.items()}, text, cut
    )
    return {key: part.to(streams[key].tokens.dtype) for key, part in ask(call).items()}


@pytest.mark.parametrize("solver", solvers.names())
@pytest.mark.parametrize("parts", COMBINATIONS, ids=[*MODIFIERS, "everything"])
def test_the_sampler_counts_evaluations_with_guidance_and_clips_do_not_depend_on_the_batch(solver, parts):
    call, _ = situation()
    calls = []

    def counted(streams, levels, text, cut):
        calls.append(len(text.tokens))
        return network(streams, levels, text, cut)

    sampler = Sampler(
        solver=solvers.get(solver)(), steps=6, prediction="velocity", guidance=algebra(*parts), shifts={"audio": 2.0}
    )
    whole = sampler(counted, call.streams, call.text, generators("s", 0, range(3)))
    assert sum(calls) == 3 * sampler.evaluations(("video", "audio"))
    for index in range(3):
        one = {key: stream.rows(slice(index, index + 1)) for key, stream in call.streams.items()}
        alone = sampler(network, one, call.text.rows(slice(index, index + 1)), generators("s", 0, [index]))
        for key in whole:
            torch.testing.assert_close(alone[key][0], whole[key][index], atol=1e-9, rtol=0)


@pytest.mark.parametrize("solver", [solver for _, solver, _ in every_solver()], ids=[label for label, _, _ in every_solver()])
class TestStillSteps:
    """CFG-Zero*'s zero-init: steps that begin above a level are left out, whatever the solver does within a step."""

    PARTS = (example("text"), guidance.get("cfg_zero")(still_above=0.7))

    def sampler(self, solver, scale, steps=8):
        parts = (example("text", scale=scale), *self.PARTS[1:])
        return Sampler(solver=solver, steps=steps, prediction="velocity", guidance=algebra(*parts))

    def test_tokens_start_unchanged_from_the_first_level_at_or_below(self, solver):
        """Equal to the bit to the solver started there, guided, on the noise that the sampler draws first."""
        call, _ = situation()
        sampler = self.sampler(solver, 3.0)
        found = sampler(network, call.streams, call.text, generators("s", 0, range(3)))
        draws = generators("s", 0, range(3))
        x = noise_like(call.streams, draws)

        def velocity(state, levels):
            at = {name: torch.full((3,), level, dtype=torch.float64) for name, level in levels.items()}
            streams = {name: call.streams[name].with_tokens(part) for name, part in state.items()}
            asked = Call(streams, at, call.text, None)
            return algebra(example("text", scale=3.0))(ask, asked, Moment(state, levels, {}))

        short = torch.linspace(1, 0, 9, dtype=torch.float64)[3:]  # from 0.625
        expected = solver(x, dict.fromkeys(x, short), velocity, draws)
        assert all(torch.equal(found[name], expected[name]) for name in x)
        assert sampler.evaluations(("video", "audio")) == 2 * solver.evaluations({"x": short})

    def test_a_modality_whose_scale_is_1_moves_as_ever(self, solver):
        """Its noise is its own, so stochastic solvers are tried without."""
        call, _ = situation()
        apart = solver.deterministic()

        def uncoupled(streams, levels, text, cut):
            return network(streams, levels, text, torch.ones(len(text.tokens), dtype=torch.bool))

        found = self.sampler(apart, {"audio": 3.0})(uncoupled, call.streams, call.text, generators("s", 0, range(3)))
        plain = Sampler(solver=apart, steps=8, prediction="velocity")
        expected = plain(uncoupled, call.streams, call.text, generators("s", 0, range(3)))
        assert torch.equal(found["video"], expected["video"])
        assert not torch.allclose(found["audio"], expected["audio"])


def test_texts_are_made_once_in_a_sampling_and_anew_for_other_captions():
    call, _ = situation()
    encoded, joins = [], set()

    def encode(captions):
        encoded.append(captions)
        return WORDS(captions)

    def watching(streams, levels, text, cut):
        joins.add(id(text))
        kept.append(text)
        return network(streams, levels, text, cut)

    kept = []
    parts = (example("text"), example("negative"), example("modality"))
    sampler = Sampler(steps=5, prediction="velocity", guidance=Guidance(parts, 256, encode))
    first = sampler(watching, call.streams, call.text, generators("s", 0, range(3)))
    assert (len(encoded), len(joins), len(kept)) == (1, 1, 9)
    other = sampler(network, call.streams, call.text.rows(torch.tensor([1, 2, 0])), generators("s", 0, range(3)))
    assert len(encoded) == 2
    assert not torch.allclose(first["video"], other["video"])
    moment = situation()[1]  # one moment, asked about different captions: what was made for the one is not taken for the other
    for text in (call.text, call.text.rows(torch.tensor([1, 2, 0]))):
        asked = replace(call, text=text)
        found = sampler.guidance(ask, asked, moment)
        again = sampler.guidance(ask, asked, situation()[1])
        assert all(torch.equal(found[name], again[name]) for name in found)


def test_stillness_that_leaves_no_step_is_refused():
    sampler = Sampler(steps=4, guidance=algebra(example("text"), guidance.get("cfg_zero")(still_above=0.2)))
    with pytest.raises(ValueError, match=r"cfg_zero leaves no step of video: set still_above to at least 0\.25"):
        sampler.evaluations(("video", "audio"))
    assert sampler.evaluations(("video", "audio"), ["video", "audio"]) == 0


def test_a_given_modality_costs_no_branch_of_its_own():
    call, _ = situation()
    sampler = Sampler(steps=4, prediction="velocity", guidance=algebra(example("text", scale={"audio": 3.0})))
    assert sampler.evaluations(("video", "audio")) == 14
    assert sampler.evaluations(("video", "audio"), ["audio"]) == 7
    given_audio = {"audio": Clean(call.streams["audio"].tokens)}
    assert torch.equal(
        sampler(network, call.streams, call.text, generators("s", 0, range(3)), given_audio)["audio"], given_audio["audio"].tokens
    )


# What training practised


def test_uses_that_were_never_trained_are_refused_with_the_remedy():
    plain = Drawing()
    for use, remedy in (
        ({"whole": ["audio"]}, "modality_given"),
        ({"first_step": ["video"]}, r"first_step\.video"),
        ({"beginning": True}, "continuation"),
    ):
        with pytest.raises(ValueError, match=f"train with .*{remedy}"):
            check_use(plain, **use)
    check_use(plain)
    check_use(Drawing(modality_given=0.1, first_step={"video": 0.5}, continuation=0.1), ["audio"], ["video"], True)
    check_use(Drawing(coupling="independent"), ["audio"])
    check_use(Drawing(coupling="one_clean"), ["audio"])
    with pytest.raises(ValueError, match="cannot generate without"):
        check_use(Drawing(coupling="one_clean"))


def test_laws_of_sampling_that_training_did_not_have_are_told():
    both = ("video", "audio")
    uneven = Drawing(shifts={"audio": 3.0})
    assert disagreements(Sampler(), Drawing(), both) == []
    assert disagreements(Sampler(shifts={"audio": 3.0}), uneven, both) == []
    assert len(disagreements(Sampler(shift=5.0), Drawing(), both)) == 2
    told = disagreements(Sampler(shifts={"audio": 3.0}), Drawing(), both)
    assert told[0] == "audio is sampled with shift 3 and was trained with shift 1"
    assert "do not go together" in told[1]
    assert len(disagreements(Sampler(shifts={"audio": 3.0}), Drawing(coupling="independent"), both)) == 1
    assert disagreements(Sampler(shifts={"audio": 3.0}), Drawing(), ["video"]) == []


def test_levels_that_do_not_go_together_are_told_of_the_rows_that_are_walked():
    """Stillness of one modality alone moves its row; equal rows by another name, or shifts that training has, do not."""
    both, still = ("video", "audio"), guidance.get("cfg_zero")(still_above=0.7)
    alone = Sampler(steps=8, guidance=algebra(example("text", scale={"audio": 3.0}), still))
    (told,) = disagreements(alone, Drawing(), both)
    assert "do not go together in training (video at 1, audio at 0.625; flow.coupling=shared" in told
    assert disagreements(alone, Drawing(coupling="independent"), both) == []
    assert disagreements(alone, Drawing(), ["audio"]) == []
    assert disagreements(Sampler(steps=8, guidance=algebra(example("text"), still)), Drawing(), both) == []
    even = schedules.get("custom")([1.0, 0.5, 0.0])
    assert len(disagreements(Sampler(steps=8, schedules={"audio": even}), Drawing(), both)) == 1  # of the name alone
    karras = Sampler(steps=8, schedules={"audio": schedules.get("karras")()})
    assert [("together" in line) for line in disagreements(karras, Drawing(), both)] == [False, True]


def test_a_law_s_own_middle_is_a_shift_and_other_schedules_are_told():
    """A logit-normal of mean m is one of mean 0 shifted by e^m."""
    noisy, both = Drawing(levels=LogitNormal(mean=math.log(3.0))), ("video", "audio")
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(noisy.levels(u), shifted(LogitNormal()(u), noisy.levels.centre))
    assert disagreements(Sampler(shift=3.0), noisy, both) == []
    told = disagreements(Sampler(), noisy, both)
    assert told[0] == "video is sampled with shift 1 and was trained with shift 3 (1 times the 3 of its law's middle)"
    for name in schedules:
        found = disagreements(Sampler(schedule=schedules.get(name)()), Drawing(), both)
        assert [f"schedule {name}," in line for line in found] == ([] if name == "uniform" else [True])
    for name in level_laws:
        law = level_laws.get(name)()
        assert float(law(torch.tensor(0.5))) == pytest.approx(law.centre / (1 + law.centre))


def test_plain_generation_is_refused_where_something_was_given_in_every_sample():
    for drawing, remedy, use in (
        (Drawing(continuation=1.0), "continuation", {"beginning": True}),
        (Drawing(first_step={"video": 1.0}), r"first_step\.video", {"first_step": ["video"]}),
        (Drawing(first_step={"video": 1.0}, modality_given=0.5), r"first_step\.video", {"whole": ["video"]}),
    ):
        with pytest.raises(ValueError, match=rf"cannot generate without; train with flow\.{remedy} below 1"):
            check_use(drawing)
        check_use(drawing, **use)
