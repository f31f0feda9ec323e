"""Every option of the joint and tower blocks, beyond what the families use: it builds, learns, and does something."""

import itertools

import pytest
import torch

from nava_lab.blocks.cross_bridge import Cross
from nava_lab.blocks.joint import KEEP, Joint
from nava_lab.blocks.tower import Tower
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size, Stage, Variant
from tests.conftest import INTERFACE, Inputs, lively
from tests.contracts.test_blocks import Of

CHOICES = {
    "feed_forward": ("gelu", "swiglu"),
    "qk_norm": ("full", "head", "none"),
    "kv_heads": (0, 1, 2),
    "head_gates": (False, True),
    "bias": (True, False),
    "modulation": ("adaln", "none"),
    "text": ("cross", "none"),
}
# Each choice alone, then pairs that meet in one module; all of them together would be 288 builds of each block.
GRID = [{key: value} for key, values in CHOICES.items() for value in values[1:]]
GRID += [dict(zip(pair, (CHOICES[key][-1] for key in pair), strict=True)) for pair in itertools.combinations(CHOICES, 2)]
GRID.append({key: values[-1] for key, values in CHOICES.items()})
KEPT = [{"per_modality": (part,)} for part in KEEP] + [
    {"per_modality": KEEP},
    {"per_modality": ("attention", "feed_forward", "norms"), "modulation": "none", "text": "none"},
    {"per_modality": ("attention", "text"), "kv_heads": 1, "head_gates": True, "bias": False},
]
CASES = [(block, options) for block in (Joint, Tower) for options in GRID] + [(Joint, options) for options in KEPT]
CASES += [(lambda bridge: Tower(bridge=bridge), {"bridge": Cross(qk_norm=norm, head_gates=True)}) for norm in ("head", "none")]
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
        ({"per_modality": ("norms",), "text": "none"}, "per_modality=norms: a block with text=none and modulation=adaln"),
        ({"per_modality": ("atention",)}, "attention"),
        ({"kv_heads": -1}, "kv_heads=-1"),
        ({"qk_norm": "rms"}, "qk_norm=rms"),
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
    class NoLevels(Variant):
        level_input = "none"

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
