"""What can be set, read from the source files alone: nothing heavy is imported for a listing."""

from __future__ import annotations

import ast

from nava_lab.registry import (
    PACKAGE,
    _fields,
    blocks,
    bridges,
    guidance,
    level_laws,
    level_weights,
    masks,
    metrics,
    schedules,
    solvers,
    variants,
    worlds,
)


def catalogue(short: bool) -> str:
    """Variants, worlds and (in full) every setting, read from the source files alone."""
    lines = []
    for title, entries in (("Variants", variants), ("Worlds", worlds)):
        lines.append(f"{title}:")
        for entry in entries.entries.values():
            lines.append(f"  {entry.name:18} {entry.summary}")
            if not short:
                key = entries.variable.removesuffix("s")
                lines += [f"      {key}.{field}={default.removeprefix('lambda: ')}" for field, default in entry.fields]
    lines.append("Budgets:\n  budget.parameters=1_000_000, or budget.flops=..., or budget.width=... budget.hidden=...")
    if short:
        return "\n".join(lines) + "\n"
    settings = [
        ("every variant", "variant", "models/variant.py", "Variant"),
        ("every layer", "variant.layers", "blocks/options.py", "Traits"),
        ("before and after the layers", "variant.ends", "blocks/options.py", "Ends"),
        ("clock", "variant.clock", "layers/rotary.py", "Clock"),
        ("bridge of towers (None: as its kind has it)", "variant.bridge", "models/towers.py", "Bridge"),
        ("every world of flashes and sounds", "world", "worlds/staged.py", "Staged"),
        ("budget", "budget", "budget/solve.py", "Budget"),
        ("training", "training", "training/settings.py", "Training"),
        ("noise and objective", "flow", "config/schema.py", "Flow"),
        ("sampling and scoring", "evaluation", "config/schema.py", "Evaluation"),
        ("attention", "attention", "config/schema.py", "Attention"),
        ("conditioning", "conditioning", "config/schema.py", "Conditioning"),
        ("warm start (warm_start=PATH for short)", "warm_start", "config/schema.py", "WarmStart"),
        ("machine", "trainer", "config/schema.py", "Machine"),
        ("output", "output", "config/schema.py", "Output"),
    ]
    for title, key, file, class_name in settings:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        node = next(part for part in tree.body if isinstance(part, ast.ClassDef) and part.name == class_name)
        lines.append(f"Settings, {title}:")
        lines += [
            f"  {key}.{field}={default}"
            for field, default in _fields(node)
            if default not in ("None",) or key in ("budget", "variant.bridge")
        ]
    lines += ["  seed=0", "  difficulty=medium    (easy, medium, hard: sets the field by which a world grows harder)"]
    lines.append("Guidance (all off):")
    for entry in guidance.entries.values():
        names = [field for field, _ in entry.fields]
        lines.append(f"  {entry.name:18} {entry.summary}")
        single = len(names) == 1
        lines += [
            f"      evaluation.guidance.{entry.name}" + ("" if single else f".{field}") + f"={default}"
            for field, default in entry.fields
        ]
    groups = (
        *(("flow/levels", level_laws), ("flow/weighting", level_weights)),
        *(("evaluation/solver", solvers), ("evaluation/schedule", schedules)),
    )
    for key, entries in groups:
        named = {
            entry.name: ", ".join(f"{field}={default.removeprefix('lambda: ')}" for field, default in entry.fields)
            for entry in entries.entries.values()
        }
        lines.append(f"{key}: " + ", ".join(name + (f"({fields})" if fields else "") for name, fields in named.items()))
    folder = PACKAGE.parent / "configs"
    for group in sorted(part for part in folder.iterdir() if part.is_dir()) if folder.is_dir() else []:
        lines.append(f"{group.name}: " + ", ".join(sorted(file.stem for file in group.glob("*.yaml"))))
    for title, entries in (("Blocks", blocks), ("Bridges", bridges), ("Masks", masks), ("Metrics", metrics)):
        lines.append(f"{title}: " + ", ".join(entries))
    return "\n".join(lines) + "\n"
