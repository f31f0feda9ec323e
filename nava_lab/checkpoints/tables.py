"""Layouts of published checkpoints as tables of keys: ours on the left, theirs on the right.

An entry names one tensor of ours (or rows of it) and one of theirs. ``{i}`` counts layers; ``{m}`` stands for a modality or
for weights that all of them share. Wan's own dialect serves NAVA too; diffusers' renames it, and swaps the names of
two norms. LTX-2's release calls some of what diffusers has otherwise; Ovi's is two Wan models in one file.

Rotary pairs are two neighbouring channels here, and in LTX-2's releases two channels half a head apart ("split"): the same
network with the rows of queries, keys and their norms in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from nava_lab.checkpoints import facts as known


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
        ours: key pattern of the denoiser's state dict.
        theirs: key pattern of the checkpoint.
        part: which of so many equal parts of our rows it fills, such as (1, 3) for the keys of one q, k, v matrix.
        shape: how theirs differs: "" not at all; "row", one axis more in front; "patch_in", a convolution over patches whose
            kernel our tokens hold flat; "patch_out", rows by patch and then channel, where ours go by channel and then patch.
        turned: rows are channels of heads that rotary positions turn in pairs.
    """

    ours: str
    theirs: str
    part: tuple[int, int] = (0, 1)
    shape: str = ""
    turned: bool = False


def _both(ours: str, theirs: str) -> Iterator[Entry]:
    for suffix in ("weight", "bias"):
        yield Entry(f"{ours}.{suffix}", f"{theirs}.{suffix}")


