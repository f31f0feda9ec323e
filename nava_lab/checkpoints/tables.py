"""Layouts of published checkpoints as tables of keys: ours on the left, theirs on the right.

An entry names one tensor of ours (or rows of it) and one of theirs. ``{i}`` counts layers; ``{m}`` stands for a modality or
for weights that all of them share. Wan's own dialect serves NAVA and Ovi too; diffusers' renames it, and swaps the names of
two norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
        ours: key pattern of the denoiser's state dict.
        theirs: key pattern of the checkpoint.
        part: which of so many equal parts of our rows it fills, such as (1, 3) for the keys of one q, k, v matrix.
        shape: how theirs differs: "" not at all; "row", one axis more in front; "patch_in", a convolution over patches whose
            kernel our tokens hold flat; "patch_out", rows by patch and then channel, where ours go by channel and then patch.
    """

    ours: str
    theirs: str
    part: tuple[int, int] = (0, 1)
    shape: str = ""


def _both(ours: str, theirs: str) -> Iterator[Entry]:
    for suffix in ("weight", "bias"):
        yield Entry(f"{ours}.{suffix}", f"{theirs}.{suffix}")


def _attention(theirs: str, names: Mapping[str, str]) -> list[Entry]:
    """Self-attention with q, k, v in one matrix of ours."""
    found = []
    for place, letter in enumerate("qkv"):
        found += [
            Entry(f"attention.projections.parts.{{m}}.qkv.{suffix}", f"{theirs}.{names[letter]}.{suffix}", (place, 3))
            for suffix in ("weight", "bias")
        ]
    found += _both("attention.outputs.parts.{m}.linear", f"{theirs}.{names['o']}")
    found += [
        Entry(f"attention.projections.parts.{{m}}.{letter}_norm.norm.weight", f"{theirs}.{names['norm_' + letter]}.weight")
        for letter in "qk"
    ]
    return found


def _cross(ours: str, theirs: str, names: Mapping[str, str]) -> list[Entry]:
    """Cross-attention, four matrices."""
    found: list[Entry] = []
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        found += _both(f"{ours}.{name}.linear", f"{theirs}.{names[letter]}")
    found += _both(f"{ours}.output.linear", f"{theirs}.{names['o']}")
    found += [
        Entry(f"{ours}.{name}.norm.norm.weight", f"{theirs}.{names['norm_' + name[0]]}.weight") for name in ("query", "key")
    ]
    return found


PLAIN = {letter: letter for letter in ("q", "k", "v", "o", "norm_q", "norm_k")}
DIFFUSERS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}


def _wan(names: Mapping[str, str], keys: Mapping[str, str]) -> tuple[Entry, ...]:
    """A Wan video model; ``keys`` are the dialect's names for what is not an attention's."""
    layers = [
        *_attention(keys["self"], names),
        *_cross("text.parts.parts.{m}", keys["cross"], names),
        *_both("text_norm.parts.parts.{m}", keys["text_norm"]),
        *_both("feed_forward.parts.parts.{m}.fc1", keys["up"]),
        *_both("feed_forward.parts.parts.{m}.fc2", keys["down"]),
        Entry("modulation.tables.parts.{m}.table", keys["table"], shape="row"),
    ]
    ends = [
        Entry("embed.{m}.weight", "patch_embedding.weight", shape="patch_in"),
        Entry("embed.{m}.bias", "patch_embedding.bias"),
        *_both("text.parts.{m}.mlp.0", keys["text_1"]),
        *_both("text.parts.{m}.mlp.2", keys["text_2"]),
        *_both("level.parts.{m}.mlp.0", keys["time_1"]),
        *_both("level.parts.{m}.mlp.2", keys["time_2"]),
        *_both("level.parts.{m}.projection.1", keys["time_all"]),
        *(Entry(f"heads.{{m}}.linear.{suffix}", f"{keys['head']}.{suffix}", shape="patch_out") for suffix in ("weight", "bias")),
        Entry("heads.{m}.table.table", keys["head_table"], shape="row"),
    ]
    inner = (Entry(f"blocks.{{i}}.{one.ours}", f"blocks.{{i}}.{one.theirs}", one.part, one.shape) for one in layers)
    return (*inner, *ends)


