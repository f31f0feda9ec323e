"""Weights written in a published layout are what was read, and `nava export` writes them from a run's folder."""

import json
import re

import pytest
import torch
import yaml
from diffusers import LTX2VideoTransformer3DModel
from safetensors.torch import load_file, save_file

from nava_lab.blocks.base import Dims
from nava_lab.checkpoints import write
from nava_lab.checkpoints.convert import warm_start
from nava_lab.checkpoints.files import Tensors
from nava_lab.checkpoints.write import config_of, export
from nava_lab.cli.commands.export import main
from nava_lab.config import ConfigError, load
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, TextSpec
from nava_lab.study.build import network, parts
from tests.checkpoints.test_parity import LTX, RELEASES, as_released, by_diffusers, lively, saved
from tests.checkpoints.test_warm_start import fresh

SPECS = {"video": ModalitySpec(4, 32, 1 / 3, (4, 4), stride=8), "audio": ModalitySpec(4, 5, 0.04, stride=4)}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("layout", ["ltx2", "ltx2 (diffusers)"])
def test_ltx2_is_written_as_it_was_read(tmp_path, release, layout):
    """Names, shapes and every bit, also where the rows of queries and keys stood in another order."""
    more, settings = RELEASES[release]
    theirs = lively(LTX2VideoTransformer3DModel(**LTX, **more)).state_dict()
    if layout == "ltx2":
        prefix = "model.diffusion_model."
        theirs = {key.removeprefix(prefix): part for key, part in as_released(theirs).items() if key.startswith(prefix)}
        theirs = {key: part for key, part in theirs.items() if not key.startswith("video_embeddings_connector.")}
    save_file({key: part.contiguous().clone() for key, part in theirs.items()}, tmp_path / "ltx2.safetensors")
    text = TextSpec(8, features=24 if release == "2.3" else 16)
    variant = with_settings(variants.get("ltx2")(depth=2, heads=2), {"clock.first_frame": True, **settings})
    model = Denoiser(
        variant, Interface(SPECS, text), Dims({"video": 16, "audio": 8}, {"video": 2, "audio": 2}, {"video": 64, "audio": 32})
    )
    assert warm_start(model, tmp_path / "ltx2.safetensors").dialect == layout
    written = export(model, layout).tensors
    assert written.keys() == theirs.keys()
    assert all(torch.equal(written[key], theirs[key]) for key in theirs)


def ltx2():
    dims = Dims({"video": 16, "audio": 8}, {"video": 2, "audio": 2}, {"video": 64, "audio": 32})
    variant = with_settings(variants.get("ltx2")(depth=2, heads=2), {"clock.first_frame": True})
    return Denoiser(variant, Interface(SPECS, TextSpec(8, features=16)), dims)


@pytest.mark.parametrize("pairs", ["split", "interleaved"])
def test_rotary_pairs_are_written_as_every_release_has_them(tmp_path, pairs):
    """A split source comes back bit for bit; of an interleaved one, what is written and said reads back as the same model."""
    theirs = lively(LTX2VideoTransformer3DModel(**LTX, rope_type=pairs))
    first, again, layout = ltx2(), ltx2(), "ltx2 (diffusers)"
    manifest = warm_start(first, by_diffusers(theirs, tmp_path / "ltx2.safetensors"))
    assert f"pairs {pairs}" in manifest.agreement.told
    written, told = export(first, layout).tensors, config_of(first, layout)
    assert [torch.equal(written[key], part) for key, part in theirs.state_dict().items()].count(False) == (
        0 if pairs == "split" else 2 * 2 * 12
    )
    reads = {
        key: told[key] for key in ("rope_type", "num_attention_heads", "audio_num_attention_heads", "norm_eps", "base_height")
    }
    assert reads == {
        "rope_type": "split", "num_attention_heads": 2, "audio_num_attention_heads": 2, "norm_eps": 1e-6, "base_height": 2048,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(told))
    save_file(written, tmp_path / "ltx2.safetensors")
    assert warm_start(again, tmp_path / "ltx2.safetensors").agreement.told.count("pairs split") == 1
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_what_pairs_were_taken_for_is_said_where_nothing_tells_them(tmp_path):
    theirs = lively(LTX2VideoTransformer3DModel(**LTX, rope_type="split"))
    lines = warm_start(ltx2(), saved(theirs, tmp_path / "ltx2.safetensors")).lines()
    assert any(line.startswith("taken as every release of ltx2 (diffusers) has it: pairs split") for line in lines)


