"""``nava bench step``: what a training step costs, part by part, against its matrix products alone and against diffusers.

In every round each contestant takes one turn, in an order of the round's own, and ratios are medians over rounds of the ratio
within one round, so that a machine that is busy for a while slows all of them alike.

- x floor: the whole step (clips, draws, forward, backward, clipping, AdamW, average) over its matrix products alone
  (``bench.products`` says what is in them and what is not).
- x Wan, x LTX-2: forward and backward of our version of that transformer over diffusers', at the row's sizes.
- products: those in the floor over the budget's training FLOPs; layers that are computed again
  (trainer.checkpoint_activations) are in the floor twice, so that it is no longer what the step cannot do without.
- memory: bytes at the fullest moment of a step.
- Lightning: what a step takes under Lightning's Trainer, beside the sum of the parts.

On a GPU the step is timed whole, without waiting between its parts, which have a turn of their own; what it is judged by there
is in ``bench.cards``, not the floor nor diffusers.

- kernels: what the step's kernels take on the card, by torch's profiler; x kernels: the step's time over theirs.
- MFU: the budget's training FLOPs over the card's dense bf16 peak, of cards that are known.
- not judged: what no target is for there, or what cannot be told, with the reason.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nava_lab.bench.cards import PEAKS, card, missed_on_card, not_judged_on_card, used
from nava_lab.bench.peers import peers
from nava_lab.bench.products import alone, flops
from nava_lab.bench.scaling import scaled, show_scaling, too_steep
from nava_lab.bench.subject import PHASES, Subject
from nava_lab.config import Config, load
from nava_lab.report.numbers import number, short
from nava_lab.streams import Interface
from nava_lab.study.run import device_of

FLOOR_ONE_SPACE, FLOOR = 1.6, 1.9  # most of the floor's time: where everything shares one row of tokens, and elsewhere
DIFFUSERS = 0.95  # most of diffusers' time at equal shapes
OPTIONS = {"--rounds": "9", "--profile": ""}
FLAGS = ("--json", "--scaling", "--no-peers")
Tell = Callable[[str], None]


def measure(subjects: Sequence[Subject], rounds: int, with_peers: bool, tell: Tell) -> list[dict[str, Any]]:
    """One row per subject."""
    contestants: list[tuple[int, str, Callable[[], Any]]] = []
    counted: list[dict[str, Any]] = []
    for at, subject in enumerate(subjects):
        tell(f"{subject.label}: {subject.parameters:,} parameters, {subject.batch_size} clips a step")
        subject.step()
        products = subject.products()
        counted.append({"products": products.total(), "floor_flops": flops(products), "peak_bytes": subject.peak()})
        contestants += [(at, "step", subject.whole), (at, "floor", alone(products))]
        if subject.on_gpu:  # where looking at the parts makes the whole slower
            contestants.append((at, "parts", subject.step))
        for peer in peers(subject) if with_peers else ():
            contestants += [(at, f"{peer.name} ours", peer.ours), (at, f"{peer.name} theirs", peer.theirs)]
    seconds: dict[tuple[int, str], list[float]] = {(at, name): [] for at, name, _ in contestants}
    taken: list[list[dict[str, float]]] = [[] for _ in subjects]
    chance = random.Random(0)
    for turn in range(rounds + 1):
        tell(f"round {turn} of {rounds}" if turn else "warming up")
        for at, name, call in chance.sample(contestants, len(contestants)):
            began = subjects[at].now()
            made = call()
            ended = subjects[at].now()
            if turn:
                seconds[at, name].append(ended - began)
                if name == ("parts" if subjects[at].on_gpu else "step"):
                    taken[at].append(made)
    rows = []
    for at, subject in enumerate(subjects):
        own = {name: times for (whose, name), times in seconds.items() if whose == at}
        row = {**_about(subject), **_timed(own, taken[at]), **counted[at]}
        rows.append(row)
        row["samples_per_s"] = 1e3 * subject.batch_size / row["step_ms"]
        row["lightning_ms"] = 1e3 * subject.under_lightning(rounds + 3)
        row["mfu"] = used(card(subject.device), subject.built.solution.cost.flops_per_sample * row["samples_per_s"])
        kernels = (subject.kernels() if subject.on_gpu else None) or None  # none where the driver lets nobody look
        row["kernels_ms"] = None if kernels is None else 1e3 * kernels
        row["to_kernels"] = None if kernels is None else row["step_ms"] / row["kernels_ms"]
    return rows


def _about(subject: Subject) -> dict[str, Any]:
    size, variant, machine = subject.built.solution.size, subject.config.variant, subject.config.trainer
    return {
        "variant": subject.label,
        "parameters": subject.parameters,
        "precision": machine.precision,
        "compiled": machine.compile,
        "depth": variant.depth,
        "width": size.width,
        "hidden": size.hidden,
        "tokens": tokens(subject.config.world.interface(), variant.text_place == "sequence"),
        "budget_flops": subject.built.solution.cost.flops_per_sample * subject.batch_size,
        "target": None if subject.on_gpu else FLOOR_ONE_SPACE if variant.text_place == "sequence" else FLOOR,
    }


def tokens(interface: Interface, with_text: bool) -> int:
    """Tokens of a clip that pass through the layers."""
    return sum(spec.tokens for spec in interface.modalities.values()) + (interface.text.length if with_text else 0)


def _timed(seconds: dict[str, list[float]], parts: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians in milliseconds, and ratios within a round; ``ratios`` is each round's step over its floor."""
    phases = {f"{name}_ms": 1e3 * statistics.median(part[name] for part in parts) for name in PHASES}
    whole = seconds["step"] if "parts" in seconds else [sum(part.values()) for part in parts]
    ratios = _ratios(whole, seconds["floor"])
    step = statistics.median(whole)
    names = [name.removesuffix(" ours") for name in seconds if name.endswith(" ours")]
    return {
        **phases,
        "step_ms": 1e3 * step,
        "floor_ms": 1e3 * statistics.median(seconds["floor"]),
        "to_floor": statistics.median(ratios),
        "rounds": ratios,
        "peers": {
            name: {
                "ours_ms": 1e3 * statistics.median(seconds[f"{name} ours"]),
                "theirs_ms": 1e3 * statistics.median(seconds[f"{name} theirs"]),
                "ratio": statistics.median(_ratios(seconds[f"{name} ours"], seconds[f"{name} theirs"])),
            }
            for name in names
        },
    }


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What misses its target, each with its figure; a row without a target was measured on a GPU, which has its own."""
    on_cpu = [row for row in rows if row["target"] is not None]
    found = [
        f"{row['variant']} {row['to_floor']:.2f} x floor (at most {row['target']})"
        for row in on_cpu
        if row["to_floor"] > row["target"]
    ]
    for row in on_cpu:
        found += [
            f"{row['variant']} {peer['ratio']:.2f} x {name} (at most {DIFFUSERS})"
            for name, peer in row["peers"].items()
            if peer["ratio"] > DIFFUSERS
        ]
    return found + [miss for row in rows if row["target"] is None for miss in missed_on_card(row)]


def not_judged(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is held against no target, and why; on a CPU everything has one."""
    reasons = [(row["variant"], not_judged_on_card(row)) for row in rows if row["target"] is None]
    return [f"{variant} ({why})" for variant, why in reasons if why]


