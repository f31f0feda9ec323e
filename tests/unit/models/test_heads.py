"""Grouped queries survive every width: groups are kept whole, or the width is refused with the reason."""

import pytest

from nava_lab.budget import Budget, solve
from nava_lab.models.denoiser import on_meta
from nava_lab.models.variant import Size, with_settings
from nava_lab.registry import variants
from tests.conftest import INTERFACE


@pytest.mark.parametrize("parameters", [300_000, 1_000_000, 30_000_000])
def test_groups_are_the_same_at_every_budget(parameters):
    variant = variants.get("magihuman")(depth=4)
    size = solve(variant, INTERFACE, Budget(parameters=parameters)).size
    model = on_meta(variant, INTERFACE, size)
    counts = {part.counts for part in model.modules() if hasattr(part, "counts")}
    assert counts == {(queries, queries // 5, queries // 5) for queries, *_ in counts}
    assert all(queries >= 5 for queries, *_ in counts)


@pytest.mark.parametrize("group", [1, 2, 3, 5, 8])
def test_the_chosen_heads_are_whole_groups_nearest_to_the_usual_channels(group):
    variant = with_settings(variants.get("unified")(), {"layers.query_group": group})
    for width in range(2 * group, 480, 2 * group):
        heads = variant.heads_for(width)
        assert heads % group == 0
        assert width % (2 * heads) == 0
        others = [count for count in range(group, width, group) if width % (2 * count) == 0]
        assert abs(width / heads - 32) == min(abs(width / count - 32) for count in others)


@pytest.mark.parametrize(
    ("settings", "width", "named"),
    [
        (
            {"layers.query_group": 5},
            48,
            "width of 48 has no heads in groups of layers.query_group=5: it must be a multiple of 10",
        ),
        ({"layers.query_group": 5, "heads": 8}, 80, "variant.heads=8 does not divide into groups of layers.query_group=5"),
        ({"layers.query_group": 0}, 80, "query_group=0"),
    ],
)
def test_groups_that_no_heads_make_are_refused(settings, width, named):
    with pytest.raises(ValueError, match=named):
        on_meta(with_settings(variants.get("unified")(depth=1), settings), INTERFACE, Size(width, 96))