def test_a_config_is_told_in_the_words_in_which_it_is_read():
    """Of every layout, by the model's own settings."""
    model = ltx2()
    told = {layout: config_of(model, layout) for layout in ("ltx2", "ltx2 (diffusers)")}
    assert told["ltx2"]["positional_embedding_max_pos"] == pytest.approx([20, 2048])
    assert told["ltx2"]["positional_embedding_theta"] == told["ltx2 (diffusers)"]["rope_theta"] == 10_000
    assert told["ltx2 (diffusers)"]["causal_offset"] == 1
    assert told["ltx2 (diffusers)"]["norm_elementwise_affine"] is False
    assert config_of(fresh("nava"), "wan") == {"num_heads": 2, "eps": 1e-6, "cross_attn_norm": True}
    assert config_of(fresh("nava"), "wan (diffusers)")["num_attention_heads"] == 2


@pytest.mark.parametrize(("variant", "layout"), [("ltx2", "ltx2"), ("ltx2", "ltx2 (diffusers)"), ("ovi", "ovi")])
def test_nava_export_writes_a_run_in_a_published_layout(tmp_path, variant, layout, capsys):
    """A run's folder, to a file, and back into a model of the same config; the words of a world's own text alone stay behind."""
    run, out = tmp_path / "run", tmp_path / "out.safetensors"
    run.mkdir()
    config = load([f"variant={variant}", "variant.depth=1", "variant.heads=2", "budget.width=96", "budget.hidden=64"])
    model, again = (network(config, parts(config).solution) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    (run / "config.yaml").write_text(yaml.safe_dump(dict(config.resolved), sort_keys=False))
    save_file(model.state_dict(), run / "model.safetensors", {"steps": "7"})
    main([str(run), str(out), "--to", layout, "--patch", "1,1,1", "--differ", "clock"])
    assert f"weights at step 7, {len(load_file(out))} tensors" in capsys.readouterr().err
    source = Tensors.at(out)
    assert source.config_at == ("the header of out.safetensors" if layout == "ltx2" else str(tmp_path / "config.json"))
    manifest = warm_start(again, out, differ=["clock"])
    assert {"eps 1e-06", "pairs split" if variant == "ltx2" else "heads 2"} <= set(manifest.agreement.told)
    main([str(run), str(out), "--to", layout, "--patch", "1,1,1", "--differ", "clock"])
    (tmp_path / "config.json").write_text('{"eps": 1e-5}')
    if layout != "ltx2":
        with pytest.raises(ConfigError, match=r"config\.json says what other weights compute by: give out\.safetensors a folder"):
            main([str(run), str(out), "--to", layout, "--patch", "1,1,1", "--differ", "clock"])
    assert (manifest.dialect, manifest.coverage) == (layout, 1)
    told = {"words.weight", "places"}
    assert {key.split(".", 3)[-1] for key in again.state_dict() if key.split(".", 3)[-1] in told} == told
    for key, part in again.state_dict().items():
        assert torch.equal(part, model.state_dict()[key]) == (key.split(".", 3)[-1] not in told), key


# What a layout cannot say, by the trait of the model.
UNSAID = [
    ({"layers.query_group": 2}, "query_group is 1 there and 2 here (a model trained with variant.layers.query_group=1 fits)"),
    ({"layers.feed_forward": "swiglu"}, "variant.layers.feed_forward=gelu"),
    ({"layers.qk_norm": "none"}, "variant.layers.qk_norm=full"),
    ({"layers.norm": "rms"}, "variant.layers.norm=layer"),
    ({"layers.text_norm": "plain"}, "variant.layers.text_norm=affine"),
    ({"clock.hz": 12.5}, "variant.clock.hz=0"),
    ({"ends.bias": False}, "variant.ends.bias=true"),
]


@pytest.mark.parametrize(("trait", "message"), UNSAID, ids=str)
@pytest.mark.parametrize("layout", ["wan", "wan (diffusers)"])
def test_what_a_layout_cannot_say_is_not_written(trait, message, layout):
    model = fresh("nava", **trait)
    with pytest.raises(ValueError, match=re.escape(f"the {layout} layout cannot say what this model computes")) as refused:
        export(model, layout)
    assert message in str(refused.value)
    name = str(refused.value).rpartition("--differ ")[2]
    written = export(model, layout, differ=[name]).tensors
    rows = {
        key: len(part)
        for key, part in written.items()
        if re.search(r"blocks\.0\.(self_attn\.[qkv]|attn1\.to_[qkv])\.weight", key)
    }
    assert list(rows.values()) == ([24, 12, 12] if "layers.query_group" in trait else [24, 24, 24])


def test_every_written_tensor_is_read_back_and_what_has_no_place_is_told(tmp_path):
    """MOVA's expert for high noise levels by itself; its other one, the audio and the exchange have no place."""
    model = fresh("mova")
    with torch.no_grad():
        for part in model.parameters():
            part.normal_()
    total = sum(part.numel() for part in model.parameters())
    low, high = (export(model, expert=name) for name in ("low", "high"))
    assert low.tensors.keys() == high.tensors.keys()
    assert not any(torch.equal(low.tensors[key], high.tensors[key]) for key in low.tensors)
    state = dict(model.named_parameters())
    assert torch.equal(
        high.tensors["blocks.1.ffn.0.weight"],
        state["blocks.1.storeys.parts.video.high.feed_forward.parts.parts.shared.fc1.weight"],
    )
    assert torch.equal(high.tensors["text_embedding.0.weight"], state["high.video.text.mlp.0.weight"])
    for made, other in ((low, " (high)"), (high, "blocks.*.storeys.parts.video ")):
        assert sum(part.numel() for part in made.tensors.values()) + sum(made.left.values()) == total
        (line,) = made.lines()
        assert line.startswith("no place in this layout: ")
        assert other in line
        assert "storeys.parts.audio" in line
        assert "%)" in line
    for name, made in (("low", low), ("high", high)):
        save_file(dict(made.tensors), tmp_path / f"{name}.safetensors")
        again = fresh("mova")
        warm_start(again, tmp_path / f"{name}.safetensors")
        assert export(again).tensors.keys() == made.tensors.keys()
        assert all(torch.equal(part, made.tensors[key]) for key, part in export(again).tensors.items())
    with pytest.raises(ValueError, match="no expert for high noise levels"):
        export(fresh("nava"), expert="high")


def test_rows_cut_in_equal_thirds_are_noticed(monkeypatch):
    """A planted slip: of grouped queries, thirds of the rows mix queries with keys."""
    model = fresh("nava", **{"layers.query_group": 2})
    qkv = next(part for key, part in model.named_parameters() if key.endswith("qkv.weight"))
    queries = export(model, differ=["query_group"]).tensors["blocks.0.self_attn.q.weight"]
    assert torch.equal(queries, qkv[:24])
    monkeypatch.setattr(write, "rows_of", lambda model, key, ours, entry: ours.chunk(entry.part[1])[entry.part[0]])
    assert len(export(model, differ=["query_group"]).tensors["blocks.0.self_attn.q.weight"]) == 16