def main(arguments: Sequence[str]) -> int:
    """``nava bench step [variant=A,B] [KEY=VALUE ...]``; 1 where a target is missed, or a cost grows faster than it should."""
    options, flags, overrides = _read(arguments)
    if not options["--rounds"].isdigit() or int(options["--rounds"]) < 1:
        raise ValueError(f"--rounds={options['--rounds']} must be a whole number of at least 1")

    def tell(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    configs = list(each(overrides))
    device = device_of(configs[0][0])
    about = {
        "device": str(device),
        "card": card(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": int(options["--rounds"]),
    }
    if "--scaling" in flags:
        series = [line for config, rest in configs for line in scaled(config, rest, int(options["--rounds"]), tell)]
        if "--json" in flags:
            print(json.dumps({**about, "missed": too_steep(series), "scaling": series}, indent=2))
        else:
            show_scaling(series)
        return int(bool(too_steep(series)))
    subjects = [Subject(config) for config, _ in configs]
    if options["--profile"]:
        for subject in subjects:
            subject.step()
            for path in subject.profile(Path(options["--profile"])):
                tell(f"wrote {path}")
        return 0
    rows = measure(subjects, int(options["--rounds"]), "--no-peers" not in flags, tell)
    if "--json" in flags:
        print(json.dumps({**about, "missed": missed(rows), "not_judged": not_judged(rows), "rows": rows}, indent=2))
    else:
        show(rows, about)
    return int(bool(missed(rows)))


def _read(arguments: Sequence[str]) -> tuple[dict[str, str], set[str], list[str]]:
    options, flags, overrides, queue = dict(OPTIONS), set(), [], list(arguments)
    while queue:
        part = queue.pop(0)
        name, _, value = part.partition("=")
        if part in FLAGS:
            flags.add(part)
        elif name in options:
            if not value and not queue:
                raise ValueError(f"{name} needs a value")
            options[name] = value or queue.pop(0)
        elif part.startswith("--") or "=" not in part:
            raise ValueError(f"there is no option {part}; known: {', '.join((*options, *FLAGS))} and KEY=VALUE")
        else:
            overrides.append(part)
    return options, flags, overrides


def each(overrides: Sequence[str]) -> Iterator[tuple[Config, list[str]]]:
    """The config of every variant that ``variant=A,B`` names, with the overrides that make it."""
    rest = [part for part in overrides if not part.startswith("variant=")]
    named = [part.removeprefix("variant=") for part in overrides if part.startswith("variant=")]
    for name in ",".join(named).split(",") if named else [""]:
        own = [*([f"variant={name}"] if name else []), *rest]
        yield load(own), own


def show(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """The table and the verdict."""
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    on_gpu = any(row["target"] is None for row in rows)
    own = ("kernels", "x kernels", "MFU") if on_gpu else ()
    table = Table(title=f"a training step on {about['card']}, {about['threads']} threads; ms", title_justify="left")
    for column in (
        "variant",
        "weights",
        *PHASES,
        "step",
        "samples/s",
        "Lightning",
        "floor",
        "x floor",
        "products",
        *(f"x {n}" for n in names),
        "peak MiB",
        *own,
    ):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for row in rows:
        table.add_row(
            row["variant"],
            short(row["parameters"]),
            *(number(row[f"{name}_ms"], 1) for name in PHASES),
            number(row["step_ms"], 1),
            number(row["samples_per_s"], 0),
            number(row["lightning_ms"], 1),
            number(row["floor_ms"], 1),
            number(row["to_floor"], 2),
            number(row["floor_flops"] / row["budget_flops"], 2),
            *(number(row["peers"].get(name, {}).get("ratio"), 2) for name in names),
            number(row["peak_bytes"] / 2**20, 0),
            *((number(row["kernels_ms"], 2), number(row["to_kernels"], 2), number(row["mfu"], 2)) if on_gpu else ()),
        )
    console = Console()
    console = console if console.is_terminal else Console(width=180)
    console.print(table)
    if on_gpu and about["card"] not in PEAKS:
        console.print(f"MFU: the bf16 peak of {about['card']} is not known", highlight=False)
    left_out = not_judged(rows)
    if left_out:
        console.print(f"not judged: {'; '.join(left_out)}", soft_wrap=True, highlight=False)
    if len(left_out) < len(rows):
        console.print(f"missed: {'; '.join(missed(rows)) or 'nothing'}", soft_wrap=True, highlight=False)
