"""Comparisons as data frames: a row per run, a row per contrast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nava_lab.report.across import across
from nava_lab.report.compare import Comparison
from nava_lab.report.runs import Run, find_runs, flat, labelled

NOT_SHOWN = ("output.", "logger.")  # config groups that are no part of a run


def runs_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: who it is, what it cost, every score with its interval over clips, every config key.

    Scores are columns ``NAME``, ``NAME.low`` and ``NAME.high``; config keys are columns of their own names
    (``variant.depth``).
    """
    rows = [_row(run) for run in runs]
    for name in dict.fromkeys(key for row in rows for key in row):
        kinds = {type(row[name]) for row in rows if row.get(name) is not None}
        if len(kinds) > 1 and kinds - {int, float}:  # "auto" beside 2, say: a column of a file has one kind
            rows = [row | {name: str(row[name])} if row.get(name) is not None else row for row in rows]
    frame = pd.DataFrame(rows)
    return frame[[name for name in frame if not frame[name].isna().all()]]


def contrasts_frame(comparison: Comparison) -> pd.DataFrame:
    """One row per contrast: who against whom, the mean paired difference with its t-interval, tests, outcome."""
    rows = []
    said = {(one.first, one.against): one.said for one in across(comparison.contrasts)}
    for part in comparison.contrasts:
        mean, low, high = part.found.interval
        rows.append(
            {
                "budget": part.family,
                "first": part.found.first,
                "second": part.found.second,
                "along": part.along,
                "score": comparison.headline,
                "difference": mean,
                "low": low,
                "high": high,
                "seeds": part.found.n,
                "p_sign_flip": part.found.p,
                "p_holm": part.p,
                "margin": part.margin,
                "p_no_worse": part.within.lower if part.within else None,
                "p_equal": part.within.p if part.within else None,
                "declared": comparison.declared,
                "outcome": part.outcome,
                "under_every_budget": said[part.found.first, part.against],
            }
        )
    columns = ["budget", "first", "second", "along", "score", "difference", "low", "high", "seeds", "p_sign_flip", "p_holm"]
    return pd.DataFrame(rows, columns=[*columns, "margin", "p_no_worse", "p_equal", "declared", "outcome", "under_every_budget"])


def write_frames(comparison: Comparison, folder: Path) -> list[Path]:
    """``runs`` and ``contrasts`` as CSV and Parquet."""
    written = []
    for name, frame in (("runs", runs_frame(comparison.runs)), ("contrasts", contrasts_frame(comparison))):
        written += [folder / f"{name}.csv", folder / f"{name}.parquet"]
        frame.to_csv(written[-2], index=False)
        frame.to_parquet(written[-1], index=False)
    return written


def load_runs(*folders: str | Path) -> pd.DataFrame:
    """Finished runs as a data frame, one row each: runs' folders, folders of runs, or a study's folder.

    Unfinished runs of a folder are left out; ``frame.attrs["left_out"]`` names them.
    """
    from nava_lab.report.compare import compare
    from nava_lab.study.results import is_study

    paths = [Path(folder) for folder in folders or ("runs",)]
    if any(is_study(path) for path in paths):
        comparison = compare(paths)
        runs, left_out = comparison.runs, comparison.left_out
    else:
        found, left_out = find_runs(paths)
        runs = labelled(found)
    frame = runs_frame(runs)
    frame.attrs["left_out"] = list(left_out)
    return frame


def load_logs(*folders: str | Path) -> pd.DataFrame:
    """The metrics logs of finished runs, one row per logged step, with the run's name, label and seed and clips seen."""
    runs = labelled(find_runs([Path(folder) for folder in folders or ("runs",)])[0])
    rows = []
    for run in runs:
        about = {"name": run.folder.name, "label": run.label, "seed": run.seed}
        batch = run.config["training"]["batch_size"]
        rows += [{**about, "clips_seen": line["step"] * batch, **line} for line in run.log]
    return pd.DataFrame(rows)


def _row(run: Run) -> dict[str, Any]:
    made, identity, scoring = run.record, run.record["identity"], run.record["evaluation"]
    row: dict[str, Any] = {
        "name": made["name"],
        "label": run.label,
        "budget": run.family,
        "variant": made["variant"],
        "world": made["world"],
        "seed": made["seed"],
        "headline": made["headline"],
        "parameters": made["parameters"]["total"],
        "active_per_token": made["parameters"]["active_per_token"],
        "flops_per_sample": made["flops_per_sample"],
        "samples_seen": made["samples_seen"],
        "minutes": made["wall_time_s"] / 60,
        "evaluations": scoring.get("evaluations"),
        "guidance": _plain(scoring.get("guidance")),
        "hash": identity.get("config"),
        "data": identity.get("data"),
        "code": identity.get("code"),
        "revision": identity.get("revision"),
        "torch": identity.get("torch"),
        "folder": str(run.folder),
    }
    for name, score in made["scores"].items():
        row |= {name: score["value"], f"{name}.low": score["low"], f"{name}.high": score["high"]}
    settings = {key: _plain(value) for key, value in flat(run.config).items() if not key.startswith(NOT_SHOWN)}
    return row | {key: value for key, value in settings.items() if key not in row}


def _plain(value: Any) -> Any:
    """A value that a column of a table can hold."""
    return json.dumps(value) if isinstance(value, list | dict) else value
