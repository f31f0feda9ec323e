"""The command line. Listing and help import nothing heavy; every mistake ends in one line."""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from nava_lab.registry import (
    PACKAGE,
    UnknownName,
    _fields,
    blocks,
    bridges,
    guidance,
    level_laws,
    level_weights,
    metrics,
    schedules,
    solvers,
    variants,
    worlds,
)

T = TypeVar("T")

USAGE = """nava: compare joint audio-video generators at equal parameters, compute and data

  nava train [-m] [KEY=VALUE ...]     train (or continue), sample, score; -m: every combination of values
  nava describe [KEY=VALUE ...]       stages, parameters by group, FLOPs, how the budget was met  [--json]
                                      --mask: a picture of who sees whom in every stage (--mask=cut: where attention is cut)
  nava sample RUN [evaluation.KEY=V]  new clips from a finished or killed run   [--count N] [--seed N] [--out FOLDER]
      [--batch-size N] [--previews N]; what is given: [--video FILE] [--audio FILE] [--first-frame FILE]
      [--continue FILE --seconds S], or of the world's own clips [--given MODALITY --from SPLIT];
      [--prompt TEXT]: what they are told (by default the captions of the world's clips; with a file, nothing)
  nava score RUN [evaluation.KEY=V]   score a finished or killed run
  nava compare RUN ...                table and page                            [--out FOLDER]
  nava bench sampler [KEY=VALUE ...]  overhead of each solver over bare model evaluations  [--json] [--batch-size N]
  nava bench attention                time and error of each backend here    [--lengths N,N] [--widths N,N] [--device D] [--json]
  nava demo [KEY=VALUE ...]           the three families at one budget, trained, scored and compared

`nava train --help` lists what can be set. RUN is a run's folder.
"""
FAMILIES = ("dual_tower", "unified", "align_then_fuse")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``nava``."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE + _catalogue(short=True))
        return
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from nava_lab import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        from nava_lab.registry import nearest

        _fail(f"there is no command '{name}'; {nearest(name, list(COMMANDS))}")
    _quieten()
    try:
        if any(part in ("-h", "--help") for part in rest):
            print(USAGE + _catalogue(short=name not in ("train", "describe", "demo")))
            return
        COMMANDS[name](rest)
    except (ValueError, UnknownName, OSError, FloatingPointError, SyntaxError, MemoryError) as error:
        if os.environ.get("NAVA_DEBUG"):
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped; the same command continues where it was", 130)


def _fail(message: str, code: int = 2) -> None:
    print(f"nava: {message}", file=sys.stderr)
    raise SystemExit(code)


def _quieten() -> None:
    """Silence advertisements and advice that a user of this command cannot act on."""
    import logging

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*Checkpoint directory .* exists.*",
        ".*infer the batch size.*",
        ".*IterableDataset.*",
        ".*Found .* module.* in eval mode.*",
        ".*Trying to infer.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)


def _catalogue(short: bool) -> str:
    """Variants, worlds and (in full) every setting, read from the source files alone."""
    lines = []
    for title, entries in (("Variants", variants), ("Worlds", worlds)):
        lines.append(f"{title}:")
        for entry in entries.entries.values():
            lines.append(f"  {entry.name:18} {entry.summary}")
            if not short:
                key = entries.variable.removesuffix("s")
                lines += [f"      {key}.{field}={default}" for field, default in entry.fields]
    lines.append("Budgets:\n  budget.parameters=1_000_000, or budget.flops=..., or budget.width=... budget.hidden=...")
    if short:
        return "\n".join(lines) + "\n"
    settings = [
        ("every variant", "variant", "models/variant.py", "Variant"),
        ("budget", "budget", "budget/solve.py", "Budget"),
        ("training", "training", "training/settings.py", "Training"),
        ("noise and objective", "flow", "config.py", "Flow"),
        ("sampling and scoring", "evaluation", "config.py", "Evaluation"),
        ("attention", "attention", "config.py", "Attention"),
        ("conditioning", "conditioning", "config.py", "Conditioning"),
        ("machine", "trainer", "config.py", "Machine"),
        ("output", "output", "config.py", "Output"),
    ]
    for title, key, file, class_name in settings:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        node = next(part for part in tree.body if isinstance(part, ast.ClassDef) and part.name == class_name)
        lines.append(f"Settings, {title}:")
        lines += [f"  {key}.{field}={default}" for field, default in _fields(node) if default not in ("None",) or key == "budget"]
    lines.append("  seed=0")
    lines.append("Guidance (all off):")
    for entry in guidance.entries.values():
        names = [field for field, _ in entry.fields]
        lines.append(f"  {entry.name:18} {entry.summary}")
        single = len(names) == 1
        lines += [
            f"      evaluation.guidance.{entry.name}" + ("" if single else f".{field}") + f"={default}"
            for field, default in entry.fields
        ]
    groups = (
        *(("flow/levels", level_laws), ("flow/weighting", level_weights)),
        *(("evaluation/solver", solvers), ("evaluation/schedule", schedules)),
    )
    for key, entries in groups:
        named = {
            entry.name: ", ".join(f"{field}={default.removeprefix('lambda: ')}" for field, default in entry.fields)
            for entry in entries.entries.values()
        }
        lines.append(f"{key}: " + ", ".join(name + (f"({fields})" if fields else "") for name, fields in named.items()))
    folder = PACKAGE.parent / "configs"
    for group in sorted(part for part in folder.iterdir() if part.is_dir()) if folder.is_dir() else []:
        lines.append(f"{group.name}: " + ", ".join(sorted(file.stem for file in group.glob("*.yaml"))))
    for title, entries in (("Blocks", blocks), ("Bridges", bridges), ("Metrics", metrics)):
        lines.append(f"{title}: " + ", ".join(entries))
    return "\n".join(lines) + "\n"


