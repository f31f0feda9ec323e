"""``nava describe``: what a config would build."""

from __future__ import annotations

import json

from nava_lab.cli.words import only_overrides

USAGE = """\
  nava describe [KEY=VALUE ...]       stages, parameters by group, FLOPs, how the budget was met  [--json]
                                      --mask: a picture of who sees whom in every stage (--mask=cut: where attention is cut)
"""


def main(arguments: list[str]) -> None:
    as_json = "--json" in arguments
    mask = next((part for part in arguments if part in ("--mask", "--mask=cut")), None)
    overrides = [part for part in arguments if part not in ("--json", mask)]
    only_overrides(overrides)
    from nava_lab.config import load
    from nava_lab.study.describe import description, mask_pictures

    config = load(overrides)
    if mask is not None:
        print("\n\n".join(picture.text() for picture in mask_pictures(config, cut=mask == "--mask=cut")))
        return
    described = description(config)
    if as_json:
        print(json.dumps(described, indent=2))
        return
    from nava_lab.report.table import print_description

    print_description(described)
