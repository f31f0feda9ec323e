"""What published models compute by and no shape of their weights need tell: heads, norms, clocks.

Each is a row: where the source says it (a key of the checkpoint that is there or not, or its config), in which words, and what
it is in every release where neither says. Sources: the constructors of diffusers' ``WanTransformer3DModel`` and
``LTX2VideoTransformer3DModel``, the released configs of Wan, Ovi and LTX-2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nava_lab.checkpoints.files import Tensors
from nava_lab.layers.rotary import Clock

THETA = 10_000.0
INTERLEAVED, SPLIT = "interleaved", "split"
PAIRS = "pairs"  # how a checkpoint's rotary pairs lie; a model's are what they were read into


@dataclass(frozen=True)
class Fact:
    """One such thing.

    Attributes:
        ours: the question (``agree.QUESTIONS``), or a setting of the clock ("clock.theta").
        theirs: keys of the source's config that may answer it; "a.0" is the first of a list.
        sign: keys of the checkpoint, one of which is there or none is: the answer is True or False. What is written may lack
            them only where releases differ, with no usual answer.
        words: from their answers to ours.
        usual: the answer of every release, where the source says nothing; None where releases differ.
        channels: of a head, in every release: then the answer is the width divided by it.
        reach: the answer is ``pi theta reach`` divided by theirs (at the usual theta), a clock's units from the reach of its
            slowest pair.
        modality: whose; empty for all that the source has.
    """

    ours: str
    theirs: tuple[str, ...] = ()
    sign: tuple[str, ...] = ()
    words: Mapping[Any, Any] = field(default_factory=dict)
    usual: Any = None
    channels: int = 0
    reach: float = 0.0
    modality: str = ""

    def answer(self, tensors: Tensors, prefix: str, width: int | None) -> tuple[Any, bool]:
        """The source's answer (None where nothing tells) and whether it said so itself."""
        if self.sign:
            return self.words[any(prefix + key in tensors.where for key in self.sign)], True
        for key in self.theirs:
            said = _found(tensors.config, key)
            if said is not None:
                return (math.pi * THETA * self.reach / said if self.reach else self.words.get(said, said)), True
        if self.channels and width and width % self.channels == 0:
            return width // self.channels, False
        return self.usual, False

    def word(self, answer: Any, theta: float = THETA) -> Any:
        """An answer of ours in the words of the source's config; None where it has no word for it.

        Args:
            answer: as a model has it.
            theta: of the model's clock.
        """
        if self.reach:
            return math.pi * theta * self.reach / answer if answer else None
        return next((word for word, ours in self.words.items() if ours == answer), None) if self.words else answer


def _found(config: Mapping[str, Any], key: str) -> Any:
    """An answer in a config, whole lists as tuples; None where it has none."""
    name, _, place = key.partition(".")
    said = config.get(name)
    if place and isinstance(said, list):
        said = said[int(place)] if int(place) < len(said) else None
    return None if isinstance(said, list | dict) else said


@dataclass(frozen=True)
class Rotary:
    """The clock of a source: what it is in every release, and which modalities of it have no rows and columns."""

    clock: Clock
    flat: tuple[str, ...] = ("audio",)

    def settled(self, answers: Mapping[str, Any]) -> Clock:
        """With what the source says of it."""
        return replace(self.clock, **{key.removeprefix("clock."): value for key, value in answers.items()})


WORDS_QK = {True: "full", False: "none"}
QK_NORMS = ("blocks.0.self_attn.norm_q.weight", "blocks.0.attn1.norm_q.weight", "video_model.blocks.0.self_attn.norm_q.weight")
WAN = (
    Fact(PAIRS, usual=INTERLEAVED),
    Fact("heads", ("num_heads", "num_attention_heads"), channels=128),
    Fact("qk_norm", sign=QK_NORMS, words=WORDS_QK, usual="full"),
    Fact("query_group", usual=1),
    Fact("norm", usual="layer"),
    Fact("eps", ("eps",), usual=1e-6),
    Fact("text_norm", ("cross_attn_norm",), words={True: "affine", False: "absent"}, usual="affine"),
    Fact("text_place", usual="cross"),
    Fact("text_after", usual=0),
    Fact("text_stages", usual="every"),
    Fact("feed_forward", usual="gelu"),
    Fact("modulation", usual="adaln"),
    Fact("head_gates", usual=0.0),
    Fact("bias", usual=True),
    Fact("ends.text", usual="mlp"),
    Fact("ends.norm", usual="layer"),
    Fact("ends.bias", usual=True),
)
WAN_ROTARY = Rotary(Clock(hz=0.0, anchor="start"))