def train(arguments: list[str]) -> None:
    many = [part for part in arguments if part in ("-m", "--multirun")]
    overrides = [part for part in arguments if part not in ("-m", "--multirun")]
    _only_overrides(overrides)
    if many:
        folders = _multirun(overrides)
        print("compare them with: nava compare " + " ".join(map(str, folders)))
        return
    from nava_lab.config import load
    from nava_lab.study.run import run

    _print_run(run(load(overrides), _tell))


def _multirun(overrides: list[str]) -> list[Path]:
    """Check every combination, then let Hydra launch them; a typo in one value stops all before any training."""
    from hydra import main as hydra_main
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from nava_lab.config import CONFIGS, ConfigError, check_choices, explain, load, register, typed
    from nava_lab.study.identity import run_name
    from nava_lab.study.run import prepared, run

    try:
        check_choices(overrides)
        parsed = OverridesParser.create().parse_overrides([part for part in overrides if not part.startswith("hydra")])
        jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except ConfigError:
        raise
    except Exception as error:  # Hydra's grammar errors share no public base class
        raise ConfigError(explain(error, overrides)) from None
    folders = []
    for job in jobs:
        config = load(job)
        prepared(config)
        if config.trainer.strategy == "ddp" and config.trainer.devices not in (1, "1"):
            raise ConfigError(
                "trainer.strategy=ddp starts this whole multirun again on every device; use ddp_fork, or one run at a time"
            )
        folders.append(Path(config.output.root) / run_name(config.resolved, config.world.data_version()))
    if len(set(folders)) < len(folders):
        raise ConfigError("two jobs of this multirun are the same run: some value is listed twice")
    _tell(f"{len(jobs)} runs, all checked")
    register()
    failed: list[str] = []

    def launched(composed: object) -> None:
        config = typed(composed)  # type: ignore[arg-type]
        try:
            run(config, _tell)
        except (ValueError, FloatingPointError, OSError, RuntimeError) as error:
            failed.append(f"{config.variant.name} seed {config.seed}: {error}")
            _tell(f"failed: {failed[-1]}")

    argv, sys.argv = sys.argv, ["nava", "--multirun", *overrides]
    try:
        hydra_main(config_path=str(CONFIGS), config_name="train", version_base="1.3")(launched)()
    finally:
        sys.argv = argv
    if failed:
        raise ConfigError(f"{len(failed)} of {len(jobs)} runs failed: " + "; ".join(failed))
    return folders


def describe(arguments: list[str]) -> None:
    as_json = "--json" in arguments
    mask = next((part for part in arguments if part in ("--mask", "--mask=cut")), None)
    overrides = [part for part in arguments if part not in ("--json", mask)]
    _only_overrides(overrides)
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


