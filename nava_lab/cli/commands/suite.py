"""``nava suite``: the suite of worlds checks its own instrument."""

from __future__ import annotations

USAGE = """\
  nava suite [WORLD ...]              what true clips score on every world, and what chance scores
                                      [--difficulty easy,medium,hard|all] [--clips N] [--json]; --floor: the decoder's own error
"""


def main(arguments: list[str]) -> None:
    from nava_lab.report.suite import main as scores

    if code := scores(arguments):
        raise SystemExit(code)
