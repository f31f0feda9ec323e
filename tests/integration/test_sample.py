"""Sampling from a run: any batch size, guidance, every use from its own input, and mistakes in one line."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nava_lab.cli import main
from nava_lab.flow.draws import Drawing
from nava_lab.flow.sampling import Sampler
from nava_lab.media.write import write_mp4
from nava_lab.registry import worlds
from nava_lab.streams import Stream, time_positions
from nava_lab.study.given import Wish, _continued
from nava_lab.study.sample import caption_of

SMALL = ["budget.parameters=300_000", "training.batch_size=8", "training.validation_clips=16", "training.steps=12",
         "evaluation.clips=8", "evaluation.steps=2", "evaluation.loss_clips=8", "evaluation.previews=1", "output.progress=false",
         "logger=none", "trainer=cpu"]  # fmt: skip
TRAINED = ["flow.modality_dropout=0.3", "flow.modality_given=0.3", "flow.first_step.video=0.3", "flow.continuation=0.3"]


def nava(*arguments):
    main([*map(str, arguments)])


def train(root, *overrides):
    nava("train", "variant=unified", *SMALL, *overrides, f"output.root={root}")
    (found,) = (path for path in root.iterdir() if (path / "record.json").exists())
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "runs", *TRAINED)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Trained with nothing given and attention never cut."""
    return train(tmp_path_factory.mktemp("plain") / "runs")


def sampled(run, out, *arguments):
    nava("sample", run, "--out", out, "--previews", 0, *arguments)
    return load_file(out / "tokens.safetensors")


