"""A model that would compute something else than a checkpoint is refused, and what mends it is named."""

import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from nava_lab.blocks.base import Dims
from nava_lab.checkpoints.agree import NAMES, QUESTIONS
from nava_lab.checkpoints.convert import plan, warm_start
from nava_lab.checkpoints.files import Tensors
from nava_lab.checkpoints.misfits import Misfit, remedy
from nava_lab.checkpoints.tables import DIALECTS
from nava_lab.models.denoiser import Denoiser, on_meta
from nava_lab.models.variant import Size, with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, TextSpec
from tests.checkpoints.test_parity import LTX, released, saved, tiny_wan
from tests.checkpoints.test_warm_start import CLOCK, DIMS, INTERFACE, NARROW, fresh


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return saved(tiny_wan(), tmp_path_factory.mktemp("agree") / "wan.safetensors")


def told(path, **config):
    path.with_name("config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def own(wan, tmp_path):
    """The same weights in a folder of their own."""
    path = tmp_path / "wan.safetensors"
    path.symlink_to(wan)
    return path


# A trait of the model, what the refusal says, and by which name it may be kept.
OTHERWISE = [
    ({"clock.hz": 12.5}, "hz is 0 there and 12.5 here. Set variant.clock.hz=0,", "clock"),
    ({"clock.theta": 500.0}, "theta is 10000 there and 500 here. Set variant.clock.theta=10000,", "clock"),
    ({"clock.scale": {"video": 0.975}}, "Set variant.clock.scale={},", "clock"),
    ({"clock.layout": "spread"}, "Set variant.clock.layout=axes,", "clock"),
    ({"layers.norm": "rms"}, "norm is layer there and rms here. Set variant.layers.norm=layer,", "norm"),
    ({"layers.qk_norm": "none"}, "qk_norm is full there and none here. Set variant.layers.qk_norm=full,", "qk_norm"),
    ({"layers.feed_forward": "swiglu"}, "Set variant.layers.feed_forward=gelu,", "feed_forward"),
    ({"layers.head_gates": 1.0}, "head_gates is 0 there and 1 here. Set variant.layers.head_gates=0,", "head_gates"),
    ({"layers.modulation": "own"}, "Set variant.layers.modulation=adaln,", "modulation"),
    ({"layers.text_norm": "plain"}, "Set variant.layers.text_norm=affine,", "text_norm"),
    ({"layers.bias": False}, "bias is true there and false here. Set variant.layers.bias=true,", "bias"),
    ({"text_after": 1}, "text_after is 0 there and 1 here. Set variant.text_after=0,", "text_after"),
    (
        {"align_fraction": 0.5, "align_text": False},
        "text_stages is every there and all but 1 here. Set variant.align_text=true,",
        "text_stages",
    ),
    ({"ends.bias": False}, "Set variant.ends.bias=true,", "ends.bias"),
    ({"ends.norm": "rms"}, "Set variant.ends.norm=layer,", "ends.norm"),
]


@pytest.mark.parametrize(("trait", "message", "name"), OTHERWISE)
def test_a_trait_that_no_shape_tells_is_refused_by_name(wan, trait, message, name):
    model = fresh("nava", **trait)
    with pytest.raises(ValueError, match="computes otherwise than this model") as refused:
        warm_start(model, wan, coverage=0.3)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert f"warm_start.differ=[{name}]" in str(refused.value)
    manifest = warm_start(model, wan, coverage=0.3, differ=[name])
    assert f"differs, as warm_start.differ allows: {name}" in manifest.lines()[-1]


def test_text_that_stands_in_the_sequence_is_no_cross_attention(wan):
    dims = Dims(*({"video": v, "audio": v, "text": v} for v in (24, 2, 32)))
    model = Denoiser(with_settings(variants.get("unified")(depth=2, heads=2), CLOCK), INTERFACE, dims)
    with pytest.raises(ValueError, match=r"text_place is cross there and sequence here. Set variant.text_place=cross, or start"):
        warm_start(model, wan, coverage=0.5)
    manifest = warm_start(model, wan, coverage=0.5, differ=["text_place"])
    assert manifest.coverage < 0.9
    assert all("attn2" in key or "norm2" in key for key in manifest.left)


CONFIGS = [
    ({"num_heads": 4}, "heads is 4 there and 2 here. Set variant.heads=4,"),
    ({"num_attention_heads": 3}, "heads is 3 there and 2 here. Set variant.heads=3,"),
    (
        {"eps": 1e-5},
        "eps is 1e-05 there and 1e-06 here. No setting changes that: start all the same with warm_start.differ=[eps]",
    ),
    ({"cross_attn_norm": False}, "text_norm is absent there and affine here. No setting changes that: start"),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS)
def test_a_config_beside_the_weights_is_held_against_the_model(own, config, message):
    with pytest.raises(ValueError, match="computes otherwise") as refused:
        warm_start(fresh("nava"), told(own, **config))
    assert message in str(refused.value)


def test_what_agrees_and_what_could_not_be_checked_is_said(own):
    alone = warm_start(fresh("nava"), own).lines()
    assert "held against the weights alone (no config.json beside them): qk_norm full" in alone
    assert "could not be checked: heads" in alone
    with_config = warm_start(fresh("nava"), told(own, num_heads=2, eps=1e-6)).lines()
    assert f"held against {own.with_name('config.json')}: heads 2, qk_norm full, eps 1e-06" in with_config
    assert not any(line.startswith("could not be checked") for line in with_config)
    own.with_name("config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json is no config of a model"):
        warm_start(fresh("nava"), own)


LTX_OTHERWISE = [
    ({"positional_embedding_theta": 500.0}, "variant.clock.theta=500"),
    ({"positional_embedding_max_pos": [40, 2048, 2048]}, "variant.clock.hz=785.398163397"),
    ({"positional_embedding_max_pos": [20, 1024, 1024]}, "variant.clock.patch_hz=981.747704247"),
    ({"causal_offset": 0}, "variant.clock.first_frame=false"),
    ({"norm_eps": 1e-5}, "warm_start.differ=[eps]"),
    ({"num_attention_heads": 4}, "heads of video is 4 there and 2 here. Set variant.heads=4"),
    ({"audio_num_attention_heads": 1}, "heads of audio is 1 there and 2 here. Set variant.heads=1"),
    ({"activation_fn": "silu"}, "feed_forward is silu there and gelu here. No setting changes that: start"),
    ({"rope_type": "spiral"}, "rope_type=spiral is not one of interleaved, split"),
]


@pytest.mark.parametrize(("config", "message"), LTX_OTHERWISE)
def test_the_header_of_a_released_file_is_held_against_the_model(tmp_path, config, message):
    path = released(LTX2VideoTransformer3DModel(**LTX), tmp_path / "ltx2.safetensors", **config)
    specs = {"video": ModalitySpec(4, 32, 1 / 3, (4, 4), stride=8), "audio": ModalitySpec(4, 5, 0.04, stride=4)}
    variant = with_settings(variants.get("ltx2")(depth=2, heads=2), {"clock.first_frame": True})
    dims = Dims({"video": 16, "audio": 8}, {"video": 2, "audio": 2}, {"video": 64, "audio": 32})
    with pytest.raises(ValueError, match=r"ltx2\.safetensors") as refused:
        plan(on_meta(variant, Interface(specs, TextSpec(8, features=16)), dims), Tensors.at(path))
    assert message in str(refused.value)


def test_heads_of_a_published_size_are_not_guessed(tmp_path):
    """Wan 1.3 B has 12 heads of 128; a model of its width would have 24 of 64. Shapes alone, on the meta device."""
    with torch.device("meta"):
        source = WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=1, qk_norm="rms_norm_across_heads", cross_attn_norm=True)  # fmt: skip
    shapes = {key: tuple(part.shape) for key, part in source.state_dict().items()}
    tensors = Tensors(tmp_path, dict.fromkeys(shapes, tmp_path), shapes)
    interface = Interface(
        {"video": ModalitySpec(64, 24, 1 / 4, (2, 3)), "audio": ModalitySpec(4, 6, 0.05)}, TextSpec(7, features=4096)
    )
    for heads, refusal in ((0, "heads is 12 there and 24 here. Set variant.heads=12,"), (12, "")):
        model = on_meta(variants.get("nava")(depth=1, heads=heads), interface, Size(1536, 8960))
        if not refusal:
            assert "heads 12" in plan(model, tensors)[1].agreement.usual
            continue
        with pytest.raises(ValueError, match="computes otherwise") as refused:
            plan(model, tensors)
        assert refusal in str(refused.value)


