"""``nava compare``: table, data frames, figures and page."""

from __future__ import annotations

from pathlib import Path

from nava_lab.cli.words import options_of

USAGE = """\
  nava compare RUNS_OR_STUDY ...      verdict, table, CSV and Parquet, figures, page   [--out FOLDER]
                                      of runs, a folder of runs, or a study's folder
"""


def main(arguments: list[str]) -> None:
    options, rest = options_of(arguments, {"--out": ""})
    if not rest:
        raise ValueError("nava compare RUNS_OR_STUDY ...: name runs, a folder of runs, or a study's folder")
    show([Path(part) for part in rest], Path(options["--out"]) if options["--out"] else None)


def show(folders: list[Path], out: Path | None) -> None:
    """Print the comparison and write its page into ``out``: by default beside the runs, or into the folder of runs or study."""
    from nava_lab.report.compare import compare as compare_runs
    from nava_lab.report.page import write_page
    from nava_lab.report.table import print_comparison

    comparison = compare_runs(folders)
    print_comparison(comparison)
    beside = folders[0].parent if (folders[0] / "config.yaml").exists() else folders[0]
    page = write_page(comparison, out or beside / "compare")
    print(f"page: {page}")
