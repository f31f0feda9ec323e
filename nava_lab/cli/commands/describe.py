"""``nava describe``: what a config would build; of a world alone, what its clips are."""

from __future__ import annotations

import json
from pathlib import Path

from nava_lab.cli.words import number, only_overrides, options_of

USAGE = """\
  nava describe [KEY=VALUE ...]       stages, parameters by group, FLOPs, how the budget was met  [--json]
                                      --mask: a picture of who sees whom in every stage (--mask=cut: where attention is cut)
  nava describe world=NAME [...]      samples with text and events, and a page that plays them
                                      [--count N] [--from SPLIT] [--out FOLDER]
"""
OF_A_WORLD = ("world=", "world.", "clips.", "difficulty=", "output.")  # settings that speak of clips alone


def main(arguments: list[str]) -> None:
    settings = [part for part in arguments if "=" in part and not part.startswith("--")]
    if settings and all(part.startswith(OF_A_WORLD) for part in settings) and not {"--json", "--mask"} & set(arguments):
        return _world(arguments)
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