def sample(arguments: list[str]) -> None:
    files = dict.fromkeys(("--audio", "--video", "--first-frame", "--continue"), "")
    plain = dict.fromkeys(("--seed", "--out", "--batch-size", "--previews", "--seconds", "--given", "--from", "--prompt"), "")
    plain |= {"--count": "4"}
    options, rest = _options(arguments, plain | files)
    folder = _one_run([part for part in rest if "=" not in part])
    overrides = [part for part in rest if "=" in part]
    _only_evaluation(overrides)
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
        _number(options, "--seconds", float),
        given,
        options["--from"] or "test",
        options["--prompt"],
        bool(options["--from"]),
    )
    out = Path(options["--out"]) if options["--out"] else folder / "samples"
    count, seed, size, shown = (_number(options, name, int) for name in ("--count", "--seed", "--batch-size", "--previews"))
    for path in sample_run(folder, config, out, count or 0, seed, _tell, wish, size, shown):
        print(path)


def score(arguments: list[str]) -> None:
    overrides = [part for part in arguments if "=" in part]
    folder = _one_run([part for part in arguments if "=" not in part])
    _only_evaluation(overrides)
    from nava_lab.config import from_file
    from nava_lab.report.table import digits_for, interval
    from nava_lab.study.identity import run_hash
    from nava_lab.study.run import score as score_run

    config = from_file(folder / "config.yaml", overrides)
    config.world.prepare()
    own = run_hash(config.resolved, config.world.data_version())
    into = folder / "scores" / own if own not in folder.name else None
    made = score_run(config, folder, _tell, into=into)
    for name, value in made["scores"].items():
        print(f"{name:20} {interval(value, digits_for(name))}  n={value['n']}")
    print(into or folder)


def compare(arguments: list[str]) -> None:
    options, rest = _options(arguments, {"--out": ""})
    if not rest:
        raise ValueError("nava compare RUN ...: name the folders of the runs to compare")
    _compare([Path(part) for part in rest], Path(options["--out"]) if options["--out"] else None)


def _compare(folders: list[Path], out: Path | None) -> None:
    from nava_lab.report.compare import compare as compare_runs
    from nava_lab.report.page import write_page
    from nava_lab.report.table import print_comparison

    comparison = compare_runs(folders)
    print_comparison(comparison)
    page = write_page(comparison, out or folders[0].parent / "compare")
    print(f"page: {page}")


def demo(arguments: list[str]) -> None:
    """Train, sample and score the three families, then compare them."""
    _only_overrides(arguments)
    if not any(part.startswith("variant=") for part in arguments):
        arguments = [f"variant={','.join(FAMILIES)}", *arguments]
    _compare(_multirun(arguments), None)


def bench(arguments: list[str]) -> None:
    from importlib import import_module

    from nava_lab.bench import BENCHES
    from nava_lab.registry import nearest

    name = arguments[0] if arguments else ""
    if name not in BENCHES:
        raise ValueError(f"nava bench NAME: {nearest(name, list(BENCHES))}")
    if code := import_module(BENCHES[name]).main(arguments[1:]):
        raise SystemExit(code)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "describe": describe,
    "sample": sample,
    "score": score,
    "compare": compare,
    "demo": demo,
    "bench": bench,
}


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _only_overrides(arguments: Sequence[str]) -> None:
    for part in arguments:
        if "=" not in part and not part.startswith("~"):
            raise ValueError(f"'{part}' is no setting: write KEY=VALUE (see nava train --help)")


def _only_evaluation(overrides: Sequence[str]) -> None:
    for part in overrides:
        if not part.startswith(("evaluation.", "evaluation/")):
            raise ValueError(f"{part}: a run stays as it was trained; only evaluation.* can be changed")


def _number(options: dict[str, str], name: str, kind: Callable[[str], T]) -> T | None:
    """An option as a number; None where it is not given."""
    try:
        return kind(options[name]) if options[name] else None
    except ValueError:
        raise ValueError(f"{name}={options[name]} is no number") from None


def _options(arguments: Sequence[str], defaults: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    values, rest, queue = dict(defaults), [], list(arguments)
    while queue:
        part = queue.pop(0)
        name, _, value = part.partition("=")
        if name in values:
            if not value and not queue:
                raise ValueError(f"{name} needs a value")
            values[name] = value or queue.pop(0)
        elif part.startswith("--"):
            raise ValueError(f"there is no option {part}; known: {', '.join(values)}")
        else:
            rest.append(part)
    return values, rest


def _one_run(arguments: Sequence[str]) -> Path:
    if len(arguments) != 1:
        raise ValueError("name one run's folder")
    folder = Path(arguments[0])
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{folder} is not a run's folder (it has no config.yaml)")
    return folder


def _print_run(folder: Path) -> None:
    from nava_lab.report.compare import compare as compare_runs
    from nava_lab.report.table import print_comparison

    if (folder / "record.json").exists():
        print_comparison(compare_runs([folder]))
    print(folder)
