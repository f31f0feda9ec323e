"""The attention bench: every backend and mask, exact within its precision."""

import json

import pytest

from nava_lab.bench.attention import MASKS, Settings, figures
from nava_lab.cli import main
from nava_lab.registry import backends


def test_every_backend_is_measured_and_exact():
    made = list(figures(Settings(lengths=(16,), widths=(32,), tokens=32, rounds=2), lambda message: None))
    assert {figure.mask for figure in made} == set(MASKS)
    assert {figure.backend for figure in made} == {*backends, "auto (sdpa)", "sdpa, packed"}
    assert all(figure.error < 1e-5 and figure.ms > 0 and figure.to_sdpa > 0 for figure in made)
    assert all((figure.training_ms is None) == (figure.backend == "flex") for figure in made)


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