def _attention(theirs: str, names: Mapping[str, str]) -> list[Entry]:
    """Self-attention with q, k, v in one matrix of ours."""
    found = []
    for place, letter in enumerate("qkv"):
        found += [
            Entry(
                f"attention.projections.parts.{{m}}.qkv.{suffix}",
                f"{theirs}.{names[letter]}.{suffix}",
                (place, 3),
                turned=letter in "qk",
            )
            for suffix in ("weight", "bias")
        ]
    found += _both("attention.outputs.parts.{m}.linear", f"{theirs}.{names['o']}")
    found += [
        Entry(
            f"attention.projections.parts.{{m}}.{letter}_norm.norm.weight",
            f"{theirs}.{names['norm_' + letter]}.weight",
            turned=True,
        )
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


def _ovi() -> tuple[Entry, ...]:
    """Ovi: two Wan models in one file, each with the exchange's keys and values in its text cross-attention.

    As its released code builds and strictly loads it: ``video_model.`` and ``audio_model.``, a layer's table one name deeper than
    Wan's (``modulation.modulation``), convolutions before the audio. Read off the code, not off the weights: of the file itself
    only its size is known here, and the fp8 file's further tensors are not. What a release adds has no place and is counted so.
    """
    found: list[Entry] = []
    for name, other in (("video", "audio"), ("audio", "video")):
        storey, reader = f"storeys.parts.{name}", f"bridge.readers.parts.{name}"
        tower = [
            *(replace(one, ours=f"{storey}.{one.ours}") for one in _attention("self_attn", PLAIN)),
            *_cross(reader, "cross_attn", PLAIN),
            *_both(f"{reader}.text_norm", "norm3"),
            *_both(f"{reader}.fusion.{other}.norm", "cross_attn.pre_attn_norm_fusion"),
            *_both(f"{reader}.fusion.{other}.key.linear", "cross_attn.k_fusion"),
            *_both(f"{reader}.fusion.{other}.value.linear", "cross_attn.v_fusion"),
            Entry(f"{reader}.fusion.{other}.key.norm.norm.weight", "cross_attn.norm_k_fusion.weight"),
            *_both(f"{storey}.feed_forward.parts.parts.{{m}}.fc1", "ffn.0"),
            *_both(f"{storey}.feed_forward.parts.parts.{{m}}.fc2", "ffn.2"),
            Entry(f"{storey}.modulation.tables.parts.{{m}}.table", "modulation.modulation", shape="row"),
        ]
        found += [
            replace(one, ours=f"blocks.{{i}}.{one.ours}", theirs=f"{name}_model.blocks.{{i}}.{one.theirs}") for one in tower
        ]
        laid = "patch_out" if name == "video" else ""
        ends = [
            *_both(f"text.parts.{name}.mlp.0", "text_embedding.0"),
            *_both(f"text.parts.{name}.mlp.2", "text_embedding.2"),
            *_both(f"level.parts.{name}.mlp.0", "time_embedding.0"),
            *_both(f"level.parts.{name}.mlp.2", "time_embedding.2"),
            *_both(f"level.parts.{name}.projection.1", "time_projection.1"),
            *(replace(one, shape=laid) for one in _both(f"heads.{name}.linear", "head.head")),
            Entry(f"heads.{name}.table.table", "head.modulation", shape="row"),
        ]
        found += [replace(one, theirs=f"{name}_model.{one.theirs}") for one in ends]
    return (
        *found,
        Entry("embed.video.weight", "video_model.patch_embedding.weight", shape="patch_in"),
        Entry("embed.video.bias", "video_model.patch_embedding.bias"),
        *_both("embed.audio.first", "audio_model.patch_embedding.0"),
        *(Entry(f"embed.audio.w{part}.weight", f"audio_model.patch_embedding.2.w{part}.weight") for part in (1, 2, 3)),
    )


OVI = _ovi()


def _turned(entries: list[Entry]) -> list[Entry]:
    """A cross-attention whose queries and keys rotary positions turn."""
    turned = (".query.", ".key.")
    return [replace(one, turned=any(part in one.ours for part in turned)) for one in entries]


def _ltx2(names: Mapping[str, str], keys: Mapping[str, str]) -> tuple[Entry, ...]:
    """LTX-2, both streams and the exchange; ``keys`` are the dialect's names for what is not an attention's, with the stream's
    own prefix, its name and the exchange that it receives to be put in."""
    layers: list[Entry] = []
    ends: list[Entry] = []
    for name, own, gate in (("video", "", "a2v"), ("audio", "audio_", "v2a")):
        put = {key: pattern.format(own=own, name=name, gate=gate) for key, pattern in keys.items()}
        storey = f"storeys.parts.{name}"
        inside = [
            *_attention(f"{own}attn1", names),
            *_both("attention.outputs.parts.{m}.gate", f"{own}attn1.to_gate_logits"),
            *_cross("text.parts.parts.{m}", f"{own}attn2", names),
            *_both("text.parts.parts.{m}.output.gate", f"{own}attn2.to_gate_logits"),
            Entry("text.prompt.parts.{m}.table", f"{own}prompt_scale_shift_table"),
            *_both("feed_forward.parts.parts.{m}.fc1", f"{own}ff.net.0.proj"),
            *_both("feed_forward.parts.parts.{m}.fc2", f"{own}ff.net.2"),
            Entry("modulation.tables.parts.{m}.table", f"{own}scale_shift_table"),
        ]
        layers += [replace(one, ours=f"{storey}.{one.ours}") for one in inside]
        layers += [Entry(f"bridge.tables.{name}.table", put["exchange"])]
        into = "audio_to_video" if name == "video" else "video_to_audio"
        layers += _turned(_cross(f"bridge.readers.{into}", f"{into}_attn", names))
        layers += _both(f"bridge.readers.{into}.output.gate", f"{into}_attn.to_gate_logits")
        for ours, theirs in (
            (f"level.parts.{name}", put["level"]),
            (f"prompt.parts.{name}", put["prompt"]),
            (f"exchange.scales.{name}", put["scales"]),
            (f"exchange.gates.{name}", put["gates"]),
        ):
            ends += _both(f"{ours}.mlp.0", f"{theirs}.emb.timestep_embedder.linear_1")
            ends += _both(f"{ours}.mlp.2", f"{theirs}.emb.timestep_embedder.linear_2")
            ends += _both(f"{ours}.projection.1", f"{theirs}.linear")
        ends += _both(f"embed.{name}", put["embed"])
        ends += _both(f"text.parts.{name}.mlp.0", f"{own}caption_projection.linear_1")
        ends += _both(f"text.parts.{name}.mlp.2", f"{own}caption_projection.linear_2")
        ends += _both(f"heads.{name}.linear", f"{own}proj_out")
        ends += [Entry(f"heads.{name}.table.table", f"{own}scale_shift_table")]
    inner = [replace(one, ours=f"blocks.{{i}}.{one.ours}", theirs=f"transformer_blocks.{{i}}.{one.theirs}") for one in layers]
    return (*inner, *ends)


LTX2_DIFFUSERS = _ltx2(
    DIFFUSERS,
    {
        "embed": "{own}proj_in",
        "level": "{own}time_embed",
        "prompt": "{own}prompt_adaln",
        "scales": "av_cross_attn_{name}_scale_shift",
        "gates": "av_cross_attn_{name}_{gate}_gate",
        "exchange": "{name}_a2v_cross_attn_scale_shift_table",
    },
)
LTX2 = _ltx2(
    DIFFUSERS | {"norm_q": "q_norm", "norm_k": "k_norm"},
    {
        "embed": "{own}patchify_proj",
        "level": "{own}adaln_single",
        "prompt": "{own}prompt_adaln_single",
        "scales": "av_ca_{name}_scale_shift_adaln_single",
        "gates": "av_ca_{gate}_gate_adaln_single",
        "exchange": "scale_shift_table_a2v_ca_{name}",
    },
)


@dataclass(frozen=True)
class Dialect:
    """A checkpoint's layout.

    Attributes:
        name: of the layout.
        mark: a key that only this layout has.
        entries: the table.
        modality: the one that a checkpoint of a single modality knows; empty where the table names its modalities.
        prefixes: what may stand before every key of a file.
        beside: how keys of other models in the same file begin; they are no part of it.
        facts: what it computes by that no shape tells.
        told: which of the keys that a fact may be told by its config has.
        header: whether that config is in the file's header, under "transformer", and not in a file beside it.
        rotary: its clock.
        width: key, by modality, whose columns are its width.
    """

    name: str
    mark: str
    entries: tuple[Entry, ...]
    modality: str = "video"
    prefixes: tuple[str, ...] = ("", "model.diffusion_model.", "video_model.")
    beside: tuple[str, ...] = ()
    facts: tuple[known.Fact, ...] = known.WAN
    told: int = 0
    header: bool = False
    rotary: known.Rotary = known.WAN_ROTARY
    width: Mapping[str, str] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        return (self.modality,) if self.modality else ("video", "audio")

    def table(self) -> dict[str, list[Entry]]:
        """The entries by our key patterns."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.ours, []).append(entry)
        return found


# What the single file of LTX-2's release holds besides, and what prepares its text.
LTX2_BESIDE = (
    "vae.",
    "audio_vae.",
    "vocoder.",
    "text_embedding_projection.",
    "video_embeddings_connector.",
    "audio_embeddings_connector.",
)

LTX2_WIDTHS = {name: f"transformer_blocks.0.{own}attn1.to_q.weight" for name, own in (("video", ""), ("audio", "audio_"))}

DIALECTS = (
    Dialect(
        "ovi",
        "video_model.blocks.0.cross_attn.k_fusion.weight",
        OVI,
        modality="",
        facts=known.OVI,
        rotary=known.OVI_ROTARY,
        width={name: f"{name}_model.blocks.0.self_attn.q.weight" for name in ("video", "audio")},
    ),
    Dialect(
        "wan",
        "blocks.0.self_attn.q.weight",
        WAN,
        width={"video": "blocks.0.self_attn.q.weight"},
    ),
    Dialect(
        "wan (diffusers)", "blocks.0.attn1.to_q.weight", WAN_DIFFUSERS, told=1, width={"video": "blocks.0.attn1.to_q.weight"}
    ),
    Dialect(
        "ltx2",
        "transformer_blocks.0.audio_to_video_attn.q_norm.weight",
        LTX2,
        modality="",
        beside=LTX2_BESIDE,
        facts=known.LTX2,
        told=1,
        header=True,
        rotary=known.LTX2_ROTARY,
        width=LTX2_WIDTHS,
    ),
    Dialect(
        "ltx2 (diffusers)",
        "transformer_blocks.0.audio_to_video_attn.norm_q.weight",
        LTX2_DIFFUSERS,
        modality="",
        facts=known.LTX2,
        rotary=known.LTX2_ROTARY,
        width=LTX2_WIDTHS,
    ),
)
