"""Settings that nothing reads at given values are refused with the reason; what nobody said is not."""

import pytest

from nava_lab.config import load
from nava_lab.models.denoiser import on_meta
from nava_lab.models.variant import Size, with_settings
from nava_lab.registry import variants
from tests.conftest import INTERFACE


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        (
            "nava",
            {"align_fraction": 0.0, "keep": ("attention",)},
            "variant.keep=.* changes nothing: of 6 layers .* lets none align",
        ),
        ("nava", {"align_fraction": 0.0, "align_text": False}, "variant.align_text=False changes nothing"),
        ("align_then_fuse", {"align_fraction": 1.0, "placement": "late"}, "variant.placement=late .* lets every one align"),
        ("magihuman", {"outer_fraction": 0.0, "first_share": 0.5}, "variant.first_share=0.5 changes nothing: of 6 layers"),
    ],
)
def test_what_nothing_reads_is_refused(name, settings, named):
    with pytest.raises(ValueError, match=named):
        with_settings(variants.get(name)(), settings).plan()


@pytest.mark.parametrize("override", ["variant=nava variant.align_fraction=0", "variant=magihuman variant.outer_fraction=0"])
def test_defaults_of_a_config_are_nobodys_word(override):
    """Hydra gives a tuple as a list, which is no other setting."""
    assert len(load(override.split()).variant.plan()) == 1


@pytest.mark.parametrize("key", ["width_share", "ratio_share"])
def test_text_outside_the_row_has_no_share(key):
    variant = with_settings(variants.get("dual_tower")(depth=1), {key: {"text": 0.5}})
    with pytest.raises(ValueError, match=rf"variant\.{key} names text; there is video, audio, and text is outside the row"):
        on_meta(variant, INTERFACE, Size(48, 96))
