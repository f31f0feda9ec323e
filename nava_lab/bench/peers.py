"""The published systems' transformers in diffusers, and ours of the same shape and as many weights, beside each other.

Wan is one tower over all tokens, LTX-2 two towers that exchange; both at a row's width, heads, depth and tokens (LTX-2's
feed-forward is four widths by its definition). ``tests/checkpoints/test_parity.py`` shows that after loading the same weights
outputs and gradients agree; here the two only have to weigh the same, and that is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from nava_lab.bench.subject import Subject
from nava_lab.blocks.base import Dims
from nava_lab.blocks.options import Ends
from nava_lab.blocks.tower import Tower
from nava_lab.layers.rotary import Clock
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Stage, Variant, with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, Stream, TextSpec, time_positions

FEATURES = 64  # channels of the text's features
Pass = Callable[[], None]


@dataclass(frozen=True)
class Peer:
    """A forward and backward pass of ours and of theirs."""

    name: str
    ours: Pass
    theirs: Pass


@dataclass(frozen=True)
class _Wan(Variant):
    """Wan alone: one tower."""

    clock: Clock = field(default_factory=lambda: Clock(hz=0.0, anchor="start"))
    ends: Ends = field(default_factory=lambda: Ends(level_features=256))

    def stages(self) -> list[Stage]:
        return [Stage(Tower(bridge=None, **self.layers.shared()), self.depth)]


def peers(subject: Subject) -> list[Peer]:
    """Both pairs at a subject's sizes; none where diffusers is not installed."""
    return [wan(subject), ltx2(subject)] if find_spec("diffusers") is not None else []


def _sizes(subject: Subject) -> tuple[int, int, int, int]:
    variant, size = subject.config.variant, subject.built.solution.size
    return size.width, variant.heads_for(size.width), size.hidden, variant.depth


def _pass(subject: Subject, model: nn.Module, call: Callable[[], Iterable[Tensor]]) -> Pass:
    def run() -> None:
        model.zero_grad()
        with subject.reduced():
            loss = torch.stack([part.float().square().mean() for part in call()]).sum()
        loss.backward()

    return run


def _weighed(name: str, ours: nn.Module, theirs: nn.Module) -> None:
    count = [sum(part.numel() for part in model.parameters()) for model in (ours, theirs)]
    if count[0] != count[1]:
        raise ValueError(f"{name}: ours has {count[0]:,} weights and diffusers' {count[1]:,}, so their times cannot be compared")


def wan(subject: Subject) -> Peer:
    """One tower over as many tokens as the row's modalities have together."""
    from diffusers import WanTransformer3DModel

    kind: Any = WanTransformer3DModel

    (width, heads, hidden, depth), device, batch = _sizes(subject), subject.device, subject.batch_size
    specs = subject.config.world.interface().modalities.values()
    words = subject.config.world.interface().text.length
    channels, count = max(spec.channels for spec in specs), sum(spec.tokens for spec in specs)
    theirs = kind(
        patch_size=(1, 1, 1), num_attention_heads=heads, attention_head_dim=width // heads, in_channels=channels,
        out_channels=channels, text_dim=FEATURES, freq_dim=256, ffn_dim=hidden, num_layers=depth, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=max(count, 32),
    ).to(device)  # fmt: skip
    interface = Interface({"video": ModalitySpec(channels, count, 0.08)}, TextSpec(words, features=FEATURES))
    dims = Dims(*({"video": value} for value in (width, heads, hidden)))
    ours = Denoiser(_Wan(depth=depth, heads=heads), interface, dims).to(device)
    _weighed("Wan", ours, theirs)
    values, level = torch.randn(batch, count, channels, device=device), torch.rand(batch, device=device)
    text = _text(batch, words, FEATURES, device)
    stream = Stream(values, time_positions(count, 0.08, device=device))
    latents = values.mT.reshape(batch, channels, count, 1, 1)
    return Peer(
        "Wan",
        _pass(subject, ours, lambda: ours({"video": stream}, {"video": level}, text).values()),
        _pass(subject, theirs, lambda: theirs(latents, 1000 * level, text.tokens, return_dict=False)),
    )


def ltx2(subject: Subject) -> Peer:
    """Two towers over the tokens of the row's first two modalities."""
    from diffusers import LTX2VideoTransformer3DModel

    kind: Any = LTX2VideoTransformer3DModel

    (width, heads, _, depth), device, batch = _sizes(subject), subject.device, subject.batch_size
    specs = list(subject.config.world.interface().modalities.values())
    words = subject.config.world.interface().text.length
    video, audio = specs[0], specs[-1]
    head = width // heads
    theirs = kind(
        in_channels=video.channels, out_channels=video.channels, num_attention_heads=heads, attention_head_dim=head,
        cross_attention_dim=width, audio_in_channels=audio.channels, audio_out_channels=audio.channels,
        audio_num_attention_heads=heads, audio_attention_head_dim=head, audio_cross_attention_dim=width, num_layers=depth,
        caption_channels=FEATURES,
    ).to(device)  # fmt: skip
    named = {"video": in_a_row(video), "audio": in_a_row(audio)}
    sizes = (dict.fromkeys(named, value) for value in (width, heads, 4 * width))
    variant = with_settings(variants.get("ltx2")(depth=depth, heads=heads), {"bridge.level": "own"})
    ours = Denoiser(variant, Interface(named, TextSpec(words, features=FEATURES)), Dims(*sizes)).to(device)
    _weighed("LTX-2", ours, theirs)
    values = {name: torch.randn(batch, spec.tokens, spec.channels, device=device) for name, spec in named.items()}
    level = torch.rand(batch, device=device)
    text = _text(batch, words, FEATURES, device)
    streams = {
        name: Stream(values[name], time_positions(spec.tokens, spec.seconds, device=device)) for name, spec in named.items()
    }

    def call() -> tuple[Tensor, ...]:
        told: Mapping[str, Any] = {"num_frames": video.tokens, "height": 1, "width": 1, "fps": 24.0}
        found: tuple[Tensor, ...] = theirs(
            values["video"], values["audio"], text.tokens, text.tokens, 1000 * level, audio_num_frames=audio.tokens,
            sigma=1000 * level, return_dict=False, **told,
        )  # fmt: skip
        return found

    levels = dict.fromkeys(named, level)
    return Peer("LTX-2", _pass(subject, ours, lambda: ours(streams, levels, text).values()), _pass(subject, theirs, call))


def in_a_row(spec: ModalitySpec) -> ModalitySpec:
    """A modality as a row of tokens in time, whatever its grid."""
    return ModalitySpec(spec.channels, spec.tokens, spec.seconds)


def _text(batch: int, words: int, features: int, device: torch.device) -> Stream:
    return Stream(torch.randn(batch, words, features, device=device), torch.zeros(1, words, 3, device=device))
