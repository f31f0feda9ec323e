"""``nava describe``: what a config would build, a system as it was released, or several in one table."""

from __future__ import annotations

import json

from nava_lab.cli.words import only_overrides

USAGE = """\
  nava describe [-m] [KEY=VALUE ...]  stages, parameters by group, FLOPs by part, memory, how the budget was met  [--json]
                                      size=published: a system as it was released; -m: several side by side
                                      --mask: a picture of who sees whom in every stage (--mask=cut: where attention is cut)
"""


def main(arguments: list[str]) -> None:
    as_json, many = "--json" in arguments, any(part in ("-m", "--multirun") for part in arguments)
    mask = next((part for part in arguments if part in ("--mask", "--mask=cut")), None)
    overrides = [part for part in arguments if part not in ("--json", "-m", "--multirun", mask)]
    only_overrides(overrides)
    if mask is not None:
        from nava_lab.config import load
        from nava_lab.study.describe import mask_pictures

        if many:
            raise ValueError(f"{mask} draws one variant at a time: leave -m out")
        print("\n\n".join(picture.text() for picture in mask_pictures(load(overrides), cut=mask == "--mask=cut")))
        return
    from nava_lab.study.describe import combinations, described

    made = [described(job) for job in combinations(overrides)] if many else [described(overrides)]
    if as_json:
        print(json.dumps(made if many else made[0], indent=2))
        return
    from nava_lab.report.described import print_description, print_descriptions

    if many:
        print_descriptions(made)
    else:
        print_description(made[0])
