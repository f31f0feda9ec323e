"""``nava compare``: table and page."""

from __future__ import annotations

from pathlib import Path

from nava_lab.cli.words import options_of

USAGE = """\
  nava compare RUN ...                table and page                            [--out FOLDER]
"""


def main(arguments: list[str]) -> None:
    options, rest = options_of(arguments, {"--out": ""})
    if not rest:
        raise ValueError("nava compare RUN ...: name the folders of the runs to compare")
    show([Path(part) for part in rest], Path(options["--out"]) if options["--out"] else None)


def show(folders: list[Path], out: Path | None) -> None:
    from nava_lab.report.compare import compare as compare_runs
    from nava_lab.report.page import write_page
    from nava_lab.report.table import print_comparison

    comparison = compare_runs(folders)
    print_comparison(comparison)
    page = write_page(comparison, out or folders[0].parent / "compare")
    print(f"page: {page}")
