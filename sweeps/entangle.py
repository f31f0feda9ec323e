"""Does saying more, or saying it louder, cost a trained model its timing?

    . .venv/bin/activate
    nava train world=entangle variant=unified                 # a run whose captions have 4, 16 or 64 words
    python sweeps/entangle.py RUN [RUN ...]

Held fixed: the trained model, clips, captions, noise and sampler. Varied: the scale of text guidance, 1, 2, 4 and 7. For each
run: EI(when|what), the rise of the timing error from 4 to 64 words over the error of re-paired clips; and the slope of the timing
error on the scale, in milliseconds per unit, with its 95 % interval over clips, each drawn with what it gets at every scale.
Writes entangle.json and entangle.md into each run's folder; a scoring that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nava_lab.cli import in_one_line
from nava_lab.config import from_file
from nava_lab.evaluation.semantics import guidance_slope
from nava_lab.evaluation.sync import Errors
from nava_lab.report.numbers import digits_for, interval
from nava_lab.study import record
from nava_lab.study.identity import run_hash
from nava_lab.study.run import score
from nava_lab.training.quiet import quieten

SCALES = (1.0, 2.0, 4.0, 7.0)
Scored = tuple[dict[str, Any], dict[str, list[float]]]  # scores, and per-clip values
SHOWN = ("sync_error_ms", "sync_auc", "semantics", "entanglement")


def scored(folder: Path, scale: float, more: Sequence[str]) -> Scored:
    """The scores of a run at a scale of text guidance, and its per-clip values."""
    config = from_file(folder / "config.yaml", [f"evaluation.guidance.text={scale:g}", *more])
    config.world.prepare()
    own = run_hash(config.resolved, config.world.data_version())
    into = folder / "scores" / own
    if not (into / record.NAME).exists():
        score(config, folder, lambda message: print(message, file=sys.stderr), into=into)
    return record.read(into)["scores"], json.loads((into / "per_clip.json").read_text(encoding="utf-8"))


def timing(clips: dict[str, list[float]]) -> Errors:
    """Timing errors by clip."""
    return Errors.kept({name.removeprefix("sync."): values for name, values in clips.items() if name.startswith("sync.")})


def main(words: Sequence[str] | None = None, scored: Callable[[Path, float, Sequence[str]], Scored] = scored) -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    reader.add_argument("words", nargs="+", help="runs' folders, and settings such as evaluation.clips=128")
    given = reader.parse_args(words).words
    quieten()
    folders = [Path(word) for word in given if "=" not in word]
    if not folders:
        raise ValueError("no run is named: give a run's folder, or several")
    for folder in folders:
        made = {scale: scored(folder, scale, [word for word in given if "=" in word]) for scale in SCALES}
        found = {scale: scores for scale, (scores, _) in made.items()}
        slope = guidance_slope({scale: timing(clips) for scale, (_, clips) in made.items()}).to_json()
        record.write_json(folder / "entangle.json", {"slope_ms": slope, "scales": {f"{k:g}": v for k, v in found.items()}})
        names = [name for name in SHOWN if name in found[1.0]]
        lines = [f"| text guidance | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for scale, scores in found.items():
            cells = (interval(scores[name], digits_for(name)) for name in names)
            lines.append(f"| {scale:g} | {' | '.join(cells)} |")
        lines.append(f"\nslope of the timing error: {interval(slope, 2)} ms per unit of guidance, over {slope['n']} clips")
        (folder / "entangle.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{folder.name}\n" + "\n".join(lines))


if __name__ == "__main__":
    in_one_line(main)
