"""Pretrained text-to-video weights in, the same video out, and the same weights back."""

import dataclasses
import itertools
import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from nava_lab.blocks.base import Dims
from nava_lab.checkpoints import convert
from nava_lab.checkpoints.convert import warm_start
from nava_lab.checkpoints.files import Tensors, digest
from nava_lab.checkpoints.tables import WAN, WAN_DIFFUSERS
from nava_lab.checkpoints.write import export
from nava_lab.config import ConfigError, load
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, Stream, TextSpec, time_positions
from nava_lab.study.run import prepared
from tests.checkpoints.test_parity import saved, tiny_wan, tokens_of

INTERFACE = Interface({"video": ModalitySpec(16, 18, 1 / 6, (2, 3)), "audio": ModalitySpec(4, 6, 0.05)}, TextSpec(7, features=16))
DIMS = Dims({"video": 24, "audio": 24}, {"video": 2, "audio": 2}, {"video": 32, "audio": 32})
NARROW = Dims({"video": 24, "audio": 8}, {"video": 2, "audio": 2}, {"video": 32, "audio": 12})
CLOCK = {"clock.hz": 0.0, "clock.anchor": "start", "ends.level_features": 256}
# How each is given an audio tower beside Wan's video, and what of it the checkpoint reaches.
STARTED = {
    "nava": ({}, DIMS),
    "ovi": ({}, DIMS),
    "mova": ({"video_alone": 0.0}, NARROW),
    "align_then_fuse": (CLOCK, DIMS),
    "dual_tower": (CLOCK, DIMS),
    "unified": ({**CLOCK, "text_place": "cross"}, DIMS),
}


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    model = tiny_wan()
    return model, saved(model, tmp_path_factory.mktemp("wan") / "wan.safetensors")


def fresh(name, **more):
    settings, dims = STARTED[name]
    torch.manual_seed(3)
    return Denoiser(with_settings(variants.get(name)(depth=2, heads=2), {**settings, **more}), INTERFACE, dims)


def inputs():
    torch.manual_seed(1)
    latents, words = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 7, 16)
    streams = {
        "video": Stream(tokens_of(latents), time_positions(18, 1 / 6, (2, 3))),
        "audio": Stream(torch.randn(2, 6, 4), time_positions(6, 0.05)),
    }
    level = torch.tensor([0.3, 0.95])
    return latents, words, streams, {"video": level, "audio": level.flip(0)}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", STARTED)
def test_with_exchanges_closed_the_model_makes_the_source_s_video(wan, name):
    source, path = wan
    model = fresh(name)
    manifest = warm_start(model, path)
    assert manifest.coverage == 1
    latents, words, streams, levels = inputs()
    expected = tokens_of(source(latents, 1000 * levels["video"], words, return_dict=False)[0])
    text = Stream(words, torch.zeros(1, 7, 3))
    close(model(streams, levels, text, torch.tensor([True, True]))["video"], expected)
    close(model({"video": streams["video"]}, levels, text)["video"], expected)
    assert not torch.allclose(model(streams, levels, text)["video"], expected, atol=1e-3)  # the exchange is there


@pytest.mark.parametrize("name", ["ovi", "mova", "dual_tower"])
def test_with_a_gate_that_starts_closed_nothing_need_be_cut(wan, name):
    source, path = wan
    model = fresh(name, **{"bridge.gate": "learned"})
    warm_start(model, path)
    latents, words, streams, levels = inputs()
    expected = tokens_of(source(latents, 1000 * levels["video"], words, return_dict=False)[0])
    close(model(streams, levels, Stream(words, torch.zeros(1, 7, 3)))["video"], expected)


def test_what_nava_keeps_per_modality_is_copied_and_its_audio_ends_are_fresh(wan):
    _, path = wan
    model, before = fresh("nava", align_fraction=0.5), fresh("nava", align_fraction=0.5)
    manifest = warm_start(model, path)
    state, old = dict(model.named_parameters()), dict(before.named_parameters())
    for key, part in state.items():
        if ".audio." in key and key.startswith("blocks."):
            assert torch.equal(part, state[key.replace(".audio.", ".video.")])
        if key.startswith(("embed.audio", "heads.audio")):
            assert torch.equal(part, old[key])
    total = sum(part.numel() for part in state.values())
    assert manifest.mapped + manifest.copied + manifest.fresh == total
    split = sum(part.numel() for key, part in state.items() if key.startswith("blocks.") and re.search(r"\.(audio|video)\.", key))
    assert manifest.copied == split > 0
    assert manifest.fresh == sum(part.numel() for key, part in state.items() if key.startswith(("embed.audio", "heads.audio")))
    assert "copied" in manifest.lines()[0]


