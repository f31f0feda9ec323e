"""New clips from a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from nava_lab.config import from_file
from nava_lab.evaluation.previews import write_previews
from nava_lab.evaluation.protocol import sample
from nava_lab.study.build import parts
from nava_lab.study.run import load_model


def sample_run(folder: Path, out: Path, count: int, seed: int | None, tell: Callable[[str], None]) -> list[Path]:
    """Write ``count`` clips (MP4 and picture, and their token values) with the noise of ``seed``."""
    if count < 1:
        raise ValueError(f"--count={count} must be at least 1")
    config = from_file(folder / "config.yaml")
    config.world.prepare()
    built = parts(config)
    model, _, _ = load_model(folder, config, tell)
    chosen = config.seed if seed is None else seed
    made: dict[str, list[torch.Tensor]] = {}
    size = config.evaluation.batch_size
    for _, streams in sample(model, config.world, built.protocol.sampler, chosen, count, size, purpose="new clips"):
        for name, part in streams.items():
            made.setdefault(name, []).append(part)
    whole = {name: torch.cat(rows) for name, rows in made.items()}
    caption = getattr(config.world, "captions", None)
    captions = caption("test", torch.arange(count)) if caption else [""] * count
    out.mkdir(parents=True, exist_ok=True)
    from safetensors.torch import save_file

    save_file({name: part.contiguous() for name, part in whole.items()}, out / "tokens.safetensors")
    names = write_previews(out, config.world, whole, captions, count)
    return [out / f"{name}.mp4" for name in names] or [out / "tokens.safetensors"]
