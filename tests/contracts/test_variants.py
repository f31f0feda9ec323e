"""What every variant must do, whichever they are: found through the registry, never named here."""

import dataclasses
from contextlib import suppress

import pytest
import torch

from nava_lab.blocks.options import Traits
from nava_lab.budget import Budget, measure, solve
from nava_lab.budget.measure import owned
from nava_lab.models.denoiser import Denoiser, count_parameters
from nava_lab.models.variant import Size, Variant, with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, Stream, TextSpec, time_positions
from tests.conftest import INTERFACE, Inputs, fitting, lively

ALL = variants.names()


def make(name, **fields):
    return variants.get(name)(**{"depth": 3, **fields})


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_finite_and_batch_of_one(name):
    model = lively(make(name))
    for batch in (1, 3):
        inputs = Inputs(batch)
        out = model(inputs.streams, inputs.levels, inputs.text)
        for key, stream in inputs.streams.items():
            assert out[key].shape == stream.tokens.shape
            assert torch.isfinite(out[key]).all()


@pytest.mark.parametrize("name", ALL)
def test_a_gradient_reaches_every_parameter(name):
    model, inputs = lively(make(name)), Inputs()
    sum(part.square().sum() for part in model(inputs.streams, inputs.levels, inputs.text).values()).backward()
    starved = [key for key, part in model.named_parameters() if part.grad is None or not part.grad.abs().sum() > 0]
    # A word that no caption of the batch uses has a row without gradient, but its table has some. Text that keeps weights of its
    # own in the last layer (MagiHuman as released) has some that nothing generated can see: what it asks and what it makes of it.
    last = f"blocks.{len(model.blocks) - 1}."
    assert not [key for key in starved if not (key.startswith(last) and ".parts.text." in key)]


