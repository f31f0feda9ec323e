"""A study's results, read from its folder alone: neither Optuna nor torch nor a running worker is needed.

A study's folder, ``<output.root>/studies/<name>[-<edition>]-<hash>``::

    study.json      the study and the state of every run, written whole whenever a run changes state
    journal.log     Optuna's journal (unless --storage names another place)

The runs themselves lie in ``<output.root>`` like all others, and are shared with whatever else made them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nava_lab.study.grammar import StudyError
from nava_lab.study.spec import Origin, Point, Study, study_of

NAME = "study.json"
SCHEMA_VERSION = 1
TUNING, CONFIRMATION = "tuning", "confirmation"
FRONT = "front"  # the axis of a front's designs, numbered by rising cost
STATES = ("finished", "failed", "running", "pruned", "missing")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        point: key of the point it is a run of (``Study.point``).
        budget: that point's budget.
        phase: "tuning" (scored on the validation split) or "confirmation" (scored on the test split).
        seed: paired across points within a phase.
        state: "finished", "failed", "running", "pruned" (ended early by the pruner) or "missing" (not begun, or to be continued).
        folder: the run's folder; None while its settings are not known, that is before its point is tuned.
        tuned: values of the tuned settings; empty without tuning and while they are not known.
        trial: which trial of its point's tuning, from 0; None for a confirmation.
        value: what the run was tuned by, on the validation split; None in a confirmation and until it is known.
        error: why it failed.
        code: fingerprints of the package and the variant that made it; empty before it is begun.
    """

    point: str
    budget: str
    phase: str
    seed: int
    state: str = "missing"
    folder: Path | None = None
    tuned: Mapping[str, Any] = field(default_factory=dict)
    trial: int | None = None
    value: float | None = None
    error: str = ""
    code: str = ""


@dataclass(frozen=True)
class Choice:
    """What tuning chose for a point.

    Attributes:
        point: the point's key.
        tuned: the chosen values.
        value: the mean over tuning seeds of what was optimised, on the validation split.
        trials: trials that ended with a value.
        pruned: trials that the pruner ended.
        failed: trials that failed.
        front: with two objectives, which confirmed point of the Pareto front, from 1 on; else 0.
        at_bound: by key, "low" or "high" where the choice lies at an end of the space: widen it there.
    """

    point: str
    tuned: Mapping[str, Any]
    value: float
    trials: int
    pruned: int
    failed: int
    at_bound: Mapping[str, str]
    front: int = 0


@dataclass(frozen=True)
class StudyResult:
    """A finished or running study.

    Attributes:
        study: what was asked.
        folder: the study's folder.
        higher_is_better: the direction of the study's metric.
        runs: every planned run, tuning before confirmation.
        choices: by the key of one of ``points``, what tuning chose; a point that is missing here is not tuned yet.
    """

    study: Study
    folder: Path
    higher_is_better: bool
    runs: tuple[PlannedRun, ...]
    choices: Mapping[str, Choice]

    @property
    def points(self) -> tuple[Point, ...]:
        """What is compared: the study's points; of one tuned for two objectives, the confirmed points of its front instead."""
        tuning = self.study.tuning
        if tuning is None or not tuning.two_objectives:
            return self.study.points
        return tuple(front_point(self.study.point(choice.point), choice) for choice in self.choices.values())

    def point(self, key: str) -> Point:
        """One of ``points`` by its key."""
        return next(point for point in self.points if point.key == key)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do (failed runs stay failed until they are retried)."""
        return all(run.state in ("finished", "failed", "pruned") for run in self.runs)

    def confirmations(self, point: Point) -> list[PlannedRun]:
        """A point's confirmation runs in order of their seeds, finished or not."""
        return [run for run in self.runs if run.phase == CONFIRMATION and run.point == point.key]

    def counts(self, phase: str = "") -> dict[str, int]:
        """How many runs (of one phase) are in each state."""
        chosen = [run for run in self.runs if phase in ("", run.phase)]
        return {state: sum(run.state == state for run in chosen) for state in STATES}


def front_point(point: Point, choice: Choice) -> Point:
    """One confirmed point of a Pareto front, as a point of its own."""
    label = f"{point.label} front {choice.front}" if point.levels else f"front {choice.front}"
    levels = {**point.levels, FRONT: str(choice.front)}
    return Point(label, point.budget, levels, {**point.settings, **choice.tuned})


def load_study(folder: Path) -> StudyResult:
    """A study from its folder; StudyError says what is missing."""
    path = Path(folder) / NAME
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path} is missing: {folder} is not a study's folder") from None
    except json.JSONDecodeError as error:
        raise StudyError(f"{path} is not JSON ({error})") from None
    if saved.get("schema") != SCHEMA_VERSION:
        raise StudyError(f"{path} has schema {saved.get('schema')}; this nava-lab reads {SCHEMA_VERSION}")
    about = saved["study"]
    origin = Origin(**{key: part if isinstance(part, str) else tuple(part) for key, part in about.get("origin", {}).items()})  # type: ignore[arg-type]
    asked = (about["fields"], about["name"], about["edition"], about["question"], str(path))
    study = study_of(*asked, left_out=about["left_out"], origin=origin)
    root = root_of(folder)
    runs = tuple(PlannedRun(**{**run, "folder": root / run["folder"] if run["folder"] else None}) for run in saved["runs"])
    choices = {point: Choice(**choice) for point, choice in saved["choices"].items()}
    return StudyResult(study, Path(folder), saved["higher_is_better"], runs, choices)


def root_of(folder: Path) -> Path:
    """The folder of all runs that a study's folder belongs to."""
    return Path(folder).parent.parent


def is_study(folder: Path) -> bool:
    return (Path(folder) / NAME).exists()


def as_json(result: StudyResult) -> dict[str, Any]:
    """What ``study.json`` holds."""
    study, root = result.study, root_of(result.folder)

    def plain(run: PlannedRun) -> dict[str, Any]:
        return {**vars(run), "tuned": dict(run.tuned), "folder": str(run.folder.relative_to(root)) if run.folder else None}

    about: dict[str, Any] = {"name": study.name, "edition": study.edition, "question": study.question}
    about |= {"left_out": list(study.left_out), "origin": vars(study.origin)}
    return {
        "schema": SCHEMA_VERSION,
        "study": {**about, "fields": dict(study.source)},
        "higher_is_better": result.higher_is_better,
        "runs": [plain(run) for run in result.runs],
        "choices": {key: {**vars(choice), "tuned": dict(choice.tuned)} for key, choice in result.choices.items()},
    }
