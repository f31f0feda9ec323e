"""How fast and how exact each attention backend is here, beside plain SDPA under the same mask and beside its matrix products.

All contestants of a case take turns, round after round, and a ratio is the median over rounds of the ratio within one round,
so that a machine that is busy for a while slows all of them alike. Every round has an order of its own and every turn begins with
a call that is not timed: in a fixed order the one that follows the float64 reference always found the caches emptied, and took a
third longer than the same code one turn later. Cases are shown as they are done; who does not fit into memory is left out, with
a word.

Shape letters: b batch, n tokens, h heads, e channels of a head.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from nava_lab.attention import Cut, Everything, Mask, Padding, Segments, Tokens, Visible, Window, attend
from nava_lab.attention.attend import AUTO, check, choose
from nava_lab.registry import backends
from nava_lab.report.numbers import number
from nava_lab.streams import Stream, time_positions

HEAD_DIM = 32
NAMES = ("video", "audio")
MASKS = ("none", "padding", "cut", "window")
CHECKED = 128  # queries of each row that are compared with the float64 reference: a table of them all would not fit a long row
WIDTH = 112  # columns of the table where it goes into a file
AT_ONCE = 2**28  # logits that the bare matrix products hold at a time
REFERENCE_BYTES = 2**30  # float64 logits up to which the reference is timed; its errors are measured on a few queries anyway
ANEW = "flex, mask made anew"  # with the making of the block mask, which a forward pass does once for all its layers
TARGETS = {"cpu": 1.15, "cuda": 1.0}  # most of plain SDPA's time that a backend may take; on a GPU, for a window of long rows
Call = Callable[[], Tensor]
T = TypeVar("T")
Attention = Callable[..., Tensor]  # (query, key, value) -> output


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        device: "cpu" or "cuda".
        lengths: tokens of a row, a quarter of them video.
        widths: model widths; a head has 32 channels.
        tokens: tokens of a batch; a batch has at least two rows.
        dtype: of queries, keys and values: what training computes in on the device.
        rounds: turns of each contestant.
        patience: seconds after which a contestant's share of a case ends early, after three turns.
    """

    device: str = "cpu"
    lengths: tuple[int, ...] = (128, 512, 1024)
    widths: tuple[int, ...] = (64, 256)
    tokens: int = 2048
    dtype: torch.dtype = torch.float32
    rounds: int = 25
    patience: float = 0.5

    @staticmethod
    def of(device: str) -> Settings:
        """What is worth measuring on a device, in a minute or two."""
        if device == "cuda":
            return Settings(device, (1024, 4096, 16384), (512, 2048), 16384, torch.bfloat16, 21)
        return Settings(device)


@dataclass(frozen=True)
class Figure:
    """One contestant in one case: forward alone, and with gradients; None where it has none, or where memory was too short."""

    length: int
    width: int
    mask: str
    backend: str
    ms: float
    to_sdpa: float | None
    to_products: float | None
    error: float | None
    training_ms: float | None
    training_to_sdpa: float | None


def figures(settings: Settings, tell: Callable[[str], None]) -> Iterator[Figure]:
    """Every backend at every length, width and mask."""
    cases = [(length, width, mask) for length in settings.lengths for width in settings.widths for mask in MASKS]
    for count, (length, width, mask) in enumerate(cases, 1):
        tell(f"{count} of {len(cases)}: {length} tokens, width {width}, mask {mask}")
        yield from _case(settings, length, width, mask, tell)


