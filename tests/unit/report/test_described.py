"""The table of ``nava describe -m``: columns say what differs, and a narrow terminal cuts no number short."""

import io

import pytest
from rich.console import Console

from nava_lab.report.described import labels, print_descriptions
from nava_lab.report.numbers import short
from nava_lab.study.describe import combinations, described


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["variant=nava,ovi", "seed=0"], ["nava", "ovi"]),
        (["variant=ovi", "variant.bridge.kind=aligned,conditional"], ["bridge.kind=aligned", "bridge.kind=conditional"]),
        (
            ["variant=nava,ovi", "budget.parameters=1,2"],
            [f"{name}\nbudget.parameters={n}" for name in ("nava", "ovi") for n in (1, 2)],
        ),
    ],
)
def test_columns_are_named_by_what_differs(overrides, expected):
    assert labels(combinations(overrides)) == expected


def test_a_narrow_terminal_cuts_nothing_short():
    one, told = described(["variant=unified", "variant.depth=1", "budget.parameters=300_000"]), io.StringIO()
    many = [one | {"parameters": one["parameters"] | {"total": 32_656_733_184 + number}} for number in range(6)]
    print_descriptions(many, [f"bridge.kind=of_many_words_{number}" for number in range(6)], Console(file=told, width=40))
    assert "…" not in told.getvalue()
    for number in range(6):
        assert f"32,656,733,18{4 + number}" in told.getvalue()
        assert f"bridge.kind=of_many_words_{number}" in told.getvalue()


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0"), (0.25, "0.25"), (999, "999"), (999_600, "1 M"), (1.56e15, "1.56 P"), (3.72e16, "37.2 P")]
)
def test_numbers_have_three_digits_and_a_unit(count, told):
    assert short(count) == told