WAN = _wan(
    PLAIN,
    {
        "self": "self_attn",
        "cross": "cross_attn",
        "text_norm": "norm3",
        "up": "ffn.0",
        "down": "ffn.2",
        "table": "modulation",
        "text_1": "text_embedding.0",
        "text_2": "text_embedding.2",
        "time_1": "time_embedding.0",
        "time_2": "time_embedding.2",
        "time_all": "time_projection.1",
        "head": "head.head",
        "head_table": "head.modulation",
    },
)
WAN_DIFFUSERS = _wan(
    DIFFUSERS,
    {
        "self": "attn1",
        "cross": "attn2",
        "text_norm": "norm2",
        "up": "ffn.net.0.proj",
        "down": "ffn.net.2",
        "table": "scale_shift_table",
        "text_1": "condition_embedder.text_embedder.linear_1",
        "text_2": "condition_embedder.text_embedder.linear_2",
        "time_1": "condition_embedder.time_embedder.linear_1",
        "time_2": "condition_embedder.time_embedder.linear_2",
        "time_all": "condition_embedder.time_proj",
        "head": "proj_out",
        "head_table": "scale_shift_table",
    },
)


def _ltx2() -> tuple[Entry, ...]:
    """LTX-2, both streams and the exchange (diffusers' names, which are also the release's)."""
    layers: list[Entry] = []
    ends: list[Entry] = []
    for name, own in (("video", ""), ("audio", "audio_")):
        storey = f"storeys.parts.{name}"
        inside = [
            *_attention(f"{own}attn1", DIFFUSERS),
            *_both("attention.outputs.parts.{m}.gate", f"{own}attn1.to_gate_logits"),
            *_cross("text.parts.parts.{m}", f"{own}attn2", DIFFUSERS),
            *_both("text.parts.parts.{m}.output.gate", f"{own}attn2.to_gate_logits"),
            Entry("text.prompt.parts.{m}.table", f"{own}prompt_scale_shift_table"),
            *_both("feed_forward.parts.parts.{m}.fc1", f"{own}ff.net.0.proj"),
            *_both("feed_forward.parts.parts.{m}.fc2", f"{own}ff.net.2"),
            Entry("modulation.tables.parts.{m}.table", f"{own}scale_shift_table"),
        ]
        layers += [Entry(f"{storey}.{one.ours}", one.theirs, one.part) for one in inside]
        layers += [Entry(f"bridge.tables.{name}.table", f"{name}_a2v_cross_attn_scale_shift_table")]
        into = "audio_to_video" if name == "video" else "video_to_audio"
        layers += _cross(f"bridge.readers.{into}", f"{into}_attn", DIFFUSERS)
        layers += _both(f"bridge.readers.{into}.output.gate", f"{into}_attn.to_gate_logits")
        gate = "a2v" if name == "video" else "v2a"
        for ours, theirs in (
            (f"level.parts.{name}", f"{own}time_embed"),
            (f"prompt.parts.{name}", f"{own}prompt_adaln"),
            (f"exchange.scales.{name}", f"av_cross_attn_{name}_scale_shift"),
            (f"exchange.gates.{name}", f"av_cross_attn_{name}_{gate}_gate"),
        ):
            ends += _both(f"{ours}.mlp.0", f"{theirs}.emb.timestep_embedder.linear_1")
            ends += _both(f"{ours}.mlp.2", f"{theirs}.emb.timestep_embedder.linear_2")
            ends += _both(f"{ours}.projection.1", f"{theirs}.linear")
        ends += _both(f"embed.{name}", f"{own}proj_in")
        ends += _both(f"text.parts.{name}.mlp.0", f"{own}caption_projection.linear_1")
        ends += _both(f"text.parts.{name}.mlp.2", f"{own}caption_projection.linear_2")
        ends += _both(f"heads.{name}.linear", f"{own}proj_out")
        ends += [Entry(f"heads.{name}.table.table", f"{own}scale_shift_table")]
    inner = [Entry(f"blocks.{{i}}.{one.ours}", f"transformer_blocks.{{i}}.{one.theirs}", one.part) for one in layers]
    return (*inner, *ends)


LTX2 = _ltx2()


@dataclass(frozen=True)
class Dialect:
    """A checkpoint's layout.

    Attributes:
        name: of the layout.
        mark: a key that only this layout has.
        entries: the table.
        modality: the one that a checkpoint of a single modality knows; empty where the table names its modalities.
        prefixes: what may stand before every key of a file.
    """

    name: str
    mark: str
    entries: tuple[Entry, ...]
    modality: str = "video"
    prefixes: tuple[str, ...] = ("", "model.diffusion_model.", "video_model.")


DIALECTS = (
    Dialect("wan", "blocks.0.self_attn.q.weight", WAN),
    Dialect("wan (diffusers)", "blocks.0.attn1.to_q.weight", WAN_DIFFUSERS),
    Dialect("ltx2", "transformer_blocks.0.audio_to_video_attn.to_q.weight", LTX2, modality=""),
)
