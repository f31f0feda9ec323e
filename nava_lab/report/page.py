"""A comparison as one self-contained HTML page, with its data and figures beside it."""

from __future__ import annotations

import os
import platform
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from nava_lab import __version__
from nava_lab.report.again import commands
from nava_lab.report.compare import Comparison
from nava_lab.report.figures import figures, looks
from nava_lab.report.frame import NOT_SHOWN, write_frames
from nava_lab.report.numbers import short
from nava_lab.report.page_tables import contrasts, results, runs, truth_row
from nava_lab.report.plotting import for_page, marker_path, write_figures
from nava_lab.report.previews import tiles
from nava_lab.report.runs import flat

HERE = Path(__file__).parent


def write_page(comparison: Comparison, folder: Path) -> Path:
    """Write ``index.html`` into ``folder``, with data frames and figures beside it; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(comparison)
    write_figures(drawn, folder)
    write_frames(comparison, folder)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(("html", "j2")), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breaks"] = lambda name: Markup(Markup.escape(name).replace("_", Markup("_<wbr>")))
    text = environment.get_template("page.html.j2").render(
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        version=__version__,
        looks={label: {"colour": look.colour, "path": marker_path(look.marker)} for label, look in looks(comparison).items()},
        figures=[{**vars(figure), "svg": Markup(for_page(figure))} for figure in drawn],
        **_verdict(comparison),
        **_tables(comparison),
        **_clips(comparison),
        **_configs(comparison),
        **_again(comparison),
    )
    path = folder / "index.html"
    temporary = folder / ".index.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _verdict(comparison: Comparison) -> dict[str, Any]:
    seeds = {run.seed for run in comparison.runs}
    worlds = ", ".join(dict.fromkeys(run.record["world"] for run in comparison.runs))
    counted = f"{len(comparison.runs)} of {comparison.planned}" if comparison.planned else f"{len(comparison.runs)}"
    study = f"study {comparison.extra['study']} · " if "study" in comparison.extra else "comparison · "
    return {
        "question": comparison.question,
        "kicker": f"{study}world {worlds} · {counted} run{'s' if len(comparison.runs) > 1 else ''} · "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        "status": comparison.status,
        "summary": comparison.summary,
        "reservations": comparison.reservations,
        "findings": comparison.findings,
        "sentences": comparison.sentences,
        "doubts": comparison.doubts,
        "left_out": comparison.left_out,
        "facts": _facts(comparison),
    }


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What was held equal, as far as it was."""

    def each(of: Any) -> str:
        return " · ".join(dict.fromkeys(str(of(run.record)) for run in comparison.runs))

    def budget(made: Any) -> str:
        kind = {"parameters": "parameters", "flops": "training FLOPs per clip"}.get(made["budget"]["kind"], "as given")
        return f"{short(made['budget']['requested'] or made['budget']['realised'])} {kind}"

    higher = "higher" if comparison.higher_is_better else "lower"
    return [
        ("Judged by", f"{comparison.headline or 'different scores'} ({higher} is better)"),
        ("Budget", each(budget)),
        ("Training", each(lambda made: f"{made['samples_seen']:,} clips")),
        ("Scored on", each(lambda made: f"{made['evaluation'].get('clips', '-')} {made['evaluation'].get('split', '')} clips")),
        ("Sampler", each(lambda made: made["evaluation"].get("solver", "-"))),
        ("Evaluations per clip", each(lambda made: made["evaluation"].get("evaluations", "-"))),
        ("Guidance", each(lambda made: made["evaluation"].get("guidance", "unknown"))),
    ]