def test_ovis_audio_tower_and_exchange_are_fresh(wan):
    _, path = wan
    model, before = fresh("ovi"), dict(fresh("ovi").named_parameters())
    warm_start(model, path)
    for key, part in model.named_parameters():
        kept = ".parts.audio." in key or ".fusion." in key or key.startswith(("embed.audio", "heads.audio"))
        assert torch.equal(part, before[key]) == kept or not part.any(), key


@pytest.mark.parametrize("name", STARTED)
@pytest.mark.parametrize("dialect", ["wan", "wan (diffusers)"])
def test_export_is_what_was_read(wan, tmp_path, name, dialect):
    """Round trip in both dialects, bit for bit; the other dialect is read as well as the first."""
    _, path = wan
    source, first = load_file(path), fresh(name)
    warm_start(first, path)
    written = export(first, dialect).tensors
    if dialect == "wan (diffusers)":
        assert written.keys() == source.keys()
        assert all(torch.equal(written[key], source[key]) for key in source)
    again = fresh(name)
    save_file(written, tmp_path / "again.safetensors")
    manifest = warm_start(again, tmp_path / "again.safetensors")
    assert (manifest.dialect, manifest.coverage) == (dialect, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def sharded(source, folder, count=3):
    """The same tensors over several files with an index."""
    tensors, index = load_file(source), {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = dict(list(tensors.items())[number::count])
        save_file(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_shards_stream_one_tensor_at_a_time(wan, tmp_path, monkeypatch):
    _, path = wan
    folder = sharded(path, tmp_path)
    whole, parts = fresh("nava"), fresh("nava")
    warm_start(whole, path)
    alive, order, read = [0], [], Tensors.read

    def watched(self, keys):
        for name, tensor in read(self, keys):
            alive[0] += 1
            assert alive[0] == 1
            order.append(self.where[name])
            yield name, tensor
            alive[0] -= 1

    monkeypatch.setattr(Tensors, "read", watched)
    warm_start(parts, folder)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert len(list(dict.fromkeys(order))) == len(list(itertools.groupby(order))) == 3
    assert digest(folder) != digest(path)


def test_a_prefix_before_every_key_is_seen_through(wan, tmp_path):
    _, path = wan
    save_file({f"video_model.{key}": part for key, part in load_file(path).items()}, tmp_path / "prefixed.safetensors")
    assert warm_start(fresh("ovi"), tmp_path / "prefixed.safetensors").coverage == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.with_name("gone.safetensors"), "does not exist"),
        (lambda path: write(path.with_name("text.safetensors"), b"no tensors"), "no safetensors file"),
        (lambda path: write(path.with_name("model.pth"), b""), "convert it"),
        (lambda path: write(path.with_name("x.safetensors.index.json"), b"{}"), "no weight_map"),
        (lambda path: write(path.with_name("y.safetensors.index.json"), b'{"weight_map": {"a": "b.safetensors"}}'), "b.safetensors are missing"),
        (lambda path: other(path.with_name("other.safetensors")), "no known layout: ovi has video_model.blocks.0.cross_attn.k_fusion.weight; wan has"),
    ],
)  # fmt: skip
def test_wrong_files_end_in_one_clear_message(tmp_path, spoil, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        warm_start(fresh("nava"), spoil(tmp_path / "wan.safetensors"))


def write(path, content):
    path.write_bytes(content)
    return path


def other(path):
    save_file({"a": torch.zeros(2)}, path)
    return path


def test_a_shape_that_does_not_fit_is_named_with_the_remedy(wan):
    _, path = wan
    narrow = Denoiser(variants.get("nava")(depth=2, heads=2), INTERFACE, Dims(*({"video": v, "audio": v} for v in (16, 2, 32))))
    with pytest.raises(
        ValueError,
        match=r"embed.video.weight is 16x16 and patch_embedding.weight 24x4x1x2x2; .* more\. Set budget.width=24$",
    ):
        warm_start(narrow, path)
    other_latents = Interface({**INTERFACE.modalities, "video": ModalitySpec(6, 18, 1 / 6, (2, 3))}, TextSpec(7, 9))
    model = Denoiser(variants.get("nava")(depth=2, heads=2), other_latents, DIMS)
    with pytest.raises(ValueError, match=r"embed.video.weight.*warm_start.ends=false"):
        warm_start(model, path)
    assert 0.8 < warm_start(model, path, coverage=0.8, ends=False).coverage < 1


def test_a_place_for_too_little_is_refused(wan):
    _, path = wan
    shallow = Denoiser(variants.get("nava")(depth=1, heads=2), INTERFACE, DIMS)
    with pytest.raises(
        ValueError, match=r"of its parameters have a place; warm_start.coverage=0.9 wants more \(no place: blocks.1"
    ):
        warm_start(shallow, path)
    assert warm_start(shallow, path, coverage=0.5).ignored > 0


def test_a_planted_slip_in_a_table_is_noticed(wan, monkeypatch):
    """Queries read as keys, and the two norms' names not swapped: the video is no longer the source's."""
    source, path = wan
    latents, words, streams, levels = inputs()
    expected = tokens_of(source(latents, 1000 * levels["video"], words, return_dict=False)[0])
    slipped = [
        dataclasses.replace(one, theirs=one.theirs.replace("to_q", "to_#").replace("to_k", "to_q").replace("to_#", "to_k"))
        for one in WAN_DIFFUSERS
    ]
    dialects = tuple(
        dataclasses.replace(one, entries=tuple(slipped)) if one.entries is WAN_DIFFUSERS else one for one in convert.DIALECTS
    )
    monkeypatch.setattr(convert, "DIALECTS", dialects)
    model = fresh("nava")
    warm_start(model, path)
    made = model({"video": streams["video"]}, levels, Stream(words, torch.zeros(1, 7, 3)))["video"]
    assert not torch.allclose(made, expected, atol=1e-3)
    assert len(WAN) == len(WAN_DIFFUSERS)


BASE = ["variant=nava", "variant.depth=2", "variant.heads=2", "budget.width=24", "budget.hidden=32", "flow.prediction=velocity"]


def test_a_run_s_identity_knows_the_weights(wan, tmp_path):
    _, path = wan
    config = load([*BASE, f"warm_start={path}"])
    assert config.resolved["warm_start"] == {
        "path": str(path),
        "coverage": 0.9,
        "ends": True,
        "differ": [],
        "digest": digest(path),
    }
    assert "warm_start" not in load(BASE).resolved


def test_every_byte_of_a_checkpoint_is_in_its_digest(tmp_path):
    """One byte in the middle of a file of many megabytes, its size and times as before; and the config beside it."""
    path = tmp_path / "big.safetensors"
    save_file({"a": torch.zeros(5_000_000)}, path)
    seen, times = {digest(path)}, (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    with path.open("r+b") as file:
        file.seek(10_100_001)
        file.write(b"\x01")
    os.utime(path, ns=times)
    seen.add(digest(path))
    write(tmp_path / "config.json", b'{"eps": 1e-6}')
    seen.add(digest(path))
    write(tmp_path / "config.json", b'{"eps": 1e-5}')
    seen.add(digest(path))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["warm_start=nowhere.safetensors"], "warm_start: nowhere.safetensors does not exist"),
        (["warm_start.coverage=0.5"], "there is none: set warm_start=PATH"),
        (["warm_start=x", "flow.prediction=x0"], "set flow.prediction=velocity"),
        (["warm_start=x", "warm_start.coverage=2"], "between 0 and 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load([*BASE, *overrides])


def test_a_misfit_is_told_before_any_work(wan):
    _, path = wan
    with pytest.raises(ConfigError, match=r"warm_start: .*does not fit.*warm_start.ends=false"):
        prepared(load([*BASE, f"warm_start={path}"]))
    inside = [*BASE, f"warm_start={path}", "warm_start.ends=false", "warm_start.coverage=0.8"]
    with pytest.raises(ConfigError, match=r"no rows and columns, .*No setting changes that: .*warm_start.differ=\[clock\]"):
        prepared(load(inside))
    prepared(load([*inside, "warm_start.differ=[clock]"]))
