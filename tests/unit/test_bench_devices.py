"""``nava bench devices``: what it computes and refuses. Its figures belong to a quiet machine and are not tested."""

import json
import math

import pytest

from nava_lab.bench import BENCHES, devices

SMALL = [
    "variant=unified",
    "variant.depth=2",
    "budget.parameters=60_000",
    "world=gaussian",
    "training.batch_size=4",
    "trainer=cpu",
]


def rows(power):
    return [{"strategy": "ddp", "processes": n, "step_ms": 1.0, "samples_per_s": 7.0 * n**power} for n in (1, 2, 4)]


def test_the_exponent_is_that_of_a_power_law():
    assert devices.exponent(rows(1.0)) == pytest.approx(1.0)
    assert devices.exponent(rows(0.6)) == pytest.approx(0.6)
    assert math.isnan(devices.exponent(rows(1.0)[:1]))


def test_every_process_has_as_many_clips_as_one_alone():
    one, four = (devices.configured(SMALL, "fsdp", count, 5) for count in (1, 4))
    assert (one.training.batch_size, four.training.batch_size) == (4, 16)
    assert four.trainer.devices == 4


def test_the_table_and_what_is_refused(monkeypatch, capsys):
    made = iter(rows(1.0)[:2] + rows(1.0)[:2])
    monkeypatch.setattr(devices, "measure", lambda *_: next(made))
    assert BENCHES["devices"] == "nava_lab.bench.devices"
    assert devices.main(["--strategies", "ddp", *SMALL]) == 0
    assert "to the power of ddp 1.00" in capsys.readouterr().out
    devices.main(["--strategies=ddp", "--json", *SMALL])
    assert json.loads(capsys.readouterr().out)["exponents"]["ddp"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="known are ddp, fsdp"):
        devices.main(["--strategies=dpd"])