OVI = (
    *WAN,
    Fact("bridge.layers", usual="all"),
    Fact("bridge.kind", usual="shared_query"),
    Fact("bridge.gate", usual="none"),
    Fact("bridge.directions", usual="both"),
    Fact("bridge.rotary", usual=True),
)
OVI_ROTARY = Rotary(Clock(hz=0.0, anchor="start", index=True, scale={"audio": 0.19676}))

LTX2_QK_NORM = Fact("qk_norm", ("qk_norm",), words={"rms_norm_across_heads": "full", "rms_norm": "full"}, usual="full")
LTX2_NORM = Fact("norm", ("standardization_norm",), words={"rms_norm": "rms"}, usual="rms")
LTX2_GATES = Fact("head_gates", sign=("transformer_blocks.0.attn1.to_gate_logits.weight",), words={True: 2.0, False: 0.0})
# What the exchange is gated by: its table in either dialect.
LTX2_EXCHANGE = (
    "transformer_blocks.0.scale_shift_table_a2v_ca_video",
    "transformer_blocks.0.video_a2v_cross_attn_scale_shift_table",
)
LTX2 = (
    Fact(PAIRS, ("rope_type",), usual=SPLIT),  # diffusers' constructor has the other, the released configs of both layouts this
    Fact("heads", ("num_attention_heads",), channels=128, modality="video"),
    Fact("heads", ("audio_num_attention_heads",), channels=64, modality="audio"),
    LTX2_QK_NORM,
    Fact("query_group", usual=1),
    LTX2_NORM,
    Fact("eps", ("norm_eps",), usual=1e-6),
    Fact("text_norm", ("norm_elementwise_affine",), words={True: "affine", False: "plain"}, usual="plain"),
    Fact("text_place", usual="cross"),
    Fact("text_after", usual=0),
    Fact("text_stages", usual="every"),
    Fact("feed_forward", ("activation_fn",), words={"gelu-approximate": "gelu"}, usual="gelu"),
    Fact("modulation", usual="adaln"),
    LTX2_GATES,
    Fact("ends.text", sign=("caption_projection.linear_1.weight",), words={True: "mlp", False: "none"}),
    Fact("text_modulation", sign=("transformer_blocks.0.prompt_scale_shift_table",), words={True: True, False: False}),
    Fact("bias", ("attention_bias",), usual=True),
    Fact("ends.norm", usual="layer"),
    Fact("ends.bias", usual=True),
    Fact("bridge.layers", usual="all"),
    Fact("bridge.kind", usual="cross"),
    Fact("bridge.gate", sign=LTX2_EXCHANGE, words={True: "level", False: "none"}, usual="level"),
    Fact("bridge.level", usual="other"),
    Fact("bridge.at", usual="middle"),
    Fact("bridge.directions", usual="both"),
    Fact("bridge.inner", usual="narrow"),
    Fact("bridge.normed", usual="both"),
    Fact("bridge.rotary", usual=True),
    replace(LTX2_QK_NORM, ours="bridge.qk_norm"),
    replace(LTX2_GATES, ours="bridge.head_gates", sign=("transformer_blocks.0.audio_to_video_attn.to_gate_logits.weight",)),
    replace(LTX2_NORM, ours="bridge.norm"),
    Fact("bridge.affine", ("norm_elementwise_affine",), usual=False),
    Fact("clock.theta", ("rope_theta", "positional_embedding_theta"), usual=THETA),
    Fact("clock.hz", ("pos_embed_max_pos", "positional_embedding_max_pos.0"), reach=1.0, usual=math.pi * THETA / 20),
    Fact("clock.patch_hz", ("base_height", "positional_embedding_max_pos.1"), reach=32.0, usual=math.pi * THETA / 64),
    Fact("clock.first_frame", ("causal_offset",), words={1: True, 0: False}, usual=True),
)
LTX2_ROTARY = Rotary(Clock(hz=math.pi * THETA / 20, patch_hz=math.pi * THETA / 64, layout="spread", first_frame=True))
