"""Does the suite measure what it says? Each cut must remove what it cuts, and nothing else.

    . .venv/bin/activate
    python sweeps/manipulations.py                                  # one family, eight trainings; killed, it goes on
    python sweeps/manipulations.py --plan                           # what is done already, and how long the rest will take
    python sweeps/manipulations.py --only null --only "null, attention cut"
    python sweeps/manipulations.py --only clock --variants align_then_fuse variant.text_place=sequence

    pulse      sync above chance; with attention between modalities cut, at chance       else the world or the pipeline leaks
    pulse      with one modality given, the other one follows it, either way             transfer in both directions
    clock      cut, still above chance                                                   the text alone can carry timing
    null       cut, at chance                                                            else the score finds what is not there
    null       at chance                                                                 else the family couples what is apart
    entangle   what the text says is there; with no caption shown, it is not, and sync still is above chance

Held fixed: family, parameters, learning rate, difficulty, seed and training length. Each line is a run of its own (found again if
it is finished, continued if it was killed) or another scoring of one. Writes manipulations.json and manipulations.md; says what
each check that fails means, and ends with 1 where one does.

Both claims are shown, not taken from a failure to show the other. "Above chance" is shown where the interval over clips, widened
from 95 to 99.7 % so that hardly any of the checks passes by chance, lies above 0. "At chance" is shown by equivalence: the 95 %
interval lies within 0.05 of 0 (two one-sided tests at 2.5 % each), so that few clips and wide intervals make it harder and not
easier; 1024 clips measure a score to about 0.02. Who makes hardly any events would be at chance in everything, so it also takes
half as many events as true clips have, in both modalities.

`null` is checked twice, for two things can put a score on it: a biased score or pipeline, which a model whose modalities never
meet would show as well, and a family that couples what is apart, which only an uncut one can. Weights that serve both
modalities begin by coupling them and unlearn it slowly: `unified` scored .09 on `null` after 1200 steps, .05 after 2000. That
is a finding about the family, and stays one: it is not trained longer than the others until it passes.

The family is one whose words stand in the row of tokens, at places of their own: rotary attention then tells every token how far
it is from them. Read from outside by cross-attention words have no place, and a token would have to learn from the clip's edges
when it is: align_then_fuse is at chance on `clock`, cut, and far above with ``variant.text_place=sequence``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nava_lab.cli import in_one_line
from nava_lab.config import Config, from_file, load
from nava_lab.evaluation.suite import WIDER
from nava_lab.study import record
from nava_lab.study.build import parts
from nava_lab.study.identity import run_hash, run_name
from nava_lab.study.plan import Finished, expect, finished_runs
from nava_lab.study.run import run, score, state_of
from nava_lab.training.quiet import quieten

CHANCE = 0.05  # a score this near to 0, with its whole interval, is at chance
FEWEST = 0.5  # of the true clips' events: with fewer, nothing is shown to be at chance
RATES = ("event_rate_video", "event_rate_audio")


@dataclass(frozen=True)
class Check:
    """One claim about one score of one run.

    Attributes:
        name: what is looked at.
        score: the score's name.
        above: whether it must lie above chance; else it must be at chance.
        settings: of the run.
        otherwise: what it means if the check fails.
        scoring: of another scoring of that run.
    """

    name: str
    score: str
    above: bool
    settings: tuple[str, ...]
    otherwise: str
    scoring: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        return "above 0" if self.above else f"0 ± {CHANCE:g}"

    def holds(self, scores: Mapping[str, Mapping[str, float | None]]) -> bool:
        """Whether the score is shown to be where it must be; one without an interval shows nothing."""
        value, low, high = (scores[self.score][name] for name in ("value", "low", "high"))
        if value is None or low is None or high is None or (not self.above and fewest(scores) < FEWEST):
            return False
        return value + WIDER * (low - value) > 0 if self.above else low >= -CHANCE and high <= CHANCE


def fewest(scores: Mapping[str, Mapping[str, float | None]]) -> float:
    """Events per true event, in the modality that has the fewer."""
    return min(scores[name]["value"] or 0.0 for name in RATES)


# A size at which every check can be decided in minutes; a check's own settings and the command line's come after it and win.
SMALL = (
    *("difficulty=easy", "budget.parameters=300_000", "training.batch_size=32", "training.steps=1200", "training.lr=6e-3"),
    *("training.validations=2", "training.checkpoints=4", "evaluation.clips=1024", "evaluation.steps=10"),
    *("evaluation.loss_clips=256", "evaluation.previews=1"),
)
GIVING = ("world=pulse", "flow.modality_given=0.5")
ENTANGLE = ("world=entangle", "world.lengths=[4,16]")
NOT_LEARNT = "Too little training, or too high a learning rate: the checks that cut something say nothing then"
LEAK = "The world or the pipeline leaks"
BIASED = "The score or the pipeline finds what is not there: no score of this world says anything of a family"
COUPLED = "The family couples what is apart, if `null, attention cut` holds; if that fails too, it is the score"
UNTOLD = "Who is not told the what loses the when with it"
CHECKS = (
    Check("pulse", "sync_auc", True, ("world=pulse",), NOT_LEARNT),
    Check("pulse, attention cut", "sync_auc", False, ("world=pulse", "experiment=cut"), LEAK),
    Check("pulse, audio given", "sync_auc", True, GIVING, NOT_LEARNT, ("evaluation.given=audio",)),
    Check("pulse, video given", "sync_auc", True, GIVING, NOT_LEARNT, ("evaluation.given=video",)),
    Check("clock, attention cut", "sync_auc", True, ("world=clock", "experiment=cut"), "No timing is had from the text"),
    Check("null, attention cut", "sync_auc", False, ("world=null", "experiment=cut"), BIASED),
    Check("null", "sync_auc", False, ("world=null",), COUPLED),
    Check("entangle, what", "semantics_kappa", True, ENTANGLE, NOT_LEARNT),
    Check("entangle, when", "sync_auc", True, ENTANGLE, NOT_LEARNT),
    Check("entangle untold, what", "semantics_kappa", False, (*ENTANGLE, "experiment=untold"), LEAK),
    Check(
        "entangle untold, when",
        "sync_auc",
        True,
        (*ENTANGLE, "experiment=untold"),
        UNTOLD,
    ),
)


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def scored(check: Check, settings: Sequence[str]) -> dict[str, Any]:
    """The record that a check speaks of; trained and scored where that is not done yet."""
    folder = run(load([*SMALL, *check.settings, *settings]), tell)
    if not check.scoring:
        return record.read(folder)
    config = from_file(folder / "config.yaml", check.scoring)
    into = scoring_folder(folder, config)
    if not (into / record.NAME).exists():
        score(config, folder, tell, into=into)
    return record.read(into)


Wait = tuple[str, str, float | None]  # what is trained or scored, how far it is, and seconds to go, where anybody can tell


def to_do(variants: Sequence[str], checks: Sequence[Check], settings: Sequence[str]) -> Iterator[Wait]:
    """Every training and every further scoring of one, once each."""
    seen: set[Path] = set()
    for variant, check in product(variants, checks):
        words = [*SMALL, *check.settings, f"variant={variant}", *settings]
        config = load(words)
        folder = Path(config.output.root) / run_name(config.resolved, config.world.data_version())
        state = state_of(folder)
        if folder not in seen:
            alike = finished_runs(folder.parent)
            yield f"{variant} {' '.join(check.settings)}", state, 0.0 if state == "finished" else expected(config, alike)
        seen.add(folder)
        if check.scoring:
            into = scoring_folder(folder, load([*words, *check.scoring]))
            done = state == "finished" and (into / record.NAME).exists()
            alone = load([*words, *check.scoring, "training.steps=1", "training.validations=0"])
            yield f"{variant} {' '.join(check.scoring)}", "finished" if done else "missing", 0.0 if done else expected(alone, ())


def expected(config: Config, alike: Sequence[Finished]) -> float | None:
    return expect(config, parts(config), alike, None).seconds


def scoring_folder(folder: Path, config: Config) -> Path:
    return folder / "scores" / run_hash(config.resolved, config.world.data_version())


def told(waits: Sequence[Wait], each: bool) -> str:
    """How long it will take, and with ``each`` of what."""
    minutes = ["?" if wait is None else f"{wait / 60:.1f}" for _, _, wait in waits]
    lines = [f"{many:>5} min  {state:9} {what}" for many, (what, state, _) in zip(minutes, waits, strict=True)] if each else []
    left = [wait for _, _, wait in waits if wait != 0.0]
    done = f"{len(waits) - len(left)} of {len(waits)} trainings and scorings are done"
    rest = f"; the rest takes about {sum(wait or 0.0 for wait in left) / 60:.0f} minutes, one after another (what is begun, less)"
    return "\n".join([*lines, done + (rest if left else "")])


def main(
    words: Sequence[str] | None = None,
    scored: Callable[[Check, Sequence[str]], dict[str, Any]] = scored,
    to_do: Callable[..., Iterable[Wait]] = to_do,
) -> int:
    reader = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    reader.add_argument("--variants", default="unified")
    reader.add_argument("--only", action="append", help="the check of this name, else all that begin so; may be repeated")
    reader.add_argument("--plan", action="store_true", help="say what is done and how long the rest takes, and train nothing")
    reader.add_argument("--out", type=Path, default=Path("runs/manipulations"))
    reader.add_argument("settings", nargs="*", help="settings of every run: training.steps=800, say")
    arguments = reader.parse_args(words)
    quieten()
    chosen, variants = asked(arguments.only or [""]), arguments.variants.split(",")
    tell(told(list(to_do(variants, chosen, arguments.settings)), arguments.plan))
    if arguments.plan:
        return 0
    rows: list[dict[str, Any]] = []
    for variant, check in product(variants, chosen):
        began = time.monotonic()
        made = scored(check, [f"variant={variant}", *arguments.settings])
        value = made["scores"][check.score]
        row = {"variant": variant, "check": check.name, "score": check.score, "wanted": check.wanted, **value}
        row |= {"events": fewest(made["scores"]), "holds": check.holds(made["scores"])}
        rows.append({**row, "run": made["name"], "seconds": round(time.monotonic() - began)})
        arguments.out.mkdir(parents=True, exist_ok=True)
        record.write_json(arguments.out / "manipulations.json", {"settings": [*SMALL, *arguments.settings], "rows": rows})
        print(line(rows[-1]), flush=True)
    lines = ["| family | check | score | must be | found |", "|---|---|---|---|---|", *map(line, rows)]
    by_name = {check.name: check for check in chosen}
    failed = [f"{row['variant']}, {row['check']}: {meaning(by_name[row['check']], row)}." for row in rows if not row["holds"]]
    text = "\n".join([*lines, "", *(failed or ["All of it holds."])]) + "\n"
    (arguments.out / "manipulations.md").write_text(text, encoding="utf-8")
    print("\n".join(failed or ["All of it holds."]))
    return int(bool(failed))


def asked(names: Sequence[str]) -> list[Check]:
    """The checks of these names, or whose names begin so, each once."""
    found: list[Check] = []
    for name in names:
        own = [check for check in CHECKS if check.name == name] or [check for check in CHECKS if check.name.startswith(name)]
        if not own:
            raise ValueError(f"--only {name}: no check begins so; there are {'; '.join(check.name for check in CHECKS)}")
        found += [check for check in own if check not in found]
    return found


def meaning(check: Check, row: Mapping[str, Any]) -> str:
    """What a check that does not hold says."""
    if not check.above and row["events"] < FEWEST:
        return "not shown. Too few events to show anything: train longer"
    if not check.above and row["low"] is not None and row["low"] <= CHANCE and row["high"] >= -CHANCE:
        first, rest = check.otherwise[0].lower(), check.otherwise[1:]
        return f"open. More evaluation.clips would tell. If it is not at chance: {first}{rest}"
    return f"not shown. {check.otherwise}"


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    value, low, high = ("undefined" if row[name] is None else f"{row[name]:.3f}" for name in ("value", "low", "high"))
    few = f", with {row['events']:.2f} of the events" if row["events"] < FEWEST else ""
    found = f"{value} [{low}, {high}]{few}" + ("" if row["holds"] else " **no**")
    return f"| {row['variant']} | {row['check']} | {row['score']} | {row['wanted']} | {found} |"


if __name__ == "__main__":
    in_one_line(main)
