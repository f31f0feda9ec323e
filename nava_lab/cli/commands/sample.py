"""``nava sample``: new clips from a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nava_lab.cli.words import number, one_run, only_evaluation, options_of, tell

if TYPE_CHECKING:
    from nava_lab.study.given import Wish

USAGE = """\
  nava sample RUN [evaluation.KEY=V]  new clips from a finished or killed run   [--count N] [--seed N] [--out FOLDER]
      [--batch-size N] [--previews N]; what is given: [--video FILE] [--audio FILE] [--first-frame FILE]
      [--continue FILE --seconds S], or of the world's own clips [--given MODALITY --from SPLIT];
      [--prompt TEXT]: what they are told (by default the captions of the world's clips; with a file, nothing)
"""


def main(arguments: list[str]) -> None:
    files = dict.fromkeys(("--audio", "--video", "--first-frame", "--continue"), "")
    plain = dict.fromkeys(("--seed", "--out", "--batch-size", "--previews", "--seconds", "--given", "--from", "--prompt"), "")
    plain |= {"--count": "4"}
    options, rest = options_of(arguments, plain | files)
    folder = one_run([part for part in rest if "=" not in part])
    overrides = [part for part in rest if "=" in part]
    only_evaluation(overrides)
    if options["--seconds"] and not options["--continue"]:
        raise ValueError("--seconds says how much of --continue FILE is given: name the file")
    from nava_lab.config import from_file
    from nava_lab.study.given import Wish
    from nava_lab.study.sample import sample_run

    config = from_file(folder / "config.yaml", overrides)
    whole = {name: Path(options[f"--{name}"]) for name in ("audio", "video") if options[f"--{name}"]}
    first = {"video": Path(options["--first-frame"])} if options["--first-frame"] else {}
    given = options["--given"]
    if not given and not whole and config.evaluation.given not in first:
        given = config.evaluation.given
    wish = Wish(
        whole,
        first,
        Path(options["--continue"]) if options["--continue"] else None,
        number(options, "--seconds", float),
        given,
        options["--from"] or "test",
        options["--prompt"],
        bool(options["--from"]),
    )
    out = Path(options["--out"]) if options["--out"] else folder / "-".join(("samples", *of_use(wish)))
    count, seed, size, shown = (number(options, name, int) for name in ("--count", "--seed", "--batch-size", "--previews"))
    for path in sample_run(folder, config, out, count or 0, seed, tell, wish, size, shown):
        print(path)


def of_use(wish: Wish) -> list[str]:
    """What clips are given, as their folder is called: one use's clips do not replace another's."""
    return [*wish.whole, *(f"first_{name}" for name in wish.first_steps), *(["continued"] if wish.beginning else [])]
