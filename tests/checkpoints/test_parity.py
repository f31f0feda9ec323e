"""The Wan tower and the LTX-2 transformer agree with diffusers', outputs and input gradients, after loading their weights."""

import dataclasses
import json
import re

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_ltx2_transformer_to_diffusers
from safetensors.torch import save_file

from nava_lab.blocks.base import Dims
from nava_lab.blocks.options import Ends
from nava_lab.blocks.tower import Tower
from nava_lab.checkpoints.convert import warm_start
from nava_lab.layers.rotary import Clock
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Stage, Variant, with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, Stream, TextSpec, time_positions

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@dataclasses.dataclass(frozen=True)
class Wan(Variant):
    """Wan alone: one tower."""

    clock: Clock = dataclasses.field(default_factory=lambda: Clock(hz=0.0, anchor="start"))
    ends: Ends = dataclasses.field(default_factory=lambda: Ends(level_features=256))

    def stages(self):
        return [Stage(Tower(bridge=None, **self.layers.shared()), self.depth)]


def tiny_wan(**changes):
    torch.manual_seed(0)
    settings = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
        "text_dim": 16, "freq_dim": 256, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip
    return lively(WanTransformer3DModel(**{**settings, **changes}))


def lively(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model.eval()


def saved(model, path):
    save_file({name: part.contiguous().clone() for name, part in model.state_dict().items()}, path)
    return path


def tokens_of(latents, patch=2):
    """Latents ``b c t h w`` as tokens of channel-major patches."""
    b, c, t, h, w = latents.shape
    cut = latents.view(b, c, t, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, -1, c * patch * patch)


@pytest.mark.parametrize(("frames", "height", "width", "seconds"), [(3, 4, 6, 1 / 6), (1, 2, 2, 0.04), (5, 6, 4, 0.25)])
@pytest.mark.parametrize("per_token", [False, True])
def test_wan(tmp_path, frames, height, width, seconds, per_token):
    theirs = tiny_wan()
    grid = (height // 2, width // 2)
    count = frames * grid[0] * grid[1]
    interface = Interface({"video": ModalitySpec(16, count, seconds, grid)}, TextSpec(7, features=16))
    ours = Denoiser(Wan(depth=2, heads=2), interface, Dims({"video": 24}, {"video": 2}, {"video": 32}))
    manifest = warm_start(ours, by_diffusers(theirs, tmp_path / "wan.safetensors"))
    assert manifest.coverage == 1
    assert manifest.fresh == manifest.copied == 0
    torch.manual_seed(1)
    latents = torch.randn(2, 4, frames, height, width)
    level = torch.rand(2, count) if per_token else torch.rand(2)
    words = torch.randn(2, 7, 16)
    lengths = [7, 4]  # theirs has no mask for text: each sample is shown its own words alone
    real = torch.arange(7) < torch.tensor(lengths)[:, None]
    expected, gradients = [], []
    for row, length in enumerate(lengths):
        one = latents[row : row + 1].clone().requires_grad_()
        out = theirs(one, 1000 * level[row : row + 1], words[row : row + 1, :length], return_dict=False)[0]
        (out.square().mean() / 2).backward()  # of two samples
        expected.append(out)
        gradients.append(one.grad)
    video = tokens_of(latents).requires_grad_()
    stream = Stream(video, time_positions(count, seconds, grid))
    text = Stream(words, torch.zeros(1, 7, 3), real)
    made = ours({"video": stream}, {"video": level}, text)["video"]
    torch.testing.assert_close(made, tokens_of(torch.cat(expected)), **CLOSE)
    made.square().mean().backward()
    torch.testing.assert_close(video.grad, tokens_of(torch.cat(gradients)), **CLOSE)


LTX = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
    "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8, "num_layers": 2, "caption_channels": 16, "rope_double_precision": True,
}  # fmt: skip
LATER = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}
RELEASES = {
    "2.0": ({}, {}),
    "2.3": (LATER, {"layers.head_gates": 2.0, "layers.text_modulation": True, "bridge.head_gates": 2.0, "ends.text": "none"}),
}
# What the released file calls that diffusers calls otherwise: written out here a second time, by whole names.
RELEASED_NAMES = (
    (r"^proj_in\.", "patchify_proj."),
    (r"^audio_proj_in\.", "audio_patchify_proj."),
    (r"^time_embed\.", "adaln_single."),
    (r"^audio_time_embed\.", "audio_adaln_single."),
    (r"^prompt_adaln\.", "prompt_adaln_single."),
    (r"^audio_prompt_adaln\.", "audio_prompt_adaln_single."),
    (r"^av_cross_attn_video_scale_shift\.", "av_ca_video_scale_shift_adaln_single."),
    (r"^av_cross_attn_audio_scale_shift\.", "av_ca_audio_scale_shift_adaln_single."),
    (r"^av_cross_attn_video_a2v_gate\.", "av_ca_a2v_gate_adaln_single."),
    (r"^av_cross_attn_audio_v2a_gate\.", "av_ca_v2a_gate_adaln_single."),
    (r"\.video_a2v_cross_attn_scale_shift_table$", ".scale_shift_table_a2v_ca_video"),
    (r"\.audio_a2v_cross_attn_scale_shift_table$", ".scale_shift_table_a2v_ca_audio"),
    (r"\.norm_q\.", ".q_norm."),
    (r"\.norm_k\.", ".k_norm."),
)