WRONG_SIZES = [
    ({"ends.level_features": 64}, DIMS, "Set variant.ends.level_features=256"),
    ({}, Dims(*({"video": v, "audio": v} for v in (24, 2, 48))), "Set budget.hidden=32"),
    ({}, Dims(*({"video": v, "audio": v} for v in (16, 2, 48))), "Set budget.width=24, budget.hidden=32"),
    ({"layers.qk_norm": "head"}, DIMS, "Set variant.layers.qk_norm (over all heads, or within each)"),
    ({"layers.text_modulation": True}, DIMS, "Set variant.layers.text_modulation (vectors of a layer)"),
]


@pytest.mark.parametrize(("settings", "dims", "message"), WRONG_SIZES)
def test_the_remedy_names_the_setting_that_decides_the_shape(wan, settings, dims, message):
    variant = with_settings(variants.get("nava")(depth=2, heads=2), settings)
    with pytest.raises(ValueError, match="does not fit") as refused:
        warm_start(Denoiser(variant, INTERFACE, dims), wan)
    assert str(refused.value).endswith(message)


def test_fewer_keys_than_queries_are_told_from_another_width():
    qkv = "blocks.0.attention.projections.parts.shared.qkv.weight"
    assert remedy([Misfit(qkv, (16, 24), "q", (24, 24), (24, 24))]) == "variant.layers (no grouped queries)"
    assert remedy([Misfit(qkv, (16, 16), "q", (24, 24), (24, 24))]) == "budget.width=24"
    audio = "blocks.0.storeys.parts.audio.feed_forward.parts.parts.shared.fc1.weight"
    assert remedy([Misfit(audio, (32, 12), "k", (32, 8), (32, 8))]) == "variant.width_share.audio (its width is 8)"


