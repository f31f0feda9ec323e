"""``nava describe``: what a config would build, a system as released, several in one table; of a world alone, its clips."""

from __future__ import annotations

import json
from pathlib import Path

from nava_lab.cli.words import number, only_overrides, options_of

USAGE = """\
  nava describe [-m] [KEY=VALUE ...]  stages, parameters by group, FLOPs by part, memory, how the budget was met  [--json]
                                      size=published: a system as it was released; -m: several side by side
                                      --mask: a picture of who sees whom in every stage (--mask=cut: where attention is cut)
  nava describe world=NAME [...]      samples with text and events, and a page that plays them
                                      [--count N] [--from SPLIT] [--out FOLDER]
"""
OF_A_WORLD = ("world=", "world.", "clips.", "difficulty=", "output.")  # settings that speak of clips alone


def main(arguments: list[str]) -> None:
    settings = [part for part in arguments if "=" in part and not part.startswith("--")]
    if settings and all(part.startswith(OF_A_WORLD) for part in settings) and not {"--json", "--mask", "-m"} & set(arguments):
        return _world(arguments)
    as_json, many = "--json" in arguments, any(part in ("-m", "--multirun") for part in arguments)
    mask = next((part for part in arguments if part in ("--mask", "--mask=cut")), None)
    overrides = [part for part in arguments if part not in ("--json", "-m", "--multirun", mask)]
    only_overrides(overrides)
    if mask is not None:
        from nava_lab.config import load
        from nava_lab.study.describe import mask_pictures

        if many:
            raise ValueError(f"{mask} draws one variant at a time: leave -m out")
        if size := next((part for part in overrides if part.startswith("size=")), None):
            raise ValueError(f"{mask} draws the tokens of a world, and {size} is described without one: leave one of them out")
        print("\n\n".join(picture.text() for picture in mask_pictures(load(overrides), cut=mask == "--mask=cut")))
        return
    from nava_lab.study.describe import combinations, described

    jobs = combinations(overrides) if many else [overrides]
    made = [described(job) for job in jobs]
    if as_json:
        print(json.dumps(made if many else made[0], indent=2))
        return
    from nava_lab.report.described import labels, print_description, print_descriptions

    if many:
        print_descriptions(made, labels(jobs))
    else:
        print_description(made[0])


def _world(arguments: list[str]) -> None:
    options, overrides = options_of(arguments, {"--count": "4", "--from": "train", "--out": ""})
    only_overrides(overrides)
    from nava_lab.config import load
    from nava_lab.report.world import print_samples, samples, write_page

    config = load(overrides)
    config.world.prepare()
    shown = samples(config.world, options["--from"], number(options, "--count", int) or 0)
    print_samples(config.world, shown)
    out = Path(options["--out"]) if options["--out"] else Path(config.output.root) / "worlds" / config.world.name
    print(f"page: {write_page(config.world, shown, out, ' '.join(['nava describe', *arguments]))}")
