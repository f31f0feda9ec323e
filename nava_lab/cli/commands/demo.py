"""``nava demo``: the three families at one budget."""

from __future__ import annotations

from nava_lab.cli.commands.compare import show
from nava_lab.cli.words import only_overrides, tell

FAMILIES = ("dual_tower", "unified", "align_then_fuse")

USAGE = """\
  nava demo [KEY=VALUE ...]           the three families at one budget, trained, scored and compared
"""


def main(arguments: list[str]) -> None:
    """Train, sample and score the three families, then compare them."""
    only_overrides(arguments)
    if not any(part.startswith("variant=") for part in arguments):
        arguments = [f"variant={','.join(FAMILIES)}", *arguments]
    from nava_lab.study.multirun import multirun

    show(multirun(arguments, tell), None)