def complaint(capsys, *arguments):
    """What is said on standard error when a command stops; one line."""
    with pytest.raises(SystemExit) as stop:
        nava(*arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("nava: ")
    return said


@pytest.mark.parametrize(
    "more", [[], ["evaluation.guidance.text=3", "evaluation.guidance.modality=2", "evaluation/solver=churn"]]
)
def test_batches_of_1_and_64_give_the_same_clips(run, tmp_path, more):
    """To the round-off of batched products in fp32: 1e-4 where clips have values of order 1."""
    alone = sampled(run, tmp_path / "1", "--count", 64, "--batch-size", 1, "--seed", 5, *more)
    whole = sampled(run, tmp_path / "64", "--count", 64, "--batch-size", 64, "--seed", 5, *more)
    for name, part in whole.items():
        assert part.shape[0] == 64
        assert part.abs().max() > 0.1
        torch.testing.assert_close(alone[name], part, atol=1e-4, rtol=1e-4)


def test_the_log_holds_the_realised_rates(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {key for line in lines for key in line if key.startswith("train/rate_")}
    named = ("text_dropped", "modality_dropped", "modality_given", "first_step_video", "continuation")
    assert rates == {f"train/rate_{name}" for name in named}
    assert all(0 <= line[key] <= 1 for line in lines for key in rates & set(line))


def test_guidance_is_counted_and_recorded(run, plain, tmp_path, capsys):
    from nava_lab.config import from_file
    from nava_lab.study.build import parts
    from nava_lab.study.run import scoring_record

    assert json.loads((run / "record.json").read_text())["evaluation"]["guidance"] == "off"
    config = from_file(run / "config.yaml", ["evaluation.guidance.text={video: 4}", "evaluation.guidance.rescale=0.7"])
    made = scoring_record(config, parts(config))
    assert made["guidance"] == {"text": {"video": 4}, "rescale": 0.7}
    assert made["evaluations"] == 6
    sampled(run, tmp_path, "--count", 1, "evaluation.guidance.text=3", "evaluation.guidance.modality=2")
    assert "at 9 model evaluations each" in capsys.readouterr().err
    said = complaint(capsys, "sample", plain, "evaluation.guidance.modality=2")
    assert "evaluation.guidance.modality is refused" in said
    assert "flow.modality_dropout=0.2" in said


def test_a_law_of_levels_unlike_training_s_is_told(run, tmp_path, capsys):
    sampled(run, tmp_path, "--count", 1, "evaluation.shifts={audio: 3}")
    said = capsys.readouterr().err
    assert "audio is sampled with shift 3 and was trained with shift 1" in said


def test_every_use_keeps_what_it_is_given_to_the_bit(run, tmp_path):
    source = sampled(run, tmp_path / "source", "--count", 2, "--seed", 1)
    file = tmp_path / "source" / "tokens.safetensors"
    world = worlds.get("pulse")()
    truth = world.batch("test", torch.arange(3)).streams

    for name, other in (("audio", "video"), ("video", "audio")):
        found = sampled(run, tmp_path / name, "--count", 3, "--seed", 2, f"--{name}", file)
        assert torch.equal(found[name], source[name][[0, 1, 0]])
        assert not torch.allclose(found[other][:2], source[other])
        true = sampled(run, tmp_path / f"true {name}", "--count", 3, "--given", name, "--from", "test")
        assert torch.equal(true[name], truth[name].tokens)

    first = sampled(run, tmp_path / "first", "--count", 2, "--seed", 2, "--first-frame", file)
    assert torch.equal(first["video"][:, 0], source["video"][:, 0])
    assert not torch.allclose(first["video"][:, 1:], source["video"][:, 1:])

    more = sampled(run, tmp_path / "more", "--count", 2, "--seed", 2, "--continue", file, "--seconds", 0.8)
    assert torch.equal(more["video"][:, :10], source["video"][:, -10:])
    assert torch.equal(more["audio"][:, :10], source["audio"][:, -10:])
    assert not torch.allclose(more["audio"][:, 10:], source["audio"][:, 10:])


def clip_in_ms(rates, seconds=2.0):
    """Streams whose one value is each step's own beginning in ms, with those tokens."""
    streams = {}
    for name, rate in rates.items():
        count = round(seconds * rate)
        tokens = (torch.arange(count) * 1000 / rate).view(1, count, 1)
        streams[name] = Stream(tokens, time_positions(count, 1 / rate))
    return streams, {name: stream.tokens for name, stream in streams.items()}


@pytest.mark.parametrize("rates", [{"video": 12.5, "audio": 8.0}, {"video": 12.5, "audio": 50.0}, {"video": 8.0, "audio": 12.5}])
@pytest.mark.parametrize("seconds", [None, 0.5, 0.96, 1.5])
def test_a_continuation_cuts_sound_and_picture_at_one_moment(rates, seconds):
    streams, tokens = clip_in_ms(rates)
    common = 2.0 if 8.0 in rates.values() else 0.08  # 2 s hold 16 steps of 8 Hz and 25 of 12.5 Hz
    if common == 2.0:
        with pytest.raises(ValueError, match=r"--continue: no moment within a clip begins a step of every modality"):
            _continued(tokens, streams, seconds)
        streams, tokens = clip_in_ms(rates, 6.0)
        seconds = None if seconds is None else 4.0
    elif seconds in (0.5, 1.5):
        with pytest.raises(ValueError, match="0.48 or 0.56, say" if seconds == 0.5 else "1.44 or 1.52, say"):
            _continued(tokens, streams, seconds)
        return
    found = _continued(tokens, streams, seconds)
    begins = {name: float(clean.tokens[0, 0, 0]) for name, clean in found.items()}
    lasts = {name: float(clean.keep[0].sum()) / rates[name] for name, clean in found.items()}
    assert begins["video"] == pytest.approx(begins["audio"], abs=1e-2)
    assert lasts["video"] == pytest.approx(lasts["audio"])
    assert seconds is None or lasts["video"] == pytest.approx(seconds)


def test_a_continuation_of_modalities_that_end_apart_is_cut_at_one_moment():
    """The sound is a step longer than the picture: its last step is left out."""
    streams, _ = clip_in_ms({"video": 10.0}, 1.0)
    longer, _ = clip_in_ms({"audio": 20.0}, 1.05)
    streams |= longer
    found = _continued({name: stream.tokens for name, stream in streams.items()}, streams, 0.3)
    assert {name: float(clean.tokens[0, 0, 0]) for name, clean in found.items()} == {"video": 700.0, "audio": 700.0}
    assert [int(clean.keep.sum()) for clean in found.values()] == [3, 6]


def test_scoring_with_a_modality_given(run, capsys):
    nava("score", run, "evaluation.given=audio", "evaluation.shift=2", "evaluation/schedule=karras")
    said = capsys.readouterr()
    assert "sync_auc" in said.out
    assert "warning: video is sampled with shift 2 and was trained with shift 1" in said.err
    assert "warning: levels are sampled by schedule karras" in said.err


@pytest.mark.parametrize("use", [["--audio"], ["--first-frame"], ["--continue"]])
def test_a_use_that_was_never_trained_is_refused(plain, run, tmp_path, capsys, use):
    sampled(run, tmp_path, "--count", 1)
    capsys.readouterr()
    said = complaint(capsys, "sample", plain, *use, tmp_path / "tokens.safetensors")
    assert "never trained" in said
    assert "train with" in said


def test_mistakes_end_in_one_line(run, tmp_path, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    save_file({"audio": torch.zeros(1, 3, 4)}, tmp_path / "other.safetensors")
    save_file({"audio": torch.full((1, 25, 64), float("nan"))}, tmp_path / "nan.safetensors")
    save_file({"audio": torch.zeros(1, 25, 64), "video": torch.zeros(1, 25, 768)}, tmp_path / "whole.safetensors")
    (tmp_path / "film.mp4").write_bytes(b"nothing")
    for arguments, expected in (
        (["--audio", tmp_path / "missing.safetensors"], "does not exist"),
        (["--audio", tmp_path / "broken.safetensors"], "not a file of tokens"),
        (["--audio", tmp_path / "other.safetensors"], "this run's clips have 25 tokens of 64"),
        (["--audio", tmp_path / "nan.safetensors"], "NaN"),
        (["--video", tmp_path / "other.safetensors"], "holds no video"),
        (["--audio", tmp_path / "film.mp4"], "no media files"),
        (["--given", "smell"], "no modality smell"),
        (["--given", "audio", "--audio", tmp_path / "other.safetensors"], "audio is given twice"),
        (["--given", "audio", "--from", "tset"], "--from tset"),
        (["--seconds", "1"], "--continue FILE"),
        (["--continue", tmp_path / "whole.safetensors", "--seconds", "0.5"], "0.48 or 0.56, say (from 0.08 to 1.92)"),
        (["--continue", tmp_path / "whole.safetensors", "--seconds", "-1"], "must be positive"),
        (["--count", "0"], "--count=0"),
        (["--batch-size", "0"], "--batch-size=0"),
        (["--count", "two"], "is no number"),
        (["training.steps=3"], "only evaluation"),
        (["evaluation.guidance.txt=3"], "evaluation.guidance.text"),
        (["evaluation.guidance.rescale=0.5"], "no term is on"),
        (["evaluation.guidance.negative.scale=2", "evaluation.guidance.negative.prompt=purple"], "no word 'purple'"),
        (["--prompt", "rad"], "did you mean 'red'"),
    ):
        assert expected in complaint(capsys, "sample", run, *arguments), arguments


def test_clips_of_one_use_do_not_replace_another_s_nor_what_they_were_given(run, capsys):
    nava("sample", run, "--count", 2, "--previews", 0)
    own = run / "samples" / "tokens.safetensors"
    before = own.read_bytes()
    nava("sample", run, "--count", 2, "--previews", 0, "--video", own)
    assert own.read_bytes() == before
    assert (run / "samples-video" / "tokens.safetensors").exists()
    assert "would be replaced" in complaint(capsys, "sample", run, "--video", own, "--out", own.parent)
    nava("sample", run, "--count", 2, "--previews", 0)
    assert "replaces the clips of an earlier call" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_media_files_are_given_to_a_run_on_clips(tmp_path, capsys):
    films = tmp_path / "films"
    rng = np.random.default_rng(0)
    for number in range(2):
        frames = rng.integers(0, 255, (32, 32, 32, 3), dtype=np.uint8)
        sound = rng.uniform(-0.5, 0.5, 64_000).astype(np.float32)
        write_mp4(films / f"{number}.mp4", frames=frames, frame_rate=8.0, sound=sound, sample_rate=16_000, scale=1)
    run = train(tmp_path / "runs", "world=clips", f"clips.path={films}", *TRAINED)
    film = films / "0.mp4"
    silent, deaf, still = tmp_path / "silent.mp4", tmp_path / "deaf.wav", tmp_path / "still.png"
    _keep(film, silent, "video")
    _keep(film, deaf, "audio")
    from PIL import Image

    Image.fromarray(rng.integers(0, 255, (64, 48, 3), dtype=np.uint8)).save(still)
    for option, name, file in (("--video", "video", silent), ("--audio", "audio", deaf), ("--video", "video", film)):
        found = sampled(run, tmp_path / "out", "--count", 1, option, file)
        (again,) = worlds.get("clips")(path=str(films)).read(file, [name]).values()
        assert torch.equal(found[name], again)
    for more in (["--first-frame", still], ["--continue", film, "--seconds", 0.5]):
        sampled(run, tmp_path / "out", "--count", 1, *more)
    said = complaint(capsys, "sample", run, "--audio", silent)
    assert "no sound track" in said
    assert "no picture" in complaint(capsys, "sample", run, "--first-frame", deaf)


def _keep(source, target, kind):
    """One stream of a file, by itself."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = next(part for part in old.streams if part.type == kind)
        if kind == "video":
            out = new.add_stream_from_template(stream)
            for packet in old.demux(stream):
                if packet.dts is not None:
                    packet.stream = out
                    new.mux(packet)
            return
        out = new.add_stream("pcm_s16le", rate=stream.rate, layout="mono")
        for frame in old.decode(stream):
            frame.pts = None
            new.mux(out.encode(frame))
        new.mux(out.encode(None))


@pytest.fixture
def told(monkeypatch):
    """The captions and given modalities of every sampling."""
    seen = []
    real = Sampler.__call__

    def watched(self, network, template, text, generators, given=None):
        words = worlds.get("pulse")().tokenizer.words
        seen.append(([" ".join(words[i] for i in row if i) for row in text.tokens.tolist()], sorted(given or {})))
        return real(self, network, template, text, generators, given)

    monkeypatch.setattr(Sampler, "__call__", watched)
    return seen


def test_a_prompt_is_told_and_beside_a_file_nothing_else_is(run, tmp_path, capsys, told):
    file, world = tmp_path / "tokens.safetensors", worlds.get("pulse")()
    true = world.captions("test", torch.arange(2))
    sampled(run, tmp_path, "--count", 2)
    assert told.pop() == (true, [])
    sampled(run, tmp_path, "--count", 2, "--prompt", "red disc")
    assert told.pop() == (["red disc"] * 2, [])
    capsys.readouterr()
    sampled(run, tmp_path / "out", "--count", 2, "--video", file)
    assert told.pop() == (["<null>"] * 2, ["video"])
    assert "no caption is given" in capsys.readouterr().err
    for more, captions in (
        (["--prompt", "red disc"], ["red disc"] * 2),
        (["--from", "train"], world.captions("train", torch.arange(2))),
    ):
        sampled(run, tmp_path / "out", "--count", 2, "--video", file, *more)
        assert told.pop() == (captions, ["video"])
    assert "no word 'purple'" in complaint(capsys, "sample", run, "--prompt", "purple disc")


def test_what_nobody_was_trained_to_be_told_is_said_or_refused(capsys):
    told, pulse, silent = [], worlds.get("pulse")(), worlds.get("gaussian")()
    with_file = Wish({"video": Path("film.mp4")}, {})
    assert caption_of(with_file, pulse, Drawing(text_dropout=0.0), told.append) is None
    assert "captions are those of the world's test clips, not of your file" in told.pop()
    assert caption_of(with_file, pulse, Drawing(text_dropout=0.1), told.append) == ""
    assert caption_of(with_file, silent, Drawing(), told.append) is None
    with pytest.raises(ValueError, match="world gaussian has no words"):
        caption_of(Wish({}, {}, prompt="red disc"), silent, Drawing(), told.append)
    with pytest.raises(ValueError, match=r"captions were never trained; train with flow\.text_dropout below 1"):
        caption_of(Wish({}, {}, prompt="red disc"), pulse, Drawing(text_dropout=1.0), told.append)


def test_what_the_run_s_config_gives_is_given(run, tmp_path, told):
    truth = worlds.get("pulse")().batch("test", torch.arange(2)).streams
    found = sampled(run, tmp_path, "--count", 2, "evaluation.given=audio")
    assert torch.equal(found["audio"], truth["audio"].tokens)
    sampled(run, tmp_path / "out", "--count", 2, "evaluation.given=audio", "--video", tmp_path / "tokens.safetensors")
    assert [given for _, given in told] == [["audio"], ["video"]]