def test_tensors_that_a_checkpoint_lacks_are_refused(wan, tmp_path):
    with pytest.raises(ValueError, match=r"lacks .* blocks.2.*; it has 2 layers: set variant.depth=2"):
        warm_start(Denoiser(variants.get("nava")(depth=3, heads=2), INTERFACE, DIMS), wan)
    torn = {key: part for key, part in load_file(wan).items() if key != "blocks.1.attn2.to_v.weight"}
    save_file(torn, tmp_path / "torn.safetensors")
    with pytest.raises(
        ValueError, match=r"lacks 1 tensors that this model reads \(\d.*%.*blocks.1.attn2.to_v.weight; fetch it again"
    ):
        warm_start(fresh("nava"), tmp_path / "torn.safetensors")


def overrides_of(message):
    """The settings that a refusal names, as they would be typed."""
    return dict(found.split("=") for found in re.findall(r"variant\.([\w.]+=[\w.]+)", message))


@pytest.mark.parametrize("layers", [2, 3, 6])
def test_a_remedy_for_the_depth_is_followed_in_one_step(tmp_path, layers):
    """MOVA's video passes the layers of both towers and some alone: what is named makes them the source's."""
    path = saved(tiny_wan(num_layers=layers), tmp_path / "wan.safetensors")
    mova = variants.get("mova")(depth=layers, heads=2)
    with pytest.raises(ValueError, match="lacks") as refused:
        plan(on_meta(mova, INTERFACE, NARROW), Tensors.at(path))
    alone = round(layers / 3)
    said = f"it has {layers} layers, and video passes {layers + alone} here ({layers} by variant.depth, {alone} by variant.video_alone)"
    assert said in str(refused.value)
    named = {key: float(value) if "." in value else int(value) for key, value in overrides_of(str(refused.value)).items()}
    assert named == {"depth": layers, "video_alone": 0}
    plan(on_meta(replace(mova, **named), INTERFACE, NARROW), Tensors.at(path))


def test_a_remedy_for_the_heads_is_one_that_all_towers_can_have(tmp_path):
    """Wan 1.3 B in MOVA: 12 heads of 128 do not divide an audio tower of width 464. Shapes alone, on the meta device."""
    with torch.device("meta"):
        source = WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=64, num_layers=1, qk_norm="rms_norm_across_heads", cross_attn_norm=True)  # fmt: skip
    shapes = {key: tuple(part.shape) for key, part in source.state_dict().items()}
    tensors = Tensors(tmp_path, dict.fromkeys(shapes, tmp_path), shapes)
    interface = Interface(
        {"video": ModalitySpec(64, 24, 1 / 4, (2, 3)), "audio": ModalitySpec(4, 6, 0.05)}, TextSpec(7, features=4096)
    )
    mova, size = variants.get("mova")(depth=1, video_alone=0.0), Size(1536, 64)
    with pytest.raises(ValueError, match=r"heads is 12 there and 24 here\. Set variant\.heads=0 variant\.head_dim=128,"):
        plan(on_meta(mova, interface, size), tensors)
    with pytest.raises(ValueError, match="width 464 of audio does not divide into 12 heads"):
        on_meta(replace(mova, heads=12), interface, size)
    fitting = replace(mova, head_dim=128)
    assert fitting.dims(interface, size).heads == {"video": 12, "audio": 4}
    assert "heads 12" in plan(on_meta(fitting, interface, size), tensors)[1].agreement.usual


def test_what_starts_fresh_is_named_with_its_share_of_the_model(wan):
    model = fresh("ovi")
    manifest = warm_start(model, wan)
    total = sum(part.numel() for part in model.parameters())
    assert manifest.new["embed.audio"] == sum(part.numel() for part in model.embed["audio"].parameters())
    towers = sum(part.numel() for block in model.blocks for part in block.storeys["audio"].parameters())
    assert sum(count for name, count in manifest.new.items() if name.startswith("blocks.*.storeys.parts.audio")) == towers
    assert sum(manifest.new.values()) == manifest.fresh == total - manifest.mapped - manifest.copied
    said = manifest.lines()[2]
    assert said.startswith("fresh: ")
    assert f"embed.audio {manifest.new['embed.audio']:,} ({manifest.new['embed.audio'] / total:.1%})" in said


def test_every_fact_asks_a_question_and_every_question_is_asked():
    asked = {fact.ours for dialect in DIALECTS for fact in dialect.facts if not fact.ours.startswith(("clock.", "pairs"))}
    assert asked == {question.name for question in QUESTIONS}
    assert len(set(NAMES)) == len(NAMES)


def test_a_name_that_differ_does_not_know_is_refused(wan):
    with pytest.raises(ValueError, match=r"differ names clok: did you mean 'clock'"):
        warm_start(fresh("nava"), wan, differ=["clok"])
