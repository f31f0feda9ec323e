"""``nava score``: score a run, as it was or by other settings."""

from __future__ import annotations

from nava_lab.cli.words import one_run, only_evaluation, tell

USAGE = """\
  nava score RUN [evaluation.KEY=V]   score a finished or killed run
"""


def main(arguments: list[str]) -> None:
    overrides = [part for part in arguments if "=" in part]
    folder = one_run([part for part in arguments if "=" not in part])
    only_evaluation(overrides)
    from nava_lab.config import from_file
    from nava_lab.report.numbers import digits_for, interval
    from nava_lab.study.identity import run_hash
    from nava_lab.study.run import score as score_run

    config = from_file(folder / "config.yaml", overrides)
    config.world.prepare()
    own = run_hash(config.resolved, config.world.data_version())
    into = folder / "scores" / own if own not in folder.name else None
    made = score_run(config, folder, tell, into=into)
    for name, value in made["scores"].items():
        print(f"{name:20} {interval(value, digits_for(name))}  n={value['n']}")
    print(into or folder)
