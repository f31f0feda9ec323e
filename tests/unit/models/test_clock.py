"""Where tokens of published systems stand on their clocks, and settings of a clock by which nothing turns."""

from dataclasses import replace

import pytest
import torch

from nava_lab.layers.rotary import Clock, clock_for
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size, released, with_settings
from nava_lab.registry import variants
from nava_lab.streams import time_positions
from tests.conftest import INTERFACE


def counted(name, modality, aligned, steps=4):
    """Position units of a released system's first time steps."""
    variant, found = released(variants.get(name))
    spec = found.interface.modalities[modality]
    clock = clock_for(variant.clock, found.interface.modalities)
    at = time_positions(steps, spec.seconds)
    return clock.place(at, spec, modality, aligned)[0, :, 0] * clock.hz


@pytest.mark.parametrize(
    ("name", "modality", "aligned", "step"),
    [
        ("mova", "video", False, 1.0),
        ("mova", "audio", False, 1.0),
        ("mova", "audio", True, 1.0),
        ("mova", "video", True, 21.5 / 6),  # in the exchange video's index counts f_a / f_v
        ("nava", "video", False, 1.0),
        ("nava", "audio", False, 0.24),
        ("ovi", "audio", False, 0.19676),
        ("magihuman", "audio", False, 0.25),
    ],
)
def test_what_released_systems_count(name, modality, aligned, step):
    found = counted(name, modality, aligned)
    torch.testing.assert_close(found - found[0], step * torch.arange(4.0), atol=1e-5, rtol=1e-5)
    if name != "magihuman":
        assert abs(float(found[0])) < 1e-6


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"clock.unit": "audio"}, r"clock.unit=audio .* clock.hz=12.5"),
        ({"clock.patch_hz": 2.0}, "clock.patch_hz=2 turns rows and columns, and no modality here has any"),
        ({"clock.unit": "sound", "clock.hz": 0.0}, "clock.unit names sound; there is video, audio"),
        ({"clock.index": True, "clock.hz": 7.0, "bridge.rotary": False}, "clock.hz=7.0: with clock.index=true"),
        ({"clock.index": True, "clock.hz": 7.0, "bridge.kind": "shared_query"}, "no exchange here turns by one clock for all"),
        ({"clock.index": True, "clock.hz": 0.0, "clock.unit": "audio", "bridge.rotary": False}, "clock.unit=audio: with"),
    ],
)
def test_a_clock_that_nothing_turns_by_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Denoiser(with_settings(variants.get("dual_tower")(depth=1), settings), INTERFACE, Size(24, 40))


def test_a_default_of_a_system_is_no_setting_of_a_user():
    """MOVA's unit is for its exchange; an exchange blind to time takes the use of it away, not the right to it."""
    Denoiser(with_settings(variants.get("mova")(depth=1), {"bridge.rotary": False}), INTERFACE, Size(48, 40))


def test_the_unit_is_a_step_of_whom_it_names():
    rates = {name: 1 / spec.seconds for name, spec in INTERFACE.modalities.items()}
    assert clock_for(Clock(hz=0.0), INTERFACE.modalities).hz == rates["video"]
    assert clock_for(Clock(hz=0.0, unit="audio"), INTERFACE.modalities).hz == rates["audio"]
    assert clock_for(replace(Clock(), hz=3.0), INTERFACE.modalities).hz == 3.0