def as_released(state):
    """A state dict of diffusers' model as the released file has it: other names, a prefix, and other models beside it."""
    found = {}
    for key, part in state.items():
        for pattern, name in RELEASED_NAMES:
            key = re.sub(pattern, name, key)
        found[f"model.diffusion_model.{key}"] = part.contiguous().clone()
    others = ("vae.decoder.conv.weight", "vocoder.up.weight", "model.diffusion_model.video_embeddings_connector.q.weight")
    return found | {key: torch.zeros(64, 64) for key in others}


def released(model, path, **config):
    save_file(
        as_released(model.state_dict()), path, {"config": json.dumps({"transformer": config, "vae": {}})} if config else None
    )
    return path


def by_diffusers(model, path):
    """As diffusers saves it: with its config beside it."""
    path.with_name("config.json").write_text(json.dumps(dict(model.config)))
    return saved(model, path)


# How a file came to be, and how its rotary pairs lie.
WRITTEN = {
    "diffusers, alone": (saved, "split"),
    "diffusers, interleaved": (by_diffusers, "interleaved"),
    "released": (released, "split"),
    "released, with its config": (lambda model, path: released(model, path, rope_type="interleaved"), "interleaved"),
}


def test_released_names_are_those_that_diffusers_reads():
    theirs = LTX2VideoTransformer3DModel(**LTX)
    state = {key: part for key, part in as_released(theirs.state_dict()).items() if not key.startswith(("vae.", "vocoder."))}
    assert set(convert_ltx2_transformer_to_diffusers(state)) == set(theirs.state_dict())


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize(
    ("cross_time", "fps", "grid", "sounds"),
    [(True, 24.0, (2, 4, 4), 5), (False, 24.0, (2, 4, 4), 5), (True, 16.0, (3, 2, 6), 9), (False, 16.0, (3, 2, 6), 9)],
)
def test_ltx2(tmp_path, release, written, cross_time, fps, grid, sounds):
    more, settings = RELEASES[release]
    write, pairs = WRITTEN[written]
    torch.manual_seed(0)
    theirs = lively(LTX2VideoTransformer3DModel(**LTX, **more, rope_type=pairs))
    frames, height, width = grid
    count, features = frames * height * width, 24 if release == "2.3" else 16
    interface = Interface(
        {
            "video": ModalitySpec(4, count, 8 / fps, (height, width), stride=8),
            "audio": ModalitySpec(4, sounds, 0.04, stride=4),
        },
        TextSpec(8, features=features),
    )
    variant = with_settings(
        variants.get("ltx2")(depth=2, heads=2),
        {"clock.first_frame": True, "bridge.level": "other" if cross_time else "own", **settings},
    )
    ours = Denoiser(variant, interface, Dims({"video": 16, "audio": 8}, {"video": 2, "audio": 2}, {"video": 64, "audio": 32}))
    differ = () if cross_time else ("bridge.level",)  # the released sampler says use_cross_timestep
    manifest = warm_start(ours, write(theirs, tmp_path / "ltx2.safetensors"), differ=differ)
    assert manifest.coverage == 1
    assert manifest.fresh == 0
    assert manifest.beside == (3 * 64 * 64 if write is not saved and write is not by_diffusers else 0)
    torch.manual_seed(1)
    video, audio = torch.randn(2, count, 4, requires_grad=True), torch.randn(2, sounds, 4, requires_grad=True)
    sigma = {"video": torch.tensor([0.3, 0.8]), "audio": torch.tensor([0.9, 0.2])}
    levels = {"video": sigma["video"][:, None].repeat(1, count), "audio": sigma["audio"][:, None].repeat(1, sounds)}
    levels["video"][:, : height * width] = 0.0  # the first frame is given
    words = torch.randn(2, 8, features)
    real = torch.arange(8) < torch.tensor([[8], [5]])
    each = (words[..., :16], words[..., 16:]) if release == "2.3" else (words, words)
    out = theirs(
        video, audio, *each, 1000 * levels["video"], audio_timestep=1000 * levels["audio"], sigma=1000 * sigma["video"],
        audio_sigma=1000 * sigma["audio"], encoder_attention_mask=real.float(), audio_encoder_attention_mask=real.float(),
        num_frames=frames, height=height, width=width, fps=fps, audio_num_frames=sounds, use_cross_timestep=cross_time, return_dict=False,
    )  # fmt: skip
    sum(part.square().mean() for part in out).backward()
    mine = {"video": video.detach().clone().requires_grad_(), "audio": audio.detach().clone().requires_grad_()}
    streams = {
        name: Stream(mine[name], time_positions(len(mine[name][0]), spec.seconds, spec.grid))
        for name, spec in interface.modalities.items()
    }
    made = ours(streams, levels, Stream(words, torch.zeros(1, 8, 3), real))
    for name, expected in zip(("video", "audio"), out, strict=True):
        torch.testing.assert_close(made[name], expected, **CLOSE)
    sum(part.square().mean() for part in made.values()).backward()
    torch.testing.assert_close(mine["video"].grad, video.grad, **CLOSE)
    torch.testing.assert_close(mine["audio"].grad, audio.grad, **CLOSE)
