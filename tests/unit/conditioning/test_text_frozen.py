"""Captions through a pretrained encoder: a tiny random UMT5 with its tokenizer, saved to a folder as a real one would be."""

import json
import sys

import pytest
import torch

from nava_lab.conditioning.text import TextEncoder, without_text
from nava_lab.conditioning.text_frozen import FrozenEncoder
from nava_lab.config import ConfigError, load
from nava_lab.flow.draws import Drawing
from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size
from nava_lab.registry import variants, worlds
from nava_lab.streams import joined
from nava_lab.study.build import parts
from nava_lab.study.given import Wish
from nava_lab.study.sample import caption_of
from tests.unit.worlds.test_clips import SMALL, film

transformers = pytest.importorskip("transformers")
WORDS = ("<pad>", "</s>", "<unk>", "a", "dog", "barks", "at", "the", "door", "rain", "falls")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    path = tmp_path_factory.mktemp("umt5")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.UMT5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    transformers.UMT5EncoderModel(config).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


CAPTIONS = ["a dog barks at the door", "rain falls", ""]


def test_features_are_the_encoders_own_and_padding_is_masked(folder):
    text = FrozenEncoder(str(folder), 10)(CAPTIONS)
    assert text.tokens.shape == (3, 10, 16)
    assert text.valid.sum(1).tolist() == [7, 3, 1]
    assert not text.tokens[~text.valid].any()
    model = transformers.UMT5EncoderModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row, caption in enumerate(CAPTIONS):  # alone, so without any padding
        alone = model(**tokenizer(caption, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0]
        torch.testing.assert_close(text.tokens[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_captions_are_encoded_once_and_kept_by_encoder_and_text(folder, tmp_path, monkeypatch):
    first = FrozenEncoder(str(folder), 10)(CAPTIONS)
    monkeypatch.setattr(FrozenEncoder, "_encoder", lambda self: pytest.fail("a kept caption is encoded again"))
    again = FrozenEncoder(str(folder), 10)
    assert torch.equal(again(CAPTIONS).tokens, first.tokens)
    assert len(list(again.folder.glob("*.safetensors"))) == 3
    with pytest.raises(pytest.fail.Exception):
        again(["the rain"])
    with pytest.raises(pytest.fail.Exception):  # another length cuts elsewhere
        FrozenEncoder(str(folder), 4)(CAPTIONS[:1])


def test_a_broken_file_is_encoded_anew_and_other_weights_are_another_encoder(folder, tmp_path):
    encoder = FrozenEncoder(str(folder), 10)
    first = encoder(CAPTIONS[:1]).tokens
    path = encoder._path(CAPTIONS[0])
    path.write_bytes(b"broken")
    assert torch.equal(FrozenEncoder(str(folder), 10)(CAPTIONS[:1]).tokens, first)
    import shutil

    other = shutil.copytree(folder, tmp_path / "other")
    torch.manual_seed(1)
    transformers.UMT5EncoderModel(transformers.AutoConfig.from_pretrained(folder)).save_pretrained(other)
    assert FrozenEncoder(str(other), 10).identity != encoder.identity
    assert not torch.allclose(FrozenEncoder(str(other), 10)(CAPTIONS[:1]).tokens, first)


def test_a_dropped_caption_is_the_encoders_empty_one(folder):
    encoder = FrozenEncoder(str(folder), 10)
    text, drop = encoder(CAPTIONS), torch.tensor([True, False, False])
    dropped, expected = without_text(text, drop), encoder(["", CAPTIONS[1], ""])
    assert torch.equal(dropped.tokens, expected.tokens)
    assert torch.equal(dropped.valid, expected.valid)
    assert torch.equal(without_text(text.rows(torch.tensor([1, 0])), torch.tensor([True, True])).tokens, encoder(["", ""]).tokens)
    assert torch.equal(joined([text, dropped]).tokens[3:], dropped.tokens)
    with pytest.raises(TypeError, match=r"Stream\.empty"):
        without_text(type(text)(text.tokens, text.positions, text.valid), drop)


@pytest.mark.parametrize("variant", ["unified", "dual_tower"])
def test_padding_of_a_caption_reaches_no_output(folder, variant, interface):
    from dataclasses import replace

    from tests.conftest import Inputs

    text = FrozenEncoder(str(folder), 10)(CAPTIONS)
    torch.manual_seed(0)
    model = Denoiser(variants.get(variant)(depth=2), replace(interface, text=FrozenEncoder(str(folder), 10).spec), Size(24, 40))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = Inputs(3)
    noisy = replace(text, tokens=torch.where(text.valid.unsqueeze(-1), text.tokens, torch.full_like(text.tokens, float("nan"))))
    out, poisoned = (model(inputs.streams, inputs.levels, said)["video"] for said in (text, noisy))
    torch.testing.assert_close(out, poisoned)
    other = FrozenEncoder(str(folder), 10)([CAPTIONS[1], CAPTIONS[0], ""])
    assert not torch.allclose(out[:2], model(inputs.streams, inputs.levels, other)["video"][:2])


def test_an_encoder_alone_is_encoded_whole(tmp_path, folder):
    """BERT has no decoder; transformers lists it under another kind of model."""
    import shutil

    path = shutil.copytree(folder, tmp_path / "bert", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(path)
    encoder = FrozenEncoder(str(path), 6)
    assert encoder.spec.features == 8
    assert encoder(CAPTIONS).valid.sum(1).tolist() == [6, 3, 1]


def with_tokenizer_of(folder, path, config):
    """A model of another kind with the words of ``folder``."""
    import shutil

    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(path)
    return path


def test_of_an_encoder_decoder_the_encoder_is_taken(tmp_path, folder, monkeypatch):
    """BART's whole model answers with its decoder's states, which are of the same shape."""
    sizes = {
        f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in (("layers", 1), ("attention_heads", 2))
    }
    config = transformers.BartConfig(vocab_size=64, d_model=8, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes)
    path = with_tokenizer_of(folder, tmp_path / "bart", config)
    encoder = FrozenEncoder(str(path), 10)
    text = encoder(CAPTIONS)
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(path), transformers.AutoModel.from_pretrained(path).eval()
    words = tokenizer(CAPTIONS[:1], return_tensors="pt", return_token_type_ids=False)
    torch.testing.assert_close(text.tokens[0, :7], model.get_encoder()(**words).last_hidden_state[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(text.tokens[0, :7], model(**words).last_hidden_state[0], atol=1e-2)
    own = encoder.identity  # its decoder's states, which were once kept, are not taken for it
    monkeypatch.setattr(FrozenEncoder, "_is_half", False)
    assert FrozenEncoder(str(path), 10).identity != own


def test_a_model_that_reads_no_words_is_refused(tmp_path, folder):
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32
    )
    path = with_tokenizer_of(folder, tmp_path / "vit", config)
    with pytest.raises(ValueError, match=r"clips.encoder=.*vit \(ViTConfig\) has no encoder that reads words"):
        FrozenEncoder(str(path), 10)(CAPTIONS)


def test_captions_that_are_cut_are_counted_whoever_kept_them(folder):
    assert FrozenEncoder(str(folder), 7).cut([*CAPTIONS, CAPTIONS[0]]) == []
    for _ in range(2):  # encoded now; then from the cache
        assert FrozenEncoder(str(folder), 6).cut([*CAPTIONS, CAPTIONS[0]]) == CAPTIONS[:1]


@pytest.fixture
def films(tmp_path):
    root = tmp_path / "films"
    root.mkdir()
    for number in range(6):
        film(root / f"film {number}.mp4", 2.0)
        (root / f"film {number}.txt").write_text("a dog barks\n" if number % 2 else "rain  falls", encoding="utf-8")
    return root


def test_a_world_of_captioned_clips(folder, films, capsys):
    told = {"path": str(films), "encoder": str(folder), "caption_tokens": 8, "validation_share": 0.3, "test_share": 0.2, **SMALL}
    world = worlds.get("clips")(caption_files="sidecar", **told)
    world.prepare()
    batch = world.batch("train", torch.arange(8))
    said = world.captions("train", torch.arange(8))
    assert set(said) <= {"a dog barks", "rain falls"}
    assert torch.equal(batch.text.tokens, world.tokenizer(said).tokens)
    assert world.interface().text.features == 16
    assert world.interface().text.length == 8
    assert "not read" not in capsys.readouterr().err
    short = worlds.get("clips")(caption_files="sidecar", **{**told, "caption_tokens": 3})
    short.prepare()
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 3 of 6 films have captions longer than world.caption_tokens=3" in said
    assert "first 'a dog barks': raise world.caption_tokens" in said
    assert short.batch("train", torch.arange(8)).text.valid.sum(1).tolist() == [3] * 8
    lines = []
    assert caption_of(Wish({}, {}, prompt="the dog barks"), short, Drawing(), lines.append) == "the dog barks"
    assert caption_of(Wish({}, {}, prompt="rain falls"), short, Drawing(), lines.append) == "rain falls"
    assert lines == ["warning: --prompt is longer than world.caption_tokens=3, and its end is not read"]
    table = films / "all.json"
    table.write_text(json.dumps({"film 0.mp4": "the door", "gone.mp4": "a"}), encoding="utf-8")
    other = worlds.get("clips")(caption_files="all.json", **told)
    assert other.data_version() != world.data_version()
    assert other.said == {"film 0.mp4": "the door"}
    (films / "all.tsv").write_text("film 1.mp4\tthe  rain\n\n", encoding="utf-8")
    assert worlds.get("clips")(caption_files="all.tsv", **told).said == {"film 1.mp4": "the rain"}


def test_text_guidance_and_dropout_are_known_to_a_run_of_captioned_clips(folder, films):
    settings = [
        *("world=clips", f"clips.path={films}", "clips.captions=sidecar", f"clips.encoder={folder}", "world.size=16"),
        *("variant=unified", "budget.parameters=400_000", "evaluation.guidance.text=2", "world.window_s=1.0", "world.bands=16"),
    ]
    built = parts(load(settings))
    assert built.protocol.sampler.guidance.terms
    assert TextEncoder(load(settings).world.interface().text, 24)(load(settings).world.tokenizer(["rain"])).shape == (1, 64, 24)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["clips.captions=sidecar"], "go together"),
        (["clips.encoder=somewhere"], "go together"),
        (["clips.captions=sidecar", "clips.encoder=t5", "world.caption_tokens=0"], "at least 1"),
    ],
)
def test_settings_that_cannot_be_meant(change, said):
    with pytest.raises((ConfigError, ValueError), match=said):
        load(["world=clips", *change]).world.interface()


def test_a_folder_without_an_encoder_and_a_missing_library_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"clips.encoder=.*cannot be loaded"):
        _ = FrozenEncoder(str(tmp_path)).spec
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[text\]'"):
        _ = FrozenEncoder(str(tmp_path)).spec


def test_caption_files_that_cannot_be_read(films):
    from nava_lab.media.captions import read_captions

    names = ["film 0.mp4"]
    (films / "bad.json").write_text("[1]", encoding="utf-8")
    (films / "bad.tsv").write_text("no tab here", encoding="utf-8")
    (films / "latin.tsv").write_bytes("film 0.mp4\tcaf\xe9".encode("latin-1"))
    (films / "other.json").write_text('{"x.mp4": "a"}', encoding="utf-8")
    for source, said in (
        ("bad.json", "one JSON object"), ("bad.tsv", "has no tab"), ("latin.tsv", "not UTF-8"), ("none.tsv", "neither"),
        ("other.json", "no film has"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            read_captions(films, source, names)