def _tables(comparison: Comparison) -> dict[str, Any]:
    columns, rows = results(comparison)
    run_columns, run_rows = runs(comparison)
    contrast_columns, contrast_rows, contrast_note = contrasts(comparison)
    several = any(row.seeds > 1 for row in comparison.over_seeds())
    note = "Means over seeds with 95 % t-intervals. " if several else "Values with 95 % intervals over clips. "
    ranked = not comparison.differences and bool(comparison.headline)
    sections = [("results", "Results"), ("figures", "Figures"), ("clips", "Watch and listen"), ("runs", "All runs")]
    return {
        "columns": columns,
        "rows": rows,
        "truth": truth_row(comparison, columns),
        "run_columns": run_columns,
        "runs": run_rows,
        "contrast_columns": contrast_columns,
        "contrasts": contrast_rows,
        "contrast_note": contrast_note,
        "table_note": note
        + ("Rows stand in order of the headline score; " if ranked else "Rows are in no order; ")
        + "a press on a column's name sorts by it. Arrows show the better direction.",
        "sections": [*sections, ("configs", "What differs"), ("again", "Do it again")],
    }


def _clips(comparison: Comparison) -> dict[str, Any]:
    found = tiles(comparison)
    return {
        "tiles": found.tiles,
        "seed": found.seed,
        "clips": found.clips,
        "fewer": found.fewer,
        "heard": list(dict.fromkeys(tile.name for tile in found.tiles)),
    }


def _configs(comparison: Comparison) -> dict[str, Any]:
    """Settings by label: those that differ, with what is not as most have it marked, and those that are the same."""
    groups: dict[str, dict[str, list[str]]] = {}
    several = len(comparison.families) > 1
    for run in comparison.runs:
        name = f"{run.label} [{run.family}]" if several else run.label
        for key, value in flat(run.config).items():
            if key != "seed" and not key.startswith(NOT_SHOWN):
                groups.setdefault(name, {}).setdefault(key, []).append(_shown(value))
    table = {name: {key: ", ".join(dict.fromkeys(part)) for key, part in own.items()} for name, own in groups.items()}
    keys = dict.fromkeys(key for own in table.values() for key in own)
    differing, same = [], []
    for key in keys:
        values = [own.get(key, "–") for own in table.values()]
        most, times = Counter(values).most_common(1)[0]
        if len(set(values)) == 1:
            same.append((key, values[0]))
        else:
            marks = times > 1 or len(values) == 2
            differing.append({"key": key, "values": [(value, marks and value != most) for value in values]})
    return {"config_labels": list(table), "differing": differing, "same": same}


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()


def _again(comparison: Comparison) -> dict[str, Any]:
    found = commands(comparison.runs)
    made = [run.record["identity"] for run in comparison.runs]

    def each(key: str) -> str:
        return ", ".join(dict.fromkeys(str(part.get(key, "unknown")) for part in made))

    fields = comparison.extra.get("fields")
    source = f"# {comparison.question}\n" + yaml.safe_dump(fields, sort_keys=False) if fields else ""
    folders = dict.fromkeys(str(run.folder) for run in comparison.runs)
    parents = dict.fromkeys(str(run.folder.parent) for run in comparison.runs)
    compared = comparison.extra.get("folder") or " ".join(folders if len(folders) <= 6 else parents)
    *own, saved = comparison.extra.get("commands", [""])
    return {
        "study_command": own[0] if own else "",
        "saved_command": saved,
        "saved_name": shlex.split(saved)[2] if saved else "",
        "commands": [*found, f"nava compare {compared}"],
        "complete": _complete(found, comparison),
        "study_file": source,
        "provenance": [
            ("Revision", each("revision")),
            ("Code", each("code")),
            ("Data", each("data")),
            ("Config hashes", each("config") if len(made) <= 6 else "in runs.csv, one per run"),
            ("PyTorch", each("torch")),
            ("nava-lab", __version__),
            ("Python here", platform.python_version()),
        ],
    }


def _complete(found: Sequence[str], comparison: Comparison) -> bool:
    """Whether the commands make every run."""
    seeds = sum(len(line.rsplit("seed=", 1)[1].split(",")) for line in found)
    return seeds >= len({(str(run.config), run.seed) for run in comparison.runs})