def main(arguments: Sequence[str]) -> None:
    """``nava bench attention [--lengths N,N] [--widths N,N] [--device D] [--json]``."""
    options = {"--lengths": "", "--widths": "", "--device": ""}
    as_json, queue = "--json" in arguments, [part for part in arguments if part != "--json"]
    while queue:
        name, _, value = queue.pop(0).partition("=")
        if name not in options:
            raise ValueError(f"there is no option {name}; known: {', '.join(options)}, --json")
        if not value and not queue:
            raise ValueError(f"{name} needs a value")
        options[name] = value or queue.pop(0)
    there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    device = options["--device"] or there[-1]
    if device not in there:
        raise ValueError(f"--device={device}: this machine has {' and '.join(there)}")
    settings = Settings.of(device)
    lengths, widths = _numbers(options, "--lengths"), _numbers(options, "--widths")
    settings = replace(settings, lengths=lengths or settings.lengths, widths=widths or settings.widths)
    made: list[Figure] = []
    try:
        for figure in figures(settings, lambda message: print(message, file=sys.stderr, flush=True)):
            made.append(figure)
            if not as_json:
                show(figure, made[-2] if len(made) > 1 else None, device)
    finally:  # what is done is not lost to what goes wrong later
        if as_json:
            print(json.dumps([asdict(figure) for figure in made], indent=2))
    if not as_json:
        print(verdict(made, device))


def verdict(made: Sequence[Figure], device: str) -> str:
    """What misses the device's target, or that nothing does."""
    target = TARGETS[device]
    if device == "cpu":
        asked = f"no backend (but the float64 reference) above {target} x SDPA under the same mask"
        missed = [f for f in made if f.backend not in ("reference", ANEW) and _worst(f) > target]
    else:
        asked = "a window of 4096 tokens and more faster in blocks than dense, in training too and with the mask made anew"
        judged = [f for f in made if f.mask == "window" and f.length >= 4096 and f.backend in ("flex", ANEW)]
        if not judged:
            return f"target: {asked}: no such case was measured"
        missed = [f for f in judged if _worst(f) > target]
    shown = []
    for name in dict.fromkeys(f.backend for f in missed):
        own = [f for f in missed if f.backend == name]
        worst = max(own, key=_worst)
        case = f"{worst.length} tokens, width {worst.width}, mask {worst.mask}"
        shown.append(f"{name} in {len(own)} cases, at most {_worst(worst):.2f} ({case})")
    return f"target: {asked}: " + (f"missed by {'; '.join(shown)}" if shown else "met")


def _worst(figure: Figure) -> float:
    """Its slower ratio to SDPA, of forward and training."""
    return max(figure.to_sdpa or 0.0, figure.training_to_sdpa or 0.0)


def _numbers(options: dict[str, str], name: str) -> tuple[int, ...]:
    """A list of whole numbers of at least 4, separated by commas."""
    try:
        found = tuple(int(part) for part in options[name].split(",") if part)
    except ValueError:
        raise ValueError(f"{name}={options[name]}: whole numbers separated by commas are wanted") from None
    if any(number < 4 for number in found):
        raise ValueError(f"{name}={options[name]}: every number must be at least 4")
    return found


COLUMNS = {
    "tokens": 6,
    "width": 5,
    "mask": 7,
    "backend": 20,
    "ms": 9,
    "x SDPA": 8,
    "x products": 10,
    "error": 6,
    "training": 9,
    "x SDPA ": 8,
}