@pytest.mark.parametrize("name", ALL)
def test_samples_do_not_see_each_other(name):
    model, inputs = lively(make(name)), Inputs(4)
    whole = model(inputs.streams, inputs.levels, inputs.text)
    for row in range(4):
        alone = model(*inputs.rows(slice(row, row + 1)))
        for key in whole:
            torch.testing.assert_close(alone[key], whole[key][row : row + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("missing", ["video", "audio"])
def test_a_missing_modality_is_an_ordinary_input(name, missing):
    """Left out, or marked invalid and full of NaN: the other modality comes out the same, with finite gradients."""
    model, inputs = lively(make(name)), Inputs()
    kept = next(key for key in inputs.streams if key != missing)
    left_out = model({kept: inputs.streams[kept]}, inputs.levels, inputs.text)[kept]
    hole = inputs.streams[missing]
    broken = Stream(
        torch.full_like(hole.tokens, float("nan")), hole.positions, torch.zeros(hole.tokens.shape[:2], dtype=torch.bool)
    )
    masked = model({**inputs.streams, missing: broken}, inputs.levels, inputs.text)[kept]
    torch.testing.assert_close(masked, left_out, atol=1e-5, rtol=1e-5)
    masked.square().sum().backward()
    assert all(part.grad is None or torch.isfinite(part.grad).all() for part in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing(name):
    model, inputs = lively(make(name)), Inputs(3, padded=True)
    out = model(inputs.streams, inputs.levels, inputs.text)
    loud = {
        key: stream.with_tokens(stream.tokens.masked_fill(~stream.valid.unsqueeze(-1), float("nan")))
        for key, stream in inputs.streams.items()
    }
    again = model(loud, inputs.levels, inputs.text)
    for key, stream in inputs.streams.items():
        torch.testing.assert_close(again[key][stream.valid], out[key][stream.valid])


@pytest.mark.parametrize("name", ALL)
def test_cutting_keeps_modalities_apart_and_only_in_the_chosen_samples(name):
    """With attention cut, no gradient flows between modalities, not even through the text."""
    model, inputs = lively(make(name)), Inputs(2)
    cut = torch.tensor([True, False])
    for target in inputs.streams:
        source = next(key for key in inputs.streams if key != target)
        streams = {key: stream.with_tokens(stream.tokens.clone().requires_grad_()) for key, stream in inputs.streams.items()}
        model(streams, inputs.levels, inputs.text, cut)[target].square().sum().backward()
        grad = streams[source].tokens.grad
        assert torch.equal(grad[0], torch.zeros_like(grad[0]))
        assert grad[1].abs().sum() > 0


@pytest.mark.parametrize("name", ALL)
def test_text_and_levels_matter(name):
    model, inputs = lively(make(name)), Inputs()
    out = model(inputs.streams, inputs.levels, inputs.text)["video"]
    other = Stream(inputs.text.tokens.flip(0), inputs.text.positions, inputs.text.valid.flip(0))
    assert not torch.allclose(out, model(inputs.streams, inputs.levels, other)["video"])
    if model.level is not None:
        levels = {key: level * 0.5 for key, level in inputs.levels.items()}
        assert not torch.allclose(out, model(inputs.streams, levels, inputs.text)["video"])


@pytest.mark.parametrize("name", ALL)
def test_levels_per_sample_and_per_token_agree(name):
    model, inputs = lively(make(name)), Inputs()
    out = model(inputs.streams, inputs.levels, inputs.text)
    levels = {key: level.unsqueeze(-1).expand(-1, len(inputs.streams[key])) for key, level in inputs.levels.items()}
    for key, part in model(inputs.streams, levels, inputs.text).items():
        torch.testing.assert_close(part, out[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_only_differences_of_time_matter(name):
    """Law 11: shifting every clock by the same time changes nothing (text in the sequence keeps its place, so is exempt)."""
    variant = make(name)
    if variant.text_place == "sequence":
        pytest.skip("text stands in the sequence at fixed times")
    # In double precision: LTX-2's fastest pair turns 1571 times a second, and float32 rounds seconds to a part of its turn.
    model, inputs = lively(variant).double(), Inputs()
    shift = torch.tensor([3.7, 0.0, 0.0], dtype=torch.float64)
    double = {key: Stream(stream.tokens.double(), stream.positions.double()) for key, stream in inputs.streams.items()}
    moved = {key: dataclasses.replace(stream, positions=stream.positions + shift) for key, stream in double.items()}
    out, again = (model(streams, inputs.levels, inputs.text) for streams in (double, moved))
    for key in out:
        torch.testing.assert_close(again[key], out[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_state_dict_round_trip(name):
    model, inputs = lively(make(name)), Inputs()
    twin = lively(make(name), seed=1)
    twin.load_state_dict(model.state_dict())
    for key, part in model(inputs.streams, inputs.levels, inputs.text).items():
        assert torch.equal(part, twin(inputs.streams, inputs.levels, inputs.text)[key])


@pytest.mark.parametrize("name", ALL)
def test_the_two_backends_agree(name):
    inputs = Inputs(3, padded=True)
    fast, plain = (lively(make(name), backend=backend) for backend in ("sdpa", "reference"))
    cut = torch.tensor([True, False, False])
    out, again = (model(inputs.streams, inputs.levels, inputs.text, cut) for model in (fast, plain))
    for key, stream in inputs.streams.items():
        torch.testing.assert_close(out[key][stream.valid], again[key][stream.valid], atol=1e-5, rtol=1e-4)


# Rows and columns, causal codecs and unequal rates, so that every setting of a clock has something to act on.
RICH = Interface(
    {"video": ModalitySpec(6, 12, 0.08, (1, 2), stride=4), "audio": ModalitySpec(4, 7, 0.05, stride=2)}, TextSpec(3, 9)
)


def leaves(value, prefix=""):
    """Every setting of a dataclass, those of nested ones by dotted key: (key, field, value)."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, inner


COMMON = {field.name: field for field in dataclasses.fields(Variant)}  # a variant may give them another default, and no more


def _other_values(field, value):
    choices = field.metadata.get("choices") or (COMMON[field.name].metadata.get("choices") if field.name in COMMON else None)
    if choices:
        return [choice for choice in choices if choice != value]
    if field.name == "heads":
        return [1, 2, 4, 5, 25]
    if field.name == "unit":
        return ["audio"] if not value else ["video"]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, value + 3, 1, value + 2]
    if isinstance(value, float):
        return [value / 2, 1.0, value * 2, 0.0]
    if isinstance(value, tuple):
        return [(), ("attention",), ("audio",)]
    if isinstance(value, dict):
        return [{"audio": 0.5}, {"audio": 0.75}, {"text": 0.5}]
    raise AssertionError(f"the test does not know how to change {field.name}={value!r}: teach it")


# What a setting needs beside it to have something to act on, in variants where it has nothing: there it must be refused.
BESIDE = {
    "bridge.inner": [{"width_share": {"audio": 0.5}}, {"width_share": {"audio": 0.5}, "bridge.kind": "cross"}],
    "bridge.level": [{"bridge.gate": "level"}, {"bridge.gate": "level", "bridge.kind": "cross"}],
    **{f"bridge.{key}": [{"bridge.kind": "cross"}] for key in ("qk_norm", "head_gates", "normed", "norm", "affine", "at")},
    "clock.hz": [{"clock.unit": ""}],
    "clock.layout": [{"layers.query_group": 1}],
    "clock.unit": [{"clock.hz": 0.0}],
    "ends.level_features": [{"level_input": "shared"}],
    "layers.modulation": [{"level_input": "shared"}],
    "layers.query_group": [{"clock.layout": "axes"}],
    "layers.text_modulation": [
        {"text_place": "cross", "level_input": "shared", "layers.modulation": "adaln"},
        {"bridge.kind": "cross"},
    ],
    "layers.text_norm": [{"text_place": "cross"}],
    "level_input": [{"width_share": {}}, {"width_share": {}, "experts": False}],
    "width_share": [{"level_input": "per_modality"}],
}
# What no setting beside it brings to life in some variants, and why.
NEVER = {
    "ratio_share": ("a joint block needs one width, head count and feed-forward width", "text is outside the row"),
    "text_place": ("towers have no such row",),
    "width_share": ("a joint block needs one width", "has no heads in groups of layers.query_group=5", "text is outside the row"),
}
DEEPER = {"placement": {"depth": 6}, "bridge.placement": {"depth": 3}}  # where every choice differs


def trace(variant, size):
    """Parameters and outputs of a model whose weights are drawn alike."""
    inputs = Inputs()
    grid = RICH.modalities["video"]
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(3, grid.tokens, grid.channels, generator=generator)
    streams = {"video": Stream(video, time_positions(grid.tokens, grid.seconds, grid.grid)), "audio": inputs.streams["audio"]}
    levels = {"video": torch.tensor([0.2, 0.7, 0.95]), "audio": torch.tensor([0.9, 0.1, 0.3])}
    model = Denoiser(variant, RICH, size)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        out = model(streams, levels, inputs.text)
    return size, [tuple(part.shape) for part in model.parameters()], list(out.values())


def differ(found, base):
    return found[:2] != base[:2] or any(not torch.allclose(a, b) for a, b in zip(found[2], base[2], strict=True))


def solved(variant):
    return trace(variant, solve(variant, RICH, Budget(parameters=3_000_000)).size)


def as_its_kind_has_it(base, variant, key, value):
    """A bridge's choice that says what its kind does anyway."""
    return value is None and key.startswith("bridge.") and variant.bridge.build() == base.bridge.build()


def tried(base, key, field, value, plain=None):
    """Other values of a setting: which change something, which change nothing, and why the others are refused."""
    alive, dead, reasons = [], [], []
    size = fitting(base, Size(48, 96))
    plain = plain or trace(base, size)
    for other in (other for other in _other_values(field, value) if other != value):
        try:
            variant = with_settings(base, {key: other})
            if as_its_kind_has_it(base, variant, key, value):
                continue
            (alive if differ(trace(variant, size), plain) else dead).append(other)
        except ValueError as error:
            reasons.append(str(error))
        else:
            kept = {name: part for name, _, part in leaves(variant) if name != key}
            assert kept == {name: part for name, _, part in leaves(base) if name != key}, f"{key} changes other settings unsaid"
            if alive and _number(other):
                break  # a number may be rounded to the same layers; a choice may not be no choice
    if dead and (not alive or not _number(value)):  # what only a budget feels
        felt = [other for other in dead if differ(solved(with_settings(base, {key: other})), solved(base))]
        alive, dead = alive + felt, [other for other in dead if other not in felt]
    return alive, dead, reasons


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def takes_layers(variant):
    """Whether any of its blocks has the options that ``layers`` sets; a newcomer's may have none of them."""
    return any(isinstance(stage.block, Traits) for stage in variant.stages())


@pytest.mark.parametrize("name", ALL)
def test_no_dead_config_field(name):
    """Every value of every setting, nested ones too, changes the solved size, the parameters or the output, or is refused with
    the reason; and what is refused as it stands comes to life with something beside it."""
    base = make(name, depth=2)
    plain = trace(base, fitting(base, Size(48, 96)))
    for key, field, value in leaves(base):
        deeper = with_settings(base, DEEPER.get(key, {}))
        alive, dead, reasons = tried(deeper, key, field, value, None if key in DEEPER else plain)
        assert not dead or (_number(value) and alive), f"{name}.{key}={dead} changes nothing"
        assert all(len(reason) > 20 for reason in reasons)
        if key.startswith("layers.") and not takes_layers(base):
            assert not alive
            assert any("no stage passes it on" in reason for reason in reasons), f"{name}.{key}: {reasons}"
            continue
        for more in BESIDE.get(key, []):
            if not alive and {part.split(".")[0] for part in more} <= {part.name for part in dataclasses.fields(base)}:
                with suppress(ValueError):  # it has nothing of the kind
                    beside = with_settings(base, more)
                    now = next(part for other, _, part in leaves(beside) if other == key)
                    alive, dead, reasons = tried(beside, key, field, now)
        never = not dead and reasons and all(any(why in reason for why in NEVER.get(key, ())) for reason in reasons)
        assert alive or never, f"{name}.{key}: {dead} change nothing, others are refused: {reasons}"


@pytest.mark.parametrize("name", ALL)
def test_groups_add_up_to_the_modules_parameters(name):
    variant = make(name)
    size = fitting(variant, Size(24, 40))
    cost, model = measure(variant, INTERFACE, size), Denoiser(variant, INTERFACE, size)
    assert cost.total == count_parameters(model) == sum(cost.groups.values()) == sum(part.count for part in owned(model))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("parameters", [300_000, 3_000_000, 1_000_000_000, 10_000_000_000])
@pytest.mark.parametrize("depth", [4, 30])
def test_budgets_are_met(name, parameters, depth):
    from nava_lab.registry import worlds

    interface = worlds.get("pulse")().interface()
    solution = solve(make(name, depth=depth), interface, Budget(parameters=parameters))
    assert abs(solution.cost.total / parameters - 1) <= 0.005
    assert solution.cost.total == solution.realised


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["parameters", "flops"])
def test_budgets_are_met_where_layers_go_without_text(name, kind):
    solution = solve(
        make(name, text_after=2), INTERFACE, Budget(**{"parameters": None, kind: 300_000 if kind == "parameters" else 5e7})
    )
    assert abs(solution.realised / solution.budget.requested - 1) <= 0.005
    assert not solution.cost.total - count_parameters(Denoiser(make(name, text_after=2), INTERFACE, solution.size))


@pytest.mark.parametrize("name", ALL)
def test_flops_budgets_are_met(name):
    solution = solve(make(name), INTERFACE, Budget(flops=5e7))
    assert abs(solution.cost.flops_per_sample / 5e7 - 1) <= 0.005


@pytest.mark.parametrize("name", ALL)
def test_an_impossible_budget_says_what_is_possible(name):
    with pytest.raises(ValueError, match=r"possible is [\d,]+ to [\d,]+"):
        solve(make(name, depth=30), INTERFACE, Budget(parameters=1_000))


@pytest.mark.parametrize("name", ALL)
def test_streams_without_rows_and_columns_spend_all_channels_on_time(name):
    """Where every grid is (1, 1), no channel of a head may stand still as time passes."""
    from nava_lab.layers.rotary import Clock, TimeClock

    assert type(lively(make(name)).clock) is TimeClock
    grids = Interface({"video": ModalitySpec(6, 8, 0.08, (2, 2)), "audio": ModalitySpec(4, 7, 0.05)}, TextSpec(3, 9))
    assert type(Denoiser(make(name), grids, fitting(make(name), Size(24, 40))).clock) is Clock
    positions = torch.tensor([[[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]])
    cosines, _ = TimeClock().table(positions, 24)
    assert (cosines[0, 0] != cosines[0, 1]).all()
