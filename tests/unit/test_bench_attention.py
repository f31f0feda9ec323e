"""The attention bench: every backend and mask, exact within its precision."""

import json

import pytest
import torch

from nava_lab.bench import attention
from nava_lab.bench.attention import ANEW, MASKS, Figure, Settings, figures, verdict
from nava_lab.cli import main
from nava_lab.registry import backends


def test_every_backend_is_measured_and_exact():
    made = list(figures(Settings(lengths=(16,), widths=(32,), tokens=32, rounds=2), lambda message: None))
    assert {figure.mask for figure in made} == set(MASKS)
    assert {figure.backend for figure in made} == {*backends, "auto (sdpa)", "sdpa, packed", ANEW}
    assert all(figure.error < 1e-5 and figure.ms > 0 and figure.to_sdpa > 0 for figure in made)
    assert all((figure.training_ms is None) == (figure.backend in ("flex", ANEW)) for figure in made)


def test_the_command_prints_json(capsys):
    main(["bench", "attention", "--lengths=8", "--widths=32", "--json"])
    assert {row["length"] for row in json.loads(capsys.readouterr().out)} == {8}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bench"], "attention"),
        (["bench", "attention", "--lengths=x"], "--lengths=x"),
        (["bench", "attention", "--device=tpu"], "tpu"),
    ],
)
def test_a_mistake_is_named(arguments, named, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert named in capsys.readouterr().err


def small(monkeypatch, **changes):
    told = []
    for name, value in changes.items():
        monkeypatch.setattr(attention, name, value)
    return list(figures(Settings(lengths=(16,), widths=(32,), tokens=32, rounds=1), told.append)), told


def test_a_reference_too_large_to_time_is_left_out_and_said(monkeypatch):
    made, told = small(monkeypatch, REFERENCE_BYTES=1000)
    assert made
    assert "reference" not in {figure.backend for figure in made}
    assert all(figure.error < 1e-5 for figure in made)
    assert any(line.startswith("reference is not timed") for line in told)


def test_who_does_not_fit_into_memory_is_left_out_and_the_others_are_not(monkeypatch):
    def full(*arguments, **named):
        raise torch.OutOfMemoryError("full")

    made, told = small(monkeypatch, _plain=full)
    assert {figure.backend for figure in made} == {*backends, "auto (sdpa)", "sdpa, packed", ANEW}
    assert all(figure.to_sdpa is None and figure.to_products > 0 for figure in made)
    assert "plain does not fit into memory: left out" in told
    made, told = small(monkeypatch, _exact=full)
    assert made
    assert all(figure.error is None for figure in made)


@pytest.mark.parametrize("as_json", [True, False])
def test_what_is_done_is_shown_whatever_goes_wrong_later(as_json, monkeypatch, capsys):
    right = attention._case

    def breaks(settings, length, *rest):
        if length == 16:
            raise RuntimeError("the machine went away")
        return right(settings, length, *rest)

    monkeypatch.setattr(attention, "_case", breaks)
    with pytest.raises(RuntimeError):
        attention.main(["--lengths=8,16", "--widths=32", *(["--json"] if as_json else [])])
    shown = capsys.readouterr().out
    assert {row["length"] for row in json.loads(shown)} == {8} if as_json else "sdpa, packed" in shown


def test_a_gpu_is_judged_in_training_too_and_with_the_making_of_the_mask():
    fast = [Figure(4096, 512, "window", name, 1.0, 0.5, 1.0, 0.0, 1.0, 0.5) for name in ("flex", ANEW)]
    assert verdict(fast, "cuda").endswith("met")
    slow_backward = Figure(4096, 512, "window", "flex", 1.0, 0.5, 1.0, 0.0, 1.0, 1.5)
    assert "missed by flex in 1 cases, at most 1.50" in verdict([slow_backward, fast[1]], "cuda")
    slow_making = Figure(4096, 512, "window", ANEW, 1.0, 1.2, 1.0, 0.0, 1.0, 0.9)
    assert f"missed by {ANEW} in 1 cases, at most 1.20" in verdict([fast[0], slow_making], "cuda")
    assert "no such case" in verdict([], "cuda")