def show(figure: Figure, before: Figure | None, device: str) -> None:
    """A figure as a line of the table, under a head where it is the first."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    if before is None:
        console.print(f"attention on {device}; training is forward and backward; ms", style="bold")
        console.print("x SDPA: against plain SDPA with the same boolean mask; x products: against the two matrix products alone")
        _line(console, tuple(COLUMNS), "bold")
    case = (figure.length, figure.width, figure.mask)
    again = before is not None and case == (before.length, before.width, before.mask)
    error = "-" if figure.error is None else f"{figure.error:.0e}"
    numbers = [number(part, 2) for part in (figure.ms, figure.to_sdpa, figure.to_products)]
    training = [number(part, 2) for part in (figure.training_ms, figure.training_to_sdpa)]
    _line(console, (*(["", "", ""] if again else map(str, case)), figure.backend, *numbers, error, *training))


def _line(console: Console, cells: Sequence[str], style: str = "") -> None:
    sides = [str.ljust if name in ("mask", "backend") else str.rjust for name in COLUMNS]
    padded = [side(cell.strip(), width) for side, cell, width in zip(sides, cells, COLUMNS.values(), strict=True)]
    console.print(" ".join(padded), style=style, highlight=False, soft_wrap=True)


def _case(settings: Settings, length: int, width: int, mask: str, tell: Callable[[str], None]) -> Iterator[Figure]:
    batch = max(2, settings.tokens // length)
    device = torch.device(settings.device)
    chance = torch.Generator().manual_seed(length + width)
    shape = (batch, length, max(1, width // HEAD_DIM), HEAD_DIM)
    values = [torch.randn(shape, generator=chance).to(device, settings.dtype) for _ in range(3)]
    streams = _streams(batch, length, mask == "padding", chance, device)
    rule = _rule(mask)
    tokens = Tokens.of(streams, NAMES, NAMES)
    visible = Visible.of(rule, tokens, tokens, clean=True)
    table = None if visible is None else visible.dense
    asked = torch.linspace(0, length - 1, min(length, CHECKED)).long().to(device)
    contestants = _contestants(shape, rule, tokens, tell)
    inputs = dict.fromkeys((*contestants, "products", "plain"), values)
    if mask == "padding":
        row = {name: stream.packed() for name, stream in streams.items()}
        inside = Visible.of(Padding() & Segments(), *(Tokens.of(row, NAMES, NAMES),) * 2, clean=True)
        contestants["sdpa, packed"] = partial(attend, visible=inside, backend="sdpa")
        inputs["sdpa, packed"] = [_packed(part, streams) for part in values]
    everyone: dict[str, Attention] = {"plain": partial(_plain, table=table), "products": _products, **contestants}
    times = _turns({name: partial(_forward, call, inputs[name]) for name, call in everyone.items()}, settings, tell)
    able = {name: call for name, call in everyone.items() if name in times and _trains(name, settings.device)}
    training = _turns({name: partial(_backward, call, inputs[name]) for name, call in able.items()}, settings, tell)

    def checked(name: str, call: Attention, exact: Tensor) -> float:
        found = _forward(call, inputs[name])
        if name == "sdpa, packed":
            found = _padded(found, streams)
        error = (found[:, asked] - exact).masked_fill(_padding(streams)[:, asked, None, None], 0.0)
        return float(error.abs().max())

    allowed = None if table is None else table[:, asked]
    exact = _fits(partial(_exact, values, asked, allowed), "the reference of a few queries", tell)
    for name, call in contestants.items():
        if name not in times:
            continue
        yield Figure(
            length,
            width,
            mask,
            f"auto ({choose(settings.device, False, visible, length).backend})" if name == AUTO else name,
            1e3 * statistics.median(times[name]),
            _ratio(times[name], times.get("plain")),
            _ratio(times[name], times.get("products")),
            None if exact is None else _fits(partial(checked, name, call, exact), f"{name}, for its error,", tell),
            1e3 * statistics.median(training[name]) if name in training else None,
            _ratio(training[name], training.get("plain")) if name in training else None,
        )


def _contestants(
    shape: tuple[int, int, int, int], rule: Mask, tokens: Tokens, tell: Callable[[str], None]
) -> dict[str, Attention]:
    """Who is timed on padded values: every backend that can be, and ``auto``."""
    batch, length, heads, _ = shape
    visible = Visible.of(rule, tokens, tokens, clean=True)
    found: dict[str, Attention] = {}
    logits = 8 * batch * heads * length**2
    for name in (*backends, AUTO):
        if name == "reference" and logits > REFERENCE_BYTES:
            tell(f"reference is not timed: its float64 logits would take {logits / 2**30:.0f} GiB")
            continue
        found[name] = partial(attend, visible=visible, backend=name)
    if visible is not None and "flex" in found:
        found[ANEW] = lambda q, k, v: attend(q, k, v, Visible.of(rule, tokens, tokens, clean=True), "flex")
    return found


def _exact(values: Sequence[Tensor], asked: Tensor, allowed: Tensor | None) -> Tensor:
    """What some queries should receive."""
    with torch.no_grad():
        query, key, value = (part.double() for part in values)
        return attend(query[:, asked], key, value, allowed, "reference")


def _fits(call: Callable[[], T], name: str, tell: Callable[[str], None]) -> T | None:
    """What the call returns; None, with a word, where memory is too short for it."""
    try:
        return call()
    except torch.OutOfMemoryError:
        tell(f"{name} does not fit into memory: left out")
    if torch.cuda.is_available():  # after the exception is gone, and with it what it held
        torch.cuda.empty_cache()
    return None


def _rule(mask: str) -> Mask:
    rules = {"none": Everything(), "padding": Padding(), "cut": Cut(), "window": Window(0.2)}
    return rules[mask]


def _streams(batch: int, length: int, ragged: bool, chance: torch.Generator, device: torch.device) -> dict[str, Stream]:
    """A quarter video, three quarters audio, over 100 ms a video token; ragged: between half and all of each is real."""
    made = {}
    for name, count, seconds in (("video", length // 4, 0.12), ("audio", length - length // 4, 0.04)):
        valid = None
        if ragged:
            real = torch.randint(count // 2, count + 1, (batch, 1), generator=chance)
            valid = (torch.arange(count) < real).to(device)
        made[name] = Stream(torch.zeros(batch, count, 1, device=device), time_positions(count, seconds, device=device), valid)
    return made


def _packed(values: Tensor, streams: dict[str, Stream]) -> Tensor:
    parts = values.split([len(streams[name]) for name in NAMES], 1)
    return torch.cat([part[streams[name].valid] for name, part in zip(NAMES, parts, strict=True)]).unsqueeze(0)


def _padded(values: Tensor, streams: dict[str, Stream]) -> Tensor:
    """The inverse, with zeros in padding."""
    counts = [int(streams[name].valid.sum()) for name in NAMES]  # type: ignore[union-attr]
    parts = zip(NAMES, values.flatten(2).split(counts, 1), strict=True)
    return torch.cat([streams[name].unpacked(part) for name, part in parts], 1).unflatten(-1, values.shape[2:])


def _padding(streams: dict[str, Stream]) -> Tensor:
    """``b n``, where nothing is real and outputs mean nothing."""
    real = [
        stream.tokens.new_ones(stream.tokens.shape[:2], dtype=torch.bool) if stream.valid is None else stream.valid
        for stream in (streams[name] for name in NAMES)
    ]
    return ~torch.cat(real, 1)


def _plain(query: Tensor, key: Tensor, value: Tensor, table: Tensor | None) -> Tensor:
    """What anyone would write: the library's call with a boolean mask."""
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, None if table is None else table.unsqueeze(1)).transpose(1, 2)


