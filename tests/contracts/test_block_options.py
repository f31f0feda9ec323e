"""Every option of the joint and tower blocks, beyond what the families use: it builds, learns, and does something."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from nava_lab.blocks.cross_bridge import Cross
from nava_lab.blocks.joint import KEEP, Joint
from nava_lab.blocks.shared_query import SharedQuery
from nava_lab.blocks.tower import Tower
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size, Stage, Variant
from tests.conftest import INTERFACE, Inputs, lively
from tests.contracts.test_blocks import Of

CHOICES = {
    "feed_forward": ("gelu", "swiglu"),
    "hidden_share": (1.0, 0.5),
    "norm": ("layer", "rms"),
    "text_norm": ("affine", "plain"),
    "qk_norm": ("full", "head", "none"),
    "query_group": (1, 2, 4),
    "head_gates": (0.0, 2.0, 1.0),
    "bias": (True, False),
    "modulation": ("adaln", "own", "none"),
    "text": ("cross", "none"),
    "text_modulation": (False, True),
}
# Each choice alone, then pairs that meet in one module; all of them together would be thousands of builds of each block.
GRID = [{key: value} for key, values in CHOICES.items() for value in values[1:]]
MEET = [("norm", key) for key in ("text_norm", "modulation", "bias")] + [
    ("text_modulation", key) for key in ("text_norm", "head_gates")
]
MEET += [("modulation", "text"), *itertools.combinations(("feed_forward", "hidden_share", "bias"), 2)]
MEET += itertools.combinations(("qk_norm", "query_group", "head_gates", "bias"), 2)
GRID += [dict(zip(pair, (CHOICES[key][-1] for key in pair), strict=True)) for pair in MEET]
GRID.append({key: values[-1] for key, values in CHOICES.items() if key != "text_modulation"})
KEPT = [{"per_modality": (part,)} for part in KEEP] + [
    {"per_modality": KEEP},
    {"per_modality": ("text", "modulation"), "text_modulation": True},
    {"per_modality": ("modulation",), "modulation": "own"},
    {"per_modality": ("attention", "feed_forward", "norms"), "modulation": "none", "text": "none"},
    {"per_modality": ("attention", "text"), "query_group": 4, "head_gates": True, "bias": False},
]
CASES = [(block, options) for block in (Joint, Tower) for options in GRID] + [(Joint, options) for options in KEPT]
CASES += [(lambda bridge: Tower(bridge=bridge), {"bridge": Cross(qk_norm=norm, head_gates=True)}) for norm in ("head", "none")]
BRIDGES = [
    *(
        Cross(**{key: value})
        for key, value in {"inner": "reader", "normed": "source", "norm": "rms", "affine": False, "at": "start"}.items()
    ),
    *(Cross(gate=gate) for gate in ("learned", "level")),
    Cross(gate="level", level="own"),
    Cross(gate="level", directions="audio->video"),
    SharedQuery(gate="learned"),
    SharedQuery(directions="video->audio"),
    SharedQuery(rotary=False),
]
SIZE = Size(32, 24)


def build(block, options, **of):
    return lively(Of(depth=2, heads=4, block=block(**options), **of), SIZE)


@pytest.mark.parametrize(
    ("block", "options"), CASES, ids=lambda part: getattr(part, "__name__", None) or str(part).replace(" ", "")
)
def test_it_builds_and_every_parameter_learns(block, options):
    model, inputs = build(block, options), Inputs(padded=True)
    out = model(inputs.streams, inputs.levels, inputs.text)
    assert all(torch.isfinite(part).all() for part in out.values())
    sum(part.square().sum() for part in out.values()).backward()
    starved = [name for name, part in model.blocks.named_parameters() if part.grad is None or not part.grad.abs().sum() > 0]
    # A softmax over one query's logits is blind to what all its keys have in common.
    assert not [name for name in starved if not name.endswith(("key.linear.bias", "k_norm.norm.bias"))]
    assert all(part.grad is None or torch.isfinite(part.grad).all() for part in model.parameters())


@pytest.mark.parametrize("bridge", BRIDGES, ids=str)
def test_every_choice_of_a_bridge_learns_and_changes_what_is_exchanged(bridge):
    def made(bridge):
        return build(Tower, {"bridge": bridge}, level_input="per_modality", width_share={"audio": 0.5})

    model, inputs = made(bridge), Inputs(padded=True)
    levels = {"video": inputs.levels["video"], "audio": inputs.levels["video"].flip(0)}
    out = model(inputs.streams, levels, inputs.text)
    sum(part.square().sum() for part in out.values()).backward()
    starved = [name for name, part in model.named_parameters() if part.grad is None or not part.grad.abs().sum() > 0]
    assert not [name for name in starved if not name.endswith(("key.linear.bias", "k_norm.norm.bias"))]
    with torch.no_grad():
        plain = made(type(bridge)())(inputs.streams, levels, inputs.text)
    assert not all(torch.allclose(out[name], plain[name]) for name in out)
    cut = torch.tensor([True] * 3)  # and nothing of it is left where attention is cut
    alone = model({"video": inputs.streams["video"]}, levels, inputs.text)["video"]
    torch.testing.assert_close(model(inputs.streams, levels, inputs.text, cut)["video"], alone, atol=1e-5, rtol=1e-5)


def test_a_learned_gate_starts_closed():
    inputs = Inputs()
    for bridge in (Cross(gate="learned"), SharedQuery(gate="learned")):
        torch.manual_seed(0)
        model = Denoiser(Of(depth=2, block=Tower(bridge=bridge)), INTERFACE, SIZE)
        torch.nn.init.normal_(model.heads["video"].linear.weight)
        together = model(inputs.streams, inputs.levels, inputs.text)["video"]
        alone = model({"video": inputs.streams["video"]}, inputs.levels, inputs.text)["video"]
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("block", [Joint, Tower])
@pytest.mark.parametrize("options", [options for options in GRID if len(options) == 1], ids=str)
def test_every_option_changes_parameters_or_output(block, options):
    def trace(made):
        model, inputs = made, Inputs()
        with torch.no_grad():
            return sum(part.numel() for part in model.parameters()), model(inputs.streams, inputs.levels, inputs.text)["video"]

    base, changed = trace(build(block, {})), trace(build(block, options))
    assert base[0] != changed[0] or not torch.allclose(base[1], changed[1])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"per_modality": ("text",), "text": "none"}, "per_modality=text: a block with text=none"),
        ({"per_modality": ("modulation",), "modulation": "none"}, "per_modality=modulation: a block with modulation=none"),
        (
            {"per_modality": ("norms",), "text": "none"},
            "per_modality=norms: a block with text=none, text_norm=affine and modulation=adaln",
        ),
        ({"per_modality": ("atention",)}, "attention"),
        ({"query_group": 0}, "query_group=0"),
        ({"qk_norm": "rms"}, "qk_norm=rms"),
        ({"per_modality": ("norms",), "text_norm": "plain"}, "text_norm=plain and modulation=adaln"),
        ({"text_modulation": True, "modulation": "own"}, "takes its vectors from modulation=adaln"),
        ({"text_modulation": True, "text": "none"}, "no text to modulate"),
        ({"hidden_share": 0.0}, "hidden_share=0.0"),
        ({"modulation": "film"}, "modulation=film"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        Joint(**options)


@pytest.mark.parametrize("block", [Joint(per_modality=("attention", "text", "norms")), Tower()])
def test_without_text_a_block_keeps_its_other_choices(block):
    bare = block.without_text()
    assert bare.text == "none"
    assert bare.without_text() == bare
    assert getattr(bare, "per_modality", ("attention",)) == ("attention",)


def test_levels_that_a_variant_does_not_give_in_the_form_its_blocks_want_are_refused():
    @dataclass(frozen=True)
    class NoLevels(Variant):
        level_input: str = "none"

        def stages(self):
            return [Stage(Joint(), 1)]

    class TwoWidths(Variant):
        def widths(self, width, names):
            return {name: width if name == "video" else width // 2 for name in names}

        def stages(self):
            return [Stage(Tower(), 1)]

    with pytest.raises(ValueError, match="level_input='none'"):
        Denoiser(NoLevels(), INTERFACE, Size(24, 40))
    with pytest.raises(ValueError, match="level_input='per_modality'"):
        Denoiser(TwoWidths(), INTERFACE, Size(48, 40))
