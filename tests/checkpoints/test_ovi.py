"""Ovi's released layout: its network written out here over its own names, and the same outputs after loading."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import conv1d, gelu, layer_norm, linear, scaled_dot_product_attention, silu

from nava_lab.blocks.base import Dims
from nava_lab.checkpoints.convert import warm_start
from nava_lab.checkpoints.write import export
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, Stream, TextSpec, time_positions
from tests.checkpoints.test_parity import tokens_of

WIDTH, HEADS, HIDDEN, LAYERS, WORDS = 96, 4, 64, 2, 16  # of this width, the gated convolutions are 256 wide in both
FRAMES, GRID, SOUNDS = 3, (2, 3), 7
INTERFACE = Interface(
    {"video": ModalitySpec(16, FRAMES * 6, 1 / 6, GRID), "audio": ModalitySpec(5, SOUNDS, 1 / 31.25)}, TextSpec(7, features=WORDS)
)


def layout():
    """Every tensor of a small Ovi, by the names of its released code, with its shape."""
    d, found = WIDTH, {}

    def both(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    for tower, channels in (("video_model", 4 * 4), ("audio_model", 5)):
        if tower == "video_model":
            both(f"{tower}.patch_embedding", d, 4, 1, 2, 2)
        else:
            both(f"{tower}.patch_embedding.0", d, 5, 7)
            found |= {f"{tower}.patch_embedding.2.w{n}.weight": (256, d, 7) if n != 2 else (d, 256, 7) for n in (1, 2, 3)}
        for name, shape in (("text_embedding", WORDS), ("time_embedding", 256)):
            both(f"{tower}.{name}.0", d, shape)
            both(f"{tower}.{name}.2", d, d)
        both(f"{tower}.time_projection.1", 6 * d, d)
        both(f"{tower}.head.head", channels, d)
        found[f"{tower}.head.modulation"] = (1, 2, d)
        for i in range(LAYERS):
            block = f"{tower}.blocks.{i}"
            for attention in ("self_attn", "cross_attn"):
                for part in "qkvo":
                    both(f"{block}.{attention}.{part}", d, d)
                found |= {f"{block}.{attention}.norm_{part}.weight": (d,) for part in "qk"}
            for part in ("k_fusion", "v_fusion"):
                both(f"{block}.cross_attn.{part}", d, d)
            both(f"{block}.cross_attn.pre_attn_norm_fusion", d)
            found[f"{block}.cross_attn.norm_k_fusion.weight"] = (d,)
            both(f"{block}.norm3", d)
            both(f"{block}.ffn.0", HIDDEN, d)
            both(f"{block}.ffn.2", d, HIDDEN)
            found[f"{block}.modulation.modulation"] = (1, 6, d)
    return found


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return {
        name: 0.12 * torch.randn(shape) + name.endswith(("norm3.weight", "_fusion.weight")) for name, shape in layout().items()
    }


class Tower:
    """One of the two models, by its tensors."""

    def __init__(self, weights, name, scale):
        self.w = {key.removeprefix(f"{name}."): part for key, part in weights.items() if key.startswith(f"{name}.")}
        self.scale = scale

    def lin(self, name, x):
        return linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def rms(self, name, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.w[f"{name}.weight"]

    def begin(self, x, level, words, places):
        if "patch_embedding.weight" in self.w:
            self.x = linear(x, self.w["patch_embedding.weight"].flatten(1), self.w["patch_embedding.bias"])
        else:
            h = silu(conv1d(x.transpose(1, 2), self.w["patch_embedding.0.weight"], self.w["patch_embedding.0.bias"], padding=3))
            w1, w2, w3 = (self.w[f"patch_embedding.2.w{n}.weight"] for n in (1, 2, 3))
            self.x = conv1d(silu(conv1d(h, w1, padding=3)) * conv1d(h, w3, padding=3), w2, padding=3).transpose(1, 2)
        angle = 1000 * level.double()[:, None] * 10_000 ** (-torch.arange(128).double() / 128)
        self.e = self.lin(
            "time_embedding.2", silu(self.lin("time_embedding.0", torch.cat((angle.cos(), angle.sin()), -1).float()))
        )
        self.vectors = self.lin("time_projection.1", silu(self.e)).unflatten(-1, (6, -1))
        self.text = self.lin("text_embedding.2", gelu(self.lin("text_embedding.0", words), approximate="tanh"))
        head = WIDTH // HEADS
        parts = (head - 4 * (head // 6), 2 * (head // 6), 2 * (head // 6))
        frequencies = [10_000 ** (-torch.arange(0, part, 2).double() / part) for part in parts]
        frequencies[0] = frequencies[0] * self.scale
        angles = torch.cat([places[:, axis : axis + 1] * part for axis, part in enumerate(frequencies)], -1)
        self.turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def heads(self, x):
        return x.unflatten(-1, (HEADS, -1))

    def rope(self, x):
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turn).flatten(-2).float()

    def attend(self, q, k, v):
        return scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2).flatten(-2)

    def before(self, i):
        at = f"blocks.{i}.self_attn"
        self.s = (self.w[f"blocks.{i}.modulation.modulation"] + self.vectors).unbind(1)
        x = layer_norm(self.x, (WIDTH,), eps=1e-6) * (1 + self.s[1][:, None]) + self.s[0][:, None]
        q, k = (self.rope(self.heads(self.rms(f"{at}.norm_{part}", self.lin(f"{at}.{part}", x)))) for part in "qk")
        y = self.attend(q, k, self.heads(self.lin(f"{at}.v", x)))
        self.x = self.x + self.s[2][:, None] * self.lin(f"{at}.o", y)

    def after(self, i, other, source):
        at, block = f"blocks.{i}.cross_attn", f"blocks.{i}"
        x = layer_norm(self.x, (WIDTH,), self.w[f"{block}.norm3.weight"], self.w[f"{block}.norm3.bias"], 1e-6)
        q = self.heads(self.rms(f"{at}.norm_q", self.lin(f"{at}.q", x)))
        k = self.heads(self.rms(f"{at}.norm_k", self.lin(f"{at}.k", self.text)))
        y = self.attend(q, k, self.heads(self.lin(f"{at}.v", self.text)))
        norm = f"{at}.pre_attn_norm_fusion"
        told = layer_norm(source, (WIDTH,), self.w[f"{norm}.weight"], self.w[f"{norm}.bias"], 1e-6)
        k = other.rope(self.heads(self.rms(f"{at}.norm_k_fusion", self.lin(f"{at}.k_fusion", told))))
        y = y + self.attend(self.rope(q), k, self.heads(self.lin(f"{at}.v_fusion", told)))
        self.x = self.x + self.lin(f"{at}.o", y)
        x = layer_norm(self.x, (WIDTH,), eps=1e-6) * (1 + self.s[4][:, None]) + self.s[3][:, None]
        self.x = self.x + self.s[5][:, None] * self.lin(f"{block}.ffn.2", gelu(self.lin(f"{block}.ffn.0", x), approximate="tanh"))

    def end(self):
        shift, scale = (self.w["head.modulation"] + self.e[:, None]).unbind(1)
        return self.lin("head.head", layer_norm(self.x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None])


def released(weights, video, audio, levels, words):
    """Both velocities; the video's by patch and then channel."""
    towers = {"video": Tower(weights, "video_model", 1.0), "audio": Tower(weights, "audio_model", 0.19676)}
    places = torch.cartesian_prod(*(torch.arange(count).double() for count in (FRAMES, *GRID)))
    towers["video"].begin(video, levels["video"], words, places)
    towers["audio"].begin(audio, levels["audio"], words, torch.arange(SOUNDS).double()[:, None] * torch.tensor([1.0, 0, 0]))
    for i in range(LAYERS):
        for tower in towers.values():
            tower.before(i)
        seen = {name: tower.x for name, tower in towers.items()}
        for name, other in (("video", "audio"), ("audio", "video")):
            towers[name].after(i, towers[other], seen[other])
    return {name: tower.end() for name, tower in towers.items()}


