"""How do quality and synchrony of a finished run depend on model evaluations, for each solver and with guidance?

    . .venv/bin/activate
    python sweeps/samplers.py RUN                                   # every solver, guidance off
    python sweeps/samplers.py RUN --guidance text=2 --guidance modality=2 --evaluations 8,16,32 --solvers euler,heun,unipc
    nava train variant=dual_tower flow.modality_dropout=0.2         # a run whose modality guidance is trained

Held fixed: the trained model, clips, captions, noise and schedule. Varied: the solver (or, with Heun, guidance) and the number of
evaluations per clip, those of guidance included: each gets as many steps as fit into the count. Writes samplers.json,
samplers.png and samplers.md into RUN/samplers. A point that is in samplers.json already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
from omegaconf import OmegaConf

from nava_lab.cli import in_one_line
from nava_lab.config import Config, from_file
from nava_lab.evaluation.protocol import evaluate
from nava_lab.flow.sampling import Sampler
from nava_lab.registry import solvers
from nava_lab.study.build import parts
from nava_lab.study.fit import load_model
from nava_lab.study.record import write_json
from nava_lab.study.run import device_of, identify

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Point = dict[str, Any]


def fitted(sampler: Sampler, most: int, modalities: tuple[str, ...], given: list[str]) -> Sampler | None:
    """The sampler with as many steps as ``most`` evaluations allow and its guidance takes; None where no count fits."""
    best = None
    for steps in range(1, most + 1):
        tried = replace(sampler, steps=steps)
        try:
            count = tried.evaluations(modalities, given)
        except ValueError:  # stillness at first (cfg_zero) may leave no step of so few
            continue
        if count > most:
            break
        best = tried
    return best


def cases(solvers: Sequence[str], settings: Sequence[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """(label, solver, guidance) of every curve: each says both, whatever the run itself is scored by."""
    found: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in solvers]
    for setting in settings:
        guidance = OmegaConf.to_container(OmegaConf.from_dotlist(setting.split(",")))
        found.append((f"heun, {setting}", "heun", guidance))  # type: ignore[arg-type]
    return found


def configured(path: Path, solver: str, guidance: dict[str, Any], clips: int) -> Config:
    """The run's config with this solver, exactly this guidance and a number of clips."""
    config = from_file(path, [f"evaluation/solver={solver}", f"evaluation.clips={clips}"])
    return replace(config, evaluation=replace(config.evaluation, guidance=guidance))


def main(words: Sequence[str] | None = None) -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("run", type=Path)
    reader.add_argument("--evaluations", default="4,8,16,32,64", type=lambda text: sorted(map(int, text.split(","))))
    reader.add_argument("--solvers", default=solvers.names(), type=lambda text: text.split(","))
    reader.add_argument("--guidance", action="append", default=[], help="text=2, say; again for another curve")
    reader.add_argument("--clips", default=128, type=int)
    reader.add_argument("--out", type=Path)
    arguments = reader.parse_args(words)
    out = arguments.out or arguments.run / "samplers"
    out.mkdir(parents=True, exist_ok=True)
    path = out / "samplers.json"
    known: dict[str, Point] = json.loads(path.read_text(encoding="utf-8"))["points"] if path.exists() else {}
    base = from_file(arguments.run / "config.yaml")
    base.world.prepare()
    model, steps, _ = load_model(arguments.run, base, lambda text: print(text, file=sys.stderr))
    device, code = device_of(base), identify(base)["code"]
    model = model.to(device)
    for label, solver, guidance in cases(arguments.solvers, arguments.guidance):
        config = configured(arguments.run / "config.yaml", solver, guidance, arguments.clips)
        built = parts(config)
        modalities = tuple(config.world.interface().modalities)
        given = [built.protocol.given] if built.protocol.given else []
        for most in arguments.evaluations:
            key = f"{label} | {most} | {arguments.clips} clips | step {steps} | code {code}"
            if key in known:
                continue
            sampler = fitted(built.protocol.sampler, most, modalities, given)
            if sampler is None:
                print(f"{label}: no step fits into {most} evaluations", file=sys.stderr)
                continue
            protocol = replace(built.protocol, sampler=sampler, loss_clips=2)
            result = evaluate(model, config.world, protocol, built.objective, built.scoring, config.seed, device, keep=1)
            scores = {name: score.to_dict() for name, score in result.scores.items()}
            count = sampler.evaluations(modalities, given)
            known[key] = {"label": label, "asked": most, "evaluations": count, "steps": sampler.steps, "scores": scores}
            known[key] |= {"code": code, "clips": arguments.clips}
            write_json(path, {"run": arguments.run.name, "points": known})
            value = scores.get(config.world.headline, {}).get("value", float("nan"))
            print(f"{label:24} {count:4} evaluations   {config.world.headline} {value:.3f}", flush=True)
    shown = [point for point in known.values() if point["code"] == code and point["clips"] == arguments.clips]
    draw(out, shown, base)
    print(out / "samplers.png")


def draw(out: Path, points: list[Point], config: Config) -> None:
    """A curve per label for the headline and the error of timing or count, and the same numbers as a table."""
    wanted = [config.world.headline, "sync_error_ms", "count_error"]
    told = {name: [point["scores"][name]["value"] for point in points if name in point["scores"]] for name in wanted}
    names = [name for name, values in told.items() if any(value == value for value in values)]  # not where none is defined
    labels = list(dict.fromkeys(point["label"] for point in points))
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for number, label in enumerate(labels):
            mine = [p for p in points if p["label"] == label and name in p["scores"]]
            curve = sorted(((p["evaluations"], p["scores"][name]) for p in mine), key=lambda pair: pair[0])
            x, scores = [count for count, _ in curve], [score for _, score in curve]
            axis.plot(
                x, [s["value"] for s in scores], marker="o", color=f"C{number % 10}", ls="--" if number > 9 else "-", label=label
            )
            low, high = [s["low"] for s in scores], [s["high"] for s in scores]
            axis.fill_between(x, low, high, color=f"C{number % 10}", alpha=0.08, lw=0)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel="model evaluations per clip", ylabel=name)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(out / "samplers.png", dpi=120)
    plt.close(figure)
    lines = [f"| sampler | evaluations | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for point in sorted(points, key=lambda p: (labels.index(p["label"]), p["evaluations"])):
        cells = [point["scores"].get(name) for name in names]
        shown = [f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" if c else "" for c in cells]
        lines.append(f"| {point['label']} | {point['evaluations']} | {' | '.join(shown)} |")
    (out / "samplers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    in_one_line(main)