def _products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The two matrix products of attention without what lies between."""
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    rows = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    return torch.cat([(part @ k.mT) @ v for part in q.split(rows, 2)], 2).transpose(1, 2)


def _forward(call: Callable[..., Tensor], values: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return call(*values)


def _backward(call: Callable[..., Tensor], values: Sequence[Tensor]) -> Tensor:
    leaves = [part.detach().requires_grad_() for part in values]
    out = call(*leaves)
    out.backward(torch.ones_like(out))
    return out


def _trains(name: str, device: str) -> bool:
    """Whether a contestant has gradients on this device."""
    if name not in (*backends, ANEW):
        return True
    try:
        check("flex" if name == ANEW else name, device, gradients=True)
    except ValueError:
        return False
    return True


def _turns(calls: dict[str, Call], settings: Settings, tell: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each call that fits into memory, all in every round; one that has used up its patience sits out after three."""
    wait = torch.cuda.synchronize if settings.device == "cuda" else lambda: None
    calls = {name: call for name, call in calls.items() if _fits(call, name, tell) is not None}
    times: dict[str, list[float]] = {name: [] for name in calls}
    chance = random.Random(0)
    for _ in range(settings.rounds):
        for name in chance.sample(list(calls), len(calls)):
            if len(times[name]) >= 3 and sum(times[name]) > settings.patience:
                continue
            calls[name]()
            wait()
            start = time.perf_counter()
            calls[name]()
            wait()
            times[name].append(time.perf_counter() - start)
    return times


def _ratio(times: Sequence[float], base: Sequence[float] | None) -> float | None:
    return None if base is None else statistics.median(own / other for own, other in zip(times, base, strict=False))