def ovi(**settings):
    variant = with_settings(
        variants.get("ovi")(depth=LAYERS, heads=HEADS), {"clock.index": True, "clock.scale": {"audio": 0.19676}, **settings}
    )
    return Denoiser(variant, INTERFACE, Dims(*({"video": v, "audio": v} for v in (WIDTH, HEADS, HIDDEN))))


def test_ovi_makes_what_its_release_makes(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    model = ovi()
    manifest = warm_start(model, tmp_path / "model.safetensors")
    assert (manifest.dialect, manifest.coverage, manifest.fresh, manifest.copied) == ("ovi", 1, 0, 0)
    torch.manual_seed(1)
    latents, audio, words = torch.randn(2, 4, FRAMES, 4, 6), torch.randn(2, SOUNDS, 5), torch.randn(2, 7, WORDS)
    levels = {"video": torch.tensor([0.3, 0.9]), "audio": torch.tensor([0.6, 0.1])}
    video = tokens_of(latents)
    streams = {
        "video": Stream(video, time_positions(FRAMES * 6, 1 / 6, GRID)),
        "audio": Stream(audio, time_positions(SOUNDS, 1 / 31.25)),
    }
    expected = released(weights, video, audio, levels, words)
    made = model(streams, levels, Stream(words, torch.zeros(1, 7, 3)))
    torch.testing.assert_close(made["audio"], expected["audio"], atol=1e-4, rtol=1e-4)
    by_channel = expected["video"].unflatten(-1, (4, 4)).transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(made["video"], by_channel, atol=1e-4, rtol=1e-4)


def test_export_is_the_release_bit_for_bit(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    model = ovi()
    warm_start(model, tmp_path / "model.safetensors")
    written = export(model, "ovi").tensors
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[key], weights[key]) for key in weights)


def test_one_clock_in_seconds_is_not_its_release_s(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    model = ovi(**{"clock.index": False, "clock.scale": {}})
    with pytest.raises(ValueError, match=re.escape("Set variant.clock.index=true variant.clock.scale={audio:0.19676},")):
        warm_start(model, tmp_path / "model.safetensors")
    assert warm_start(model, tmp_path / "model.safetensors", differ=["clock"]).coverage == 1
