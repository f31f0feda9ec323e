"""Does the suite measure what it says? Each cut must remove what it cuts, and nothing else.

    . .venv/bin/activate
    python sweeps/manipulations.py                                  # one family: eight trainings of 3 to 4 minutes on one core
    python sweeps/manipulations.py --only clock --variants align_then_fuse variant.text_place=sequence

    pulse      sync above chance; with attention between modalities cut, at chance       else the world or the pipeline leaks
    pulse      with one modality given, the other one follows it, either way             transfer in both directions
    clock      cut, still above chance                                                   the text alone can carry timing
    null       cut, at chance                                                            else the metric finds what is not there
    null       at chance                                                                 else the model couples what is apart
    entangle   what the text says is there; with no caption shown, it is not, and sync still is above chance

Held fixed: family, parameters, learning rate, difficulty, seed, and, but for `null`, training length. Each line is a run of its
own (found again if it is finished) or another scoring of one. Writes manipulations.json and manipulations.md; ends with 1 where a
check fails. "Above" and "at chance" are judged by the interval over clips, widened from 95 to 99.7 % so that hardly any of eleven
checks fails by chance.

The family is one whose words stand in the row of tokens, at places of their own: rotary attention then tells every token how far
it is from them. Read from outside by cross-attention words have no place, and a token would have to learn from the clip's edges
when it is: align_then_fuse is at chance on `clock`, cut, and far above with ``variant.text_place=sequence``. Weights that serve
both modalities begin by coupling them, on `null` too, and unlearn it slowly: hence its longer training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nava_lab.cli import in_one_line
from nava_lab.config import from_file, load
from nava_lab.evaluation.suite import WIDER
from nava_lab.study import record
from nava_lab.study.identity import run_hash
from nava_lab.study.run import run, score
from nava_lab.training.quiet import quieten


@dataclass(frozen=True)
class Check:
    """One claim about one score of one run.

    Attributes:
        name: what is looked at.
        score: the score's name.
        above: whether it must lie above chance; else it must be at chance.
        settings: of the run.
        scoring: of another scoring of that run.
    """

    name: str
    score: str
    above: bool
    settings: tuple[str, ...]
    scoring: tuple[str, ...] = ()

    def holds(self, value: dict[str, float]) -> bool:
        """Whether a score with its widened interval is where it must be."""
        low, high = (value["value"] + WIDER * (value[end] - value["value"]) for end in ("low", "high"))
        return low > 0 if self.above else low <= 0 <= high


# A size at which every check can be decided in minutes; a check's own settings and the command line's come after it and win.
SMALL = (
    *("difficulty=easy", "budget.parameters=300_000", "training.batch_size=32", "training.steps=1200", "training.lr=6e-3"),
    *("training.validations=2", "training.checkpoints=4", "evaluation.clips=192", "evaluation.steps=10"),
    *("evaluation.loss_clips=256", "evaluation.previews=1"),
)
GIVING = ("world=pulse", "flow.modality_given=0.5")
ENTANGLE = ("world=entangle", "world.lengths=[4,16]")
CHECKS = (
    Check("pulse", "sync_auc", True, ("world=pulse",)),
    Check("pulse, attention cut", "sync_auc", False, ("world=pulse", "experiment=cut")),
    Check("pulse, audio given", "sync_auc", True, GIVING, ("evaluation.given=audio",)),
    Check("pulse, video given", "sync_auc", True, GIVING, ("evaluation.given=video",)),
    Check("clock, attention cut", "sync_auc", True, ("world=clock", "experiment=cut")),
    Check("null, attention cut", "sync_auc", False, ("world=null", "experiment=cut")),
    Check("null", "sync_auc", False, ("world=null", "training.steps=2000")),
    Check("entangle, what", "semantics_kappa", True, ENTANGLE),
    Check("entangle, when", "sync_auc", True, ENTANGLE),
    Check("entangle untold, what", "semantics_kappa", False, (*ENTANGLE, "experiment=untold")),
    Check("entangle untold, when", "sync_auc", True, (*ENTANGLE, "experiment=untold")),
)


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def scored(check: Check, settings: Sequence[str]) -> dict[str, Any]:
    """The record that a check speaks of; trained and scored where that is not done yet."""
    folder = run(load([*SMALL, *check.settings, *settings]), tell)
    if not check.scoring:
        return record.read(folder)
    config = from_file(folder / "config.yaml", check.scoring)
    into = folder / "scores" / run_hash(config.resolved, config.world.data_version())
    if not (into / record.NAME).exists():
        score(config, folder, tell, into=into)
    return record.read(into)


def main(words: Sequence[str] | None = None, scored: Callable[[Check, Sequence[str]], dict[str, Any]] = scored) -> int:
    reader = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    reader.add_argument("--variants", default="unified")
    reader.add_argument("--only", default="", help="the check of this name, else those whose names begin so")
    reader.add_argument("--out", type=Path, default=Path("runs/manipulations"))
    reader.add_argument("settings", nargs="*", help="settings of every run: training.steps=800, say")
    arguments = reader.parse_args(words)
    quieten()
    exact = [check for check in CHECKS if check.name == arguments.only]
    chosen = exact or [check for check in CHECKS if check.name.startswith(arguments.only)]
    if not chosen:
        raise ValueError(f"--only {arguments.only}: no check begins so; there are {'; '.join(check.name for check in CHECKS)}")
    rows = []
    for variant in arguments.variants.split(","):
        for check in chosen:
            began = time.monotonic()
            made = scored(check, [f"variant={variant}", *arguments.settings])
            value = made["scores"][check.score]
            row = {"variant": variant, "check": check.name, "score": check.score, "above": check.above, **value}
            rows.append({**row, "holds": check.holds(value), "run": made["name"], "seconds": round(time.monotonic() - began)})
            arguments.out.mkdir(parents=True, exist_ok=True)
            record.write_json(arguments.out / "manipulations.json", {"settings": [*SMALL, *arguments.settings], "rows": rows})
            print(line(rows[-1]), flush=True)
    lines = ["| family | check | score | must be | found |", "|---|---|---|---|---|", *map(line, rows)]
    (arguments.out / "manipulations.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(not all(row["holds"] for row in rows))


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    found = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" + ("" if row["holds"] else " **no**")
    return f"| {row['variant']} | {row['check']} | {row['score']} | {'above 0' if row['above'] else '0'} | {found} |"


if __name__ == "__main__":
    in_one_line(main)
