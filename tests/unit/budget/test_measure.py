"""Counted costs against formulas written out by hand, so that neither the counter nor a block can go wrong unseen."""

from nava_lab.budget.measure import measure
from nava_lab.models.variant import Size
from nava_lab.registry import variants
from tests.conftest import INTERFACE

WIDTH, HIDDEN, DEPTH = 48, 100, 3
LEVEL_FEATURES = 64
TOKENS = {name: spec.tokens for name, spec in INTERFACE.modalities.items()}
CHANNELS = {name: spec.channels for name, spec in INTERFACE.modalities.items()}
TEXT = INTERFACE.text.length


def ends(width):
    """Embedders and heads."""
    return sum(2 * 2 * TOKENS[name] * CHANNELS[name] * width for name in TOKENS)


def level(width, rows):
    """The noise level's features, two layers, and the projection to six vectors; for so many levels."""
    return rows * 2 * (LEVEL_FEATURES * width + width * width + width * 6 * width)


def encoder(width):
    """The text's two layers."""
    return TEXT * 2 * 2 * width * width


def attention(queries, keys, width):
    """Logits and weighted values."""
    return 2 * 2 * queries * keys * width


def test_flops_of_one_space():
    d, f, n = WIDTH, HIDDEN, sum(TOKENS.values()) + TEXT
    layer = n * 2 * (4 * d * d + 2 * d * f) + attention(n, n, d)
    expected = ends(d) + level(d, 2) + encoder(d) + DEPTH * layer  # two levels: the generated tokens' and the text's
    cost = measure(variants.get("unified")(depth=DEPTH), INTERFACE, Size(d, f))
    assert cost.flops_forward == expected
    assert cost.flops_per_sample == 3 * expected


def test_flops_of_two_towers():
    d, f = WIDTH, HIDDEN
    layer = 0
    for own, other in (("video", "audio"), ("audio", "video")):
        n, m = TOKENS[own], TOKENS[other]
        layer += n * 2 * (4 * d * d + 2 * d * f) + attention(n, n, d)  # the tower
        layer += 2 * (2 * n * d * d + 2 * TEXT * d * d) + attention(n, TEXT, d)  # q, o of its tokens; k, v of the text
        layer += 2 * (2 * n * d * d + 2 * m * d * d) + attention(n, m, d)  # and of the other tower's
    cost = measure(variants.get("dual_tower")(depth=DEPTH), INTERFACE, Size(d, f))
    assert cost.flops_forward == ends(d) + level(d, 2) + 2 * encoder(d) + DEPTH * layer


def test_parameters_of_one_space():
    d, f = WIDTH, HIDDEN
    linears = 4 * (d * d + d) + 2 * d * f + f + d
    layer = linears + 2 * d + 6 * d  # qk-norms; modulation table
    level_input = LEVEL_FEATURES * d + d + d * d + d + 6 * d * d + 6 * d
    text = INTERFACE.text.vocabulary * d + TEXT * d + 2 * (d * d + d)
    ends_ = sum(2 * CHANNELS[name] * d + d + CHANNELS[name] + 2 * d for name in TOKENS)  # the heads' tables too
    cost = measure(variants.get("unified")(depth=DEPTH), INTERFACE, Size(d, f))
    assert cost.total == DEPTH * layer + level_input + text + ends_
    assert cost.groups["shared"] == DEPTH * layer
