"""A comparison as one self-contained HTML page: verdict, table, curves, previews side by side."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from jinja2 import Environment, FileSystemLoader, select_autoescape

from nava_lab.report.compare import Comparison, Run, flat
from nava_lab.report.table import digits_for, interval, number, short, shown_columns

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PREVIEWS = 3


def colours(comparison: Comparison) -> dict[str, Any]:
    """A colour per label, by the order of names, so that it does not change with the ranking."""
    names = sorted({run.label for run in comparison.runs})
    return {name: plt.get_cmap("tab10")(index % 10) for index, name in enumerate(names)}


def write_page(comparison: Comparison, folder: Path) -> Path:
    """Write ``index.html`` (and ``scores.png``, ``curves.png``) into ``folder``; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"curves": draw_curves(comparison), "scores": draw_scores(comparison)}
    for name, picture in figures.items():
        if picture:
            (folder / f"{name}.png").write_bytes(picture)
    columns = shown_columns(comparison)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(("html", "j2")))
    text = environment.get_template("page.html.j2").render(
        verdict=comparison.verdict,
        ranked=not comparison.differences and bool(comparison.headline),
        headline=comparison.headline,
        columns=columns,
        rows=[_row(run, comparison.headline, columns) for run in comparison.runs],
        truth=[interval(comparison.truth().get(name), digits_for(name)) for name in [comparison.headline, *columns]]
        if comparison.truth()
        else [],
        guidance=_guidance(comparison.runs),
        over_seeds=comparison.over_seeds(),
        figures={name: base64.b64encode(picture).decode() for name, picture in figures.items() if picture},
        previews=[_previews(run) for run in comparison.runs],
        configs=_configs(comparison.runs),
        commands=[" ".join(["nava compare", *(str(run.folder) for run in comparison.runs)])],
    )
    path = folder / "index.html"
    temporary = folder / ".index.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _guidance(runs: Sequence[Run]) -> str:
    found = dict.fromkeys(str(run.record["evaluation"].get("guidance", "unknown")) for run in runs)
    return "; ".join(found)


def _row(run: Run, headline: str, columns: Sequence[str]) -> dict[str, Any]:
    made = run.record
    return {
        "name": made["name"],
        "variant": run.label,
        "seed": made["seed"],
        "headline": interval(run.score(headline)) if headline else "-",
        "cells": [interval(run.score(name), digits_for(name)) for name in columns],
        "parameters": f"{made['parameters']['total']:,}",
        "active": short(made["parameters"]["active_per_token"]),
        "flops": short(made["flops_per_sample"]),
        "minutes": number(made["wall_time_s"] / 60, 1),
    }


def _previews(run: Run) -> dict[str, Any]:
    clips = []
    for number_ in range(PREVIEWS):
        parts = {suffix: run.folder / "previews" / f"clip_{number_}.{suffix}" for suffix in ("mp4", "png")}
        if all(path.exists() for path in parts.values()):
            clips.append({key: base64.b64encode(path.read_bytes()).decode() for key, path in parts.items()})
    return {"name": f"{run.label}, seed {run.record['seed']}", "clips": clips}


def _configs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every config key with each run's value, differing ones first."""
    rows_of = [{key: _shown(value) for key, value in flat(run.config).items()} for run in runs]
    keys = list(dict.fromkeys(key for part in rows_of for key in part if not key.startswith(("output", "logger"))))
    rows: list[dict[str, Any]] = [{"key": key, "values": [part.get(key, "") for part in rows_of]} for key in keys]
    for row in rows:
        row["differs"] = len(set(row["values"])) > 1
    return sorted(rows, key=lambda row: not row["differs"])


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()


def draw_curves(comparison: Comparison) -> bytes:
    """Validation loss against clips seen, one line per run."""
    palette = colours(comparison)
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    labelled: set[str] = set()
    for run in comparison.runs:
        batch = run.config["training"]["batch_size"]
        points = [(line["step"] * batch, line["validation/loss"]) for line in run.log if "validation/loss" in line]
        if not points:
            continue
        name = run.label
        axis.plot(*zip(*points, strict=True), color=palette[name], label=None if name in labelled else name)
        labelled.add(name)
    axis.set(xlabel="clips seen", ylabel="validation loss (velocity, averaged weights)", yscale="log")
    axis.grid(alpha=0.3, which="both")
    if labelled:
        axis.legend(frameon=False)
    return _png(figure)


def draw_scores(comparison: Comparison) -> bytes:
    """The headline score of each run with its interval over clips."""
    scored = [run for run in comparison.runs if comparison.headline and run.score(comparison.headline)]
    if not scored:
        return b""
    palette = colours(comparison)
    figure, axis = plt.subplots(figsize=(6.4, 0.7 + 0.42 * len(scored)), layout="constrained")
    for place, run in enumerate(reversed(scored)):
        found = run.score(comparison.headline) or {}
        value = found["value"]
        low, high = (found[side] if found[side] is not None else value for side in ("low", "high"))
        colour = palette[run.label]
        axis.plot([low, high], [place, place], color=colour, lw=3, alpha=0.5, solid_capstyle="round")
        axis.plot(value, place, "o", color=colour, ms=7)
    axis.set(
        yticks=range(len(scored)),
        yticklabels=[f"{run.label}, seed {run.record['seed']}" for run in reversed(scored)],
        ylim=(-0.6, len(scored) - 0.4),
        xlabel=f"{comparison.headline} (95 % interval over clips)",
    )
    if comparison.headline in ("sync_auc", "cross_modal_use"):
        axis.set_xlim(min(-0.05, axis.get_xlim()[0]), 1)
        axis.axvline(0, color="grey", lw=1, ls=":")
    axis.grid(axis="x", alpha=0.3)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    plt.close(figure)
    return buffer.getvalue()
