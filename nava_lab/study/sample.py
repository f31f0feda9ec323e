"""New clips from a run: generated, or continued from what is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from nava_lab.conditioning.text_frozen import FrozenEncoder
from nava_lab.conditioning.timbre import carried
from nava_lab.config import Config
from nava_lab.evaluation.previews import write_previews
from nava_lab.evaluation.protocol import sample
from nava_lab.flow.agreement import check_use, disagreements
from nava_lab.flow.draws import Drawing
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.guidance.timbre import Timbre
from nava_lab.streams import Batch, Stream
from nava_lab.study.build import interface, parts
from nava_lab.study.fit import load_model
from nava_lab.study.given import Wish, giver
from nava_lab.study.run import device_of
from nava_lab.worlds.base import World


def sample_run(
    folder: Path,
    config: Config,
    out: Path,
    count: int,
    seed: int | None,
    tell: Callable[[str], None],
    wish: Wish | None = None,
    batch_size: int | None = None,
    previews: int | None = None,
) -> list[Path]:
    """Write ``count`` clips (MP4 and picture, and their token values) with the noise of ``seed``.

    Args:
        folder: the run's.
        config: its config, perhaps with other evaluation settings.
        out: where to.
        count: how many clips.
        seed: of the noise; the run's own where None.
        tell: receives remarks.
        wish: what the clips are given.
        batch_size: clips at a time; changes them by no more than a batched matrix product's round-off.
        previews: how many clips are also written to be watched; all where None.
    """
    if count < 1:
        raise ValueError(f"--count={count} must be at least 1")
    size = config.evaluation.batch_size if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"--batch-size={size} must be at least 1")
    wish = wish or Wish({}, {}, true=config.evaluation.given)
    check_place(out, wish, tell)
    config.world.prepare()
    built = parts(config)
    said = caption_of(wish, config.world, built.drawing, tell)
    if said is not None:
        check_marks(said, config, built.protocol.sampler.guidance, tell)
    check_use(built.drawing, wish.whole, list(wish.first_steps), wish.beginning is not None)
    give = giver(wish, config.world)
    modalities = tuple(config.world.interface().modalities)
    sampler = built.protocol.sampler
    for line in disagreements(sampler, built.drawing, [name for name in modalities if name not in wish.whole]):
        tell(f"warning: {line}")
    model, _, _ = load_model(folder, config, tell, built)
    device = device_of(config)
    chosen = config.seed if seed is None else seed
    made: dict[str, list[torch.Tensor]] = {}
    arguments = (model.to(device), config.world, sampler, chosen, count, size, wish.split, device)
    text = None if said is None else (lambda batch: all_say(said, config.world, batch))
    for _, streams in sample(*arguments, purpose="new clips", given=give, text=text):
        for name, part in streams.items():
            made.setdefault(name, []).append(part.cpu())
    tell(f"{count} clips at {sampler.evaluations(modalities, wish.whole)} model evaluations each")
    whole = {name: torch.cat(rows) for name, rows in made.items()}
    caption = getattr(config.world, "captions", None)
    captions = caption(wish.split, torch.arange(count)) if caption and said is None else [said or ""] * count
    shown = count if previews is None else min(previews, count)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: part.contiguous() for name, part in whole.items()}, out / "tokens.safetensors")
    names = write_previews(out, config.world, whole, captions, shown)
    return [out / f"{name}.mp4" for name in names] or [out / "tokens.safetensors"]


def check_place(out: Path, wish: Wish, tell: Callable[[str], None]) -> None:
    """Refuse a folder whose files are read for these clips, and tell of earlier clips that go."""
    read = [*wish.files.values(), *wish.first_steps.values(), *([wish.beginning] if wish.beginning else [])]
    for file in read:
        if file.resolve().parent == out.resolve():
            raise ValueError(f"{file} is given and would be replaced by what it gives: name another folder (--out)")
    if (out / "tokens.safetensors").exists():
        tell(f"{out}: replaces the clips of an earlier call (--out FOLDER keeps both)")


def caption_of(wish: Wish, world: World, drawing: Drawing, tell: Callable[[str], None]) -> str | None:
    """What all new clips are told, "" for no caption; None for the captions of the world's clips.

    Raises:
        ValueError: the prompt's words are not the world's, or captions were never trained.
    """
    encode = world.encode
    if wish.prompt:
        if encode is None:
            raise ValueError(f"--prompt {wish.prompt}: world {world.name} has no words; leave --prompt out")
        if drawing.text_dropout >= 1:
            raise ValueError("--prompt: captions were never trained; train with flow.text_dropout below 1")
        encode([wish.prompt])
        if isinstance(encode, FrozenEncoder) and encode.cut([wish.prompt]):
            tell(f"warning: --prompt is longer than world.caption_tokens={encode.length}, and its end is not read")
        return wish.prompt
    if encode is not None and drawing.text_dropout >= 1:
        return ""  # captions were never trained
    if encode is None or not wish.own or wish.captions:
        return None
    if drawing.text_dropout:
        tell(f"no caption is given; --prompt TEXT gives one, --from {wish.split} those of the world's clips")
        return ""
    tell(
        f"captions are those of the world's {wish.split} clips, not of your file (flow.text_dropout=0 trained none without); "
        "--prompt TEXT gives another"
    )
    return None


def check_marks(caption: str, config: Config, guidance: Guidance, tell: Callable[[str], None]) -> None:
    """Refuse guidance by timbres that this caption shows none of; tell that none are shown, and whose spans they stand in."""
    spec, encode = interface(config).text, config.world.encode
    if not spec.timbre or encode is None:
        return
    span = encode([caption]).span
    marks = 0 if span is None else int(((span >= 0) & (span < spec.references)).sum())
    example = config.world.captions("test", torch.arange(1))[0]
    if not marks:
        if any(isinstance(term, Timbre) for term in guidance.terms):
            raise ValueError(
                f"evaluation.guidance.timbre: no reference timbre is shown, for the caption '{caption}' marks no span; "
                f"say it as the world does (--prompt '{example}') or leave the guidance off"
            )
        tell(f"no reference timbre is shown: the caption '{caption}' marks no span; the world's captions read '{example}'")
    elif config.conditioning.timbre_in_span:
        tell("warning: which tokens lie in which span is read off the world's clips, not off the times that your prompt says")


def all_say(caption: str, world: World, batch: Batch) -> Stream:
    """One caption for every clip of a batch, its marks standing for the clip's own references."""
    encode = world.encode
    assert encode is not None
    return carried(encode([caption] * len(batch)).to(batch.text.tokens.device), batch.text.references)
