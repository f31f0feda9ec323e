"""``nava bench``: what parts of the machinery cost on this machine."""

from __future__ import annotations

USAGE = """\
  nava bench step [variant=A,B] [KEY=VALUE ...]   a training step by parts, against its matrix products and diffusers
                                      [--scaling] [--rounds N] [--no-peers] [--profile FOLDER] [--json]
  nava bench start [KEY=VALUE ...]    seconds to the first training step, by parts    [--cold] [--repeats=N] [--json]
  nava bench sampler [KEY=VALUE ...]  overhead of each solver over bare model evaluations  [--json] [--batch-size N]
  nava bench data [KEY=VALUE ...]     how much faster clips are rendered than the model consumes them
                                      [--all] [--repeats=N] [--json]
  nava bench devices [KEY=VALUE ...]  samples per second with further processes
                                      [--processes 1,2] [--strategies ddp,fsdp] [--steps N] [--json]
  nava bench seeds [KEY=VALUE ...]    several seeds in one training against one after the other
                                      [--seeds 8] [--together 1,2,8] [--steps N] [--rounds N] [--json]
  nava bench attention                time and error of each backend here    [--lengths N,N] [--widths N,N] [--device D] [--json]
"""


def main(arguments: list[str]) -> None:
    from importlib import import_module

    from nava_lab.bench import BENCHES
    from nava_lab.registry import nearest

    name = arguments[0] if arguments else ""
    if name not in BENCHES:
        raise ValueError(f"nava bench NAME: {nearest(name, list(BENCHES))}")
    if code := import_module(BENCHES[name]).main(arguments[1:]):
        raise SystemExit(code)
