"""``nava export``: weights as one safetensors file."""

from __future__ import annotations

from pathlib import Path

from nava_lab.cli.words import options_of, tell

USAGE = """\
  nava export RUN|CHECKPOINT FILE     weights, sharded or not, as one FILE.safetensors
      [--to plain|wan|"wan (diffusers)"|ovi|ltx2|"ltx2 (diffusers)"]
      [--weights averaged|current] [--dtype float32|bfloat16|float16] [--patch T,H,W]
      [--expert low|high] [--differ NAME,...]
"""


def main(arguments: list[str]) -> None:
    defaults = {"--to": "plain", "--weights": "averaged", "--dtype": "float32", "--patch": "1,2,2"}
    defaults |= {"--expert": "low", "--differ": ""}
    options, rest = options_of(arguments, defaults)
    if len(rest) != 2:
        raise ValueError("nava export RUN|CHECKPOINT FILE.safetensors: name both")
    try:
        patch = tuple(int(part) for part in options["--patch"].split(","))
    except ValueError:
        raise ValueError(f"--patch {options['--patch']} must be whole numbers: 1,2,2, say") from None
    from nava_lab.study.export import Form, export_weights

    differ = tuple(part for part in options["--differ"].split(",") if part)
    form = Form(options["--to"], options["--weights"], options["--dtype"], patch, options["--expert"], differ)
    export_weights(Path(rest[0]), Path(rest[1]), form, tell)
    print(rest[1])
