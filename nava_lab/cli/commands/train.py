"""``nava train``: one run, or with -m every combination of values."""

from __future__ import annotations

import sys
from pathlib import Path

from nava_lab.cli.words import only_overrides, tell

USAGE = """\
  nava train [-m] [KEY=VALUE ...]     train (or continue), sample, score; -m: every combination of values
"""


def main(arguments: list[str]) -> None:
    many = [part for part in arguments if part in ("-m", "--multirun")]
    overrides = [part for part in arguments if part not in ("-m", "--multirun")]
    only_overrides(overrides)
    if many:
        folders = multirun(overrides)
        print("compare them with: nava compare " + " ".join(map(str, folders)))
        return
    from nava_lab.config import load
    from nava_lab.study.run import run

    _print_run(run(load(overrides), tell))


def multirun(overrides: list[str]) -> list[Path]:
    """Check every combination, then let Hydra launch them; a typo in one value stops all before any training."""
    from hydra import main as hydra_main
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from nava_lab.config import CONFIGS, ConfigError, check_choices, explain, load, register, typed
    from nava_lab.study.identity import run_name
    from nava_lab.study.run import prepared, run

    try:
        check_choices(overrides)
        parsed = OverridesParser.create().parse_overrides([part for part in overrides if not part.startswith("hydra")])
        jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except ConfigError:
        raise
    except Exception as error:  # Hydra's grammar errors share no public base class
        raise ConfigError(explain(error, overrides)) from None
    folders = []
    for job in jobs:
        config = load(job)
        prepared(config)
        if config.trainer.strategy == "ddp" and config.trainer.devices not in (1, "1"):
            raise ConfigError(
                "trainer.strategy=ddp starts this whole multirun again on every device; use ddp_fork, or one run at a time"
            )
        folders.append(Path(config.output.root) / run_name(config.resolved, config.world.data_version()))
    if len(set(folders)) < len(folders):
        raise ConfigError("two jobs of this multirun are the same run: some value is listed twice")
    tell(f"{len(jobs)} runs, all checked")
    register()
    failed: list[str] = []

    def launched(composed: object) -> None:
        config = typed(composed)  # type: ignore[arg-type]
        try:
            run(config, tell)
        except (ValueError, FloatingPointError, OSError, RuntimeError) as error:
            failed.append(f"{config.variant.name} seed {config.seed}: {error}")
            tell(f"failed: {failed[-1]}")

    argv, sys.argv = sys.argv, ["nava", "--multirun", *overrides]
    try:
        hydra_main(config_path=str(CONFIGS), config_name="train", version_base="1.3")(launched)()
    finally:
        sys.argv = argv
    if failed:
        raise ConfigError(f"{len(failed)} of {len(jobs)} runs failed: " + "; ".join(failed))
    return folders


def _print_run(folder: Path) -> None:
    from nava_lab.report.compare import compare as compare_runs
    from nava_lab.report.table import print_comparison

    if (folder / "record.json").exists():
        print_comparison(compare_runs([folder]))
    print(folder)
