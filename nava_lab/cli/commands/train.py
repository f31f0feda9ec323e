"""``nava train``: one run, or with -m every combination of values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nava_lab.cli.words import one_run, only_overrides, tell

USAGE = """\
  nava train [-m] [KEY=VALUE ...]     train (or continue), sample, score; -m: every combination of values
      seeds=8 | seeds=0,1,5           several seeds' runs in one training  [seeds_together=N], how many computed at once
      with -m: [launcher=joblib|slurm|local|ray], who runs them; [--retry-failed], those that failed before
  nava train --continue RUN [KEY=V]   go on with a begun run on other devices (trainer=fsdp, trainer.devices=1) or in
                                      smaller pieces (trainer.accumulate=2, evaluation.batch_size=16)
"""


def main(arguments: list[str]) -> None:
    if "--continue" in arguments:
        from nava_lab.study.run import resumed

        rest = [part for part in arguments if part != "--continue"]
        folder = one_run([part for part in rest if "=" not in part])
        _print_runs([resumed(folder, [part for part in rest if "=" in part], tell)])
        return
    many = [part for part in arguments if part in ("-m", "--multirun")]
    retry = "--retry-failed" in arguments
    overrides = [part for part in arguments if part not in ("-m", "--multirun", "--retry-failed")]
    only_overrides(overrides)
    if many:
        from nava_lab.study.multirun import multirun

        folders = multirun(overrides, tell, retry)
        print("compare them with: nava compare " + " ".join(map(str, folders)))
        return
    for part in overrides:
        if part.startswith(("launcher=", "hydra/launcher=", "hydra.launcher.")):
            raise ValueError(f"{part} does nothing for one run; -m launches every combination of values")
    if any(part.startswith(("seeds=", "seeds_together=")) for part in overrides):
        from nava_lab.config import composed
        from nava_lab.study.seeds import asked, configs_of, run_seeds

        rest, seeds, together = asked(overrides)
        _print_runs(run_seeds(configs_of(composed(rest), seeds), tell, together=together))
        return
    from nava_lab.config import load
    from nava_lab.study.run import run

    _print_runs([run(load(overrides), tell)])


def _print_runs(folders: Sequence[Path]) -> None:
    from nava_lab.report.compare import compare as compare_runs
    from nava_lab.report.table import print_comparison

    if all((folder / "record.json").exists() for folder in folders):
        print_comparison(compare_runs(list(folders)))
    for folder in folders:
        print(folder)
