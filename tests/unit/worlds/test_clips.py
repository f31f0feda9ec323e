"""World ``clips``: windows of real files, dealt and drawn without chance, and clear words for what cannot be used."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nava_lab.media import library as media_library
from nava_lab.media.decode import read_clip
from nava_lab.media.library import share
from nava_lab.media.write import write_mp4
from nava_lab.registry import worlds
from nava_lab.worlds.clips import Clips

SMALL = {"size": 16, "bands": 16, "window_s": 1.0, "stride_s": 0.5}


def film(path: Path, seconds: float = 3.0, event: float = 1.0, seed: int = 0) -> Path:
    """Dim noise that changes from film to film, with a flash and a beep at ``event`` seconds."""
    random = np.random.default_rng([seed, *path.name.encode()])
    frames = random.integers(0, 60, (round(seconds * 8), 16, 16, 3), np.uint8)
    sound = 0.01 * random.standard_normal(round(seconds * 16_000)).astype(np.float32)
    frames[round(event * 8)] = 240
    at = round(event * 16_000)
    sound[at : at + 800] = 0.7 * np.sin(np.arange(800) * 0.4)
    return write_mp4(path, frames=frames, frame_rate=8.0, sound=sound, sample_rate=16_000, scale=1)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve films, some of them deeper; their names fall into all three splits."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(12):
        film(folder / ("deep/er" if number % 3 == 0 else ".") / f"film {number}.mp4", 2.0 + number % 4)
    return folder


@pytest.fixture
def world(films: Path) -> Clips:
    return Clips(path=str(films), validation_share=0.3, test_share=0.2, **SMALL)


def spans(world: Clips, split: str) -> list[tuple[str, float, float]]:
    return [
        (world.library.films[number].name, start * world.stride_s, start * world.stride_s + world.window_s)
        for number, start in world.windows[split].tolist()
    ]


def test_interface_needs_no_files() -> None:
    world = worlds.get("clips")()
    assert isinstance(world, Clips)
    video, audio = (world.interface().modalities[name] for name in ("video", "audio"))
    assert (video.channels, video.tokens, video.seconds, video.grid) == (768, 64, 0.125, (2, 2))
    assert (audio.channels, audio.tokens, audio.seconds, audio.grid) == (160, 20, 0.1, (1, 1))
    assert world.interface().text.length == 1
    assert world.data_version() == world.version
    with pytest.raises(ValueError, match=r"world=clips needs clips.path=FOLDER"):
        world.prepare()


def test_batches_have_the_shapes_of_the_interface(world: Clips) -> None:
    world.prepare()
    for split in ("train", "validation", "test"):
        batch = world.batch(split, torch.arange(5))
        assert len(batch) == 5
        assert batch.extra == {}
        assert batch.text.tokens.shape == (5, 1)
        for name, spec in world.interface().modalities.items():
            stream = batch.streams[name]
            assert stream.tokens.shape == (5, spec.tokens, spec.channels)
            assert stream.tokens.dtype == torch.float32
            assert stream.positions.shape == (1, spec.tokens, 3)
            assert stream.positions[0, 0, 0] == pytest.approx(spec.seconds / 2)
            assert stream.positions[0, -1, 0] == pytest.approx(world.window_s - spec.seconds / 2)


def test_batches_do_not_depend_on_how_they_are_cut(world: Clips) -> None:
    index = torch.tensor([0, 7, 3, 10**12, -5, 7])
    again = dataclasses.replace(world)  # knows nothing of what the other has read
    whole = world.batch("train", index)
    for row, number in enumerate(index):
        one = again.batch("train", number.reshape(1))
        for name, stream in one.streams.items():
            assert torch.equal(stream.tokens[0], whole.streams[name].tokens[row])


def test_training_draws_every_window_and_evaluation_counts_them(world: Clips) -> None:
    windows = world.windows["train"]
    drawn = world.batch("train", torch.arange(20 * len(windows))).streams["video"].tokens.flatten(1)
    assert len(drawn.unique(dim=0)) == len(windows)
    count = len(world.windows["validation"])
    held_out = world.batch("validation", torch.arange(2 * count)).streams["audio"].tokens
    assert torch.equal(held_out[:count], held_out[count:])
    assert len(held_out.flatten(1).unique(dim=0)) == count


def test_windows_hold_what_the_file_shows(world: Clips, films: Path) -> None:
    """Token values against a reading of the file by itself; sight and sound of one window begin together."""
    name, start, _ = spans(world, "validation")[1]
    clip = read_clip(films / name, video_hz=8.0, size=16, sample_rate=16_000)
    batch = world.batch("validation", torch.tensor([1]))
    video, audio = world.untokenize({name: stream.tokens for name, stream in batch.streams.items()})
    pictures = clip.frames[round(start * 8) :][:8].astype(np.float32) / 255
    assert video[0].numpy() * 0.3 + 0.45 == pytest.approx(pictures, abs=1e-5)
    bands = world.mel.encode(torch.from_numpy(clip.sound)[None])[0, round(start * 50) :][:50]
    assert torch.equal(audio[0], bands)


def test_flash_and_beep_fall_together_in_tokens(tmp_path: Path) -> None:
    for number in range(2):
        film(tmp_path / f"{number}.mp4", 4.0, event=2.5)
    world = Clips(path=str(tmp_path), validation_share=0.0, test_share=0.0, **SMALL)
    for number, (_, begin, end) in enumerate(spans(world, "train")):
        if begin <= 2.5 < end:
            index = next(i for i in range(10**4) if drawn(world, i) == number)
            batch = world.batch("train", torch.tensor([index]))
            video, audio = world.untokenize({name: stream.tokens for name, stream in batch.streams.items()})
            flash = video[0].mean((1, 2, 3)).argmax() / 8
            beep = (audio[0].mean(1).diff().argmax() + 1) / 50
            assert flash == pytest.approx(2.5 - begin, abs=1e-6)
            assert abs(float(beep - flash)) <= 0.04


def drawn(world: Clips, index: int) -> int:
    from nava_lab.rng import uniform

    number = uniform(world.seed("train", "window"), torch.tensor([index]), 1)[0, 0]
    return int(number * len(world.windows["train"]))


def test_films_are_dealt_whole_and_stay_where_they_are(world: Clips, films: Path, tmp_path: Path) -> None:
    dealt = {split: {name for name, _, _ in spans(world, split)} for split in ("train", "validation", "test")}
    assert sum(map(len, dealt.values())) == len(set.union(*dealt.values())) == 12
    shutil.copytree(films, tmp_path / "more", ignore=shutil.ignore_patterns(".nava-cache"))
    for number in range(3):
        film(tmp_path / "more" / f"new {number}.mp4")
    more = Clips(path=str(tmp_path / "more"), validation_share=0.3, test_share=0.2, **SMALL)
    for split, names in dealt.items():
        assert names <= {name for name, _, _ in spans(more, split)}
    assert more.data_version() != world.data_version()


def test_names_decide_in_any_unicode_form() -> None:
    assert share("caf\u00e9.mp4") == share("cafe\u0301.mp4") != share("cafe.mp4")
    assert np.histogram([share(f"{n}.mp4") for n in range(4000)], 4, (0, 1))[0] == pytest.approx(1000, abs=120)


@pytest.mark.parametrize("lengths", [(6.0,), (2.0, 4.0)])
def test_too_few_films_are_cut_by_time(tmp_path: Path, lengths: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    for number, seconds in enumerate(lengths):
        film(tmp_path / f"{number}.mp4", seconds)
    world = Clips(path=str(tmp_path), **SMALL)
    world.prepare()
    assert "warning" in (said := capsys.readouterr().err)
    assert "split by time" in said
    parts = {split: spans(world, split) for split in ("train", "validation", "test")}
    assert all(parts.values())
    for split, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for name, begin, end in parts[split]:
            assert not any(name == also and begin < until and since < end for also, since, until in parts[other])


def test_shares_of_zero_hold_out_nothing(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = Clips(path=str(films), validation_share=0.0, test_share=0.0, **SMALL)
    world.prepare()
    assert "split by time" not in capsys.readouterr().err
    assert {name for name, _, _ in spans(world, "train")} == {film.name for film in world.library.films}
    with pytest.raises(ValueError, match="test_share is 0"):
        world.batch("test", torch.arange(1))


def test_skipped_files_are_named_with_their_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film(tmp_path / "good, 映画 [b]é.mp4", 6.0)
    film(tmp_path / "too short.mp4", 0.5, event=0.1)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "text.mp4").write_text("words")
    (tmp_path / "notes.txt").write_text("no film, and not said to be one")
    (tmp_path / ".hidden.mp4").write_text("hidden")
    whole = film(tmp_path / "whole.mkv.mp4", 4.0)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:5000])
    whole.unlink()
    world = Clips(path=str(tmp_path), **SMALL)
    world.prepare()
    said = capsys.readouterr().err
    lines = {line.split(":")[0]: line for line in said.splitlines()}
    assert "only 0.5 s" in lines["skipped too short.mp4"]
    assert "not a video" in lines["skipped sub/text.mp4"]
    assert "truncated" in lines["skipped cut.mp4"]
    assert len([line for line in lines if line.startswith("skipped")]) == len(world.library.skipped) == 3
    assert [film.name for film in world.library.films] == ["good, 映画 [b]é.mp4"]


def test_folders_without_use(tmp_path: Path) -> None:
    def refusal(path: Path, **settings: float) -> str:
        with pytest.raises(ValueError, match=r"clips\.path=") as caught:
            Clips(path=str(path), **(SMALL | settings)).prepare()
        return str(caught.value)

    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "holds no video file that is usable" in refusal(tmp_path)
    text = tmp_path / "text.mp4"
    text.write_text("words")
    assert "not a folder" in refusal(text)
    assert "text.mp4: truncated, broken or not a video" in refusal(tmp_path)
    film(tmp_path / "short.mp4", 1.0, event=0.5)
    assert "too short: it must give windows of 1 s" in refusal(tmp_path)
    assert "short.mp4: only 1 s of picture with sound; a window needs 3 s" in refusal(tmp_path, window_s=3.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_s": 0.3}, "number of pictures in a window"),
        ({"stride_s": 0.3}, "number of pictures in a stride"),
        ({"video_patch": 5}, "number of patches"),
        ({"audio_patch": 7}, "number of audio tokens"),
        ({"sample_rate": 16_001}, "sample_rate=16001"),
        ({"bands": 500}, "bands=500"),
        ({"validation_share": 0.6, "test_share": 0.4}, "leave something for training"),
        ({"stride_s": 0.0}, "must be positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clips(**settings)


def test_files_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4", 6.0)
    read: list[str] = []
    monkeypatch.setattr(media_library, "read_clip", lambda file, **how: read.append(Path(file).name) or read_clip(file, **how))
    first = Clips(path=str(tmp_path), **SMALL)
    first.prepare()
    version = first.data_version()
    assert list((tmp_path / ".nava-cache").glob("*.safetensors"))
    assert not list((tmp_path / ".nava-cache").glob(".*"))
    other_windows = Clips(path=str(tmp_path), **(SMALL | {"window_s": 2.0, "video_patch": 8}))
    assert other_windows.data_version() == version
    assert read == ["a.mp4"]
    Clips(path=str(tmp_path), **(SMALL | {"bands": 20})).prepare()
    assert read == ["a.mp4"] * 2
    film(path, 6.0, seed=1)
    os.utime(path, ns=(1, 1))
    assert Clips(path=str(tmp_path), **SMALL).data_version() != version
    assert read == ["a.mp4"] * 3
    for cached in (tmp_path / ".nava-cache").iterdir():
        cached.write_bytes(b"broken")
    Clips(path=str(tmp_path), **SMALL).prepare()
    assert read == ["a.mp4"] * 4


def test_read_only_folders_keep_their_cache_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "films"
    film(folder / "a.mp4", 6.0)
    folder.chmod(0o555)
    try:
        world = Clips(path=str(folder), **SMALL)
        world.prepare()
        assert [file.name for file in folder.iterdir()] == ["a.mp4"]
        assert world.library.films[0].cache.is_relative_to(tmp_path / "cache" / "nava-lab")
        (tmp_path / "blocked").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
        with pytest.raises(ValueError, match="set XDG_CACHE_HOME"):
            Clips(path=str(folder), **SMALL).prepare()
    finally:
        folder.chmod(0o755)


def test_data_version_goes_by_content_not_place(films: Path, world: Clips, tmp_path: Path) -> None:
    shutil.copytree(films, tmp_path / "copy", ignore=shutil.ignore_patterns(".nava-cache"), copy_function=shutil.copyfile)
    copy = Clips(path=str(tmp_path / "copy"), **SMALL)
    assert copy.data_version() == world.data_version()
    assert world.data_version().startswith("clips-1-")


def test_worlds_travel_to_worker_processes(world: Clips) -> None:
    world.prepare()
    there = pickle.loads(pickle.dumps(world))
    assert there == world
    index = torch.arange(3)
    assert torch.equal(there.batch("test", index).streams["video"].tokens, world.batch("test", index).streams["video"].tokens)


def test_clip_is_seen_and_heard(world: Clips) -> None:
    batch = world.batch("train", torch.arange(4))
    streams = {name: stream.tokens for name, stream in batch.streams.items()}
    clip = world.clip(streams, 2)
    assert clip.frames.shape == (8, 16, 16, 3)
    assert (clip.frame_rate, clip.sample_rate) == (8.0, 16_000)
    assert len(clip.sound) == 16_000
    assert np.abs(clip.sound).max() <= 1
    video, _ = world.untokenize(streams)
    assert clip.frames / 255 == pytest.approx(video[2].numpy() * 0.3 + 0.45, abs=1e-5)


KNOBS = {
    "window_s": 1.5,
    "video_hz": 4.0,
    "audio_hz": 100.0,
    "size": 32,
    "video_patch": 8,
    "bands": 20,
    "audio_patch": 10,
    "sample_rate": 8000,
    "stride_s": 1.0,
    "validation_share": 0.6,
    "test_share": 0.5,
}


ELSEWHERE = {"path", "caption_files", "encoder", "caption_tokens"}  # captions: tests/unit/conditioning/test_text_frozen.py


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Clips) if field.name not in ELSEWHERE])
def test_every_knob_changes_the_data(world: Clips, field: str) -> None:
    other = dataclasses.replace(world, **{field: KNOBS[field]})
    here, there = (
        {name: part.tokens for name, part in each.batch("train", torch.arange(16)).streams.items()} for each in (world, other)
    )
    assert any(here[name].shape != there[name].shape or not torch.equal(here[name], there[name]) for name in here)


def test_a_run_without_test_windows_is_refused_before_training(films: Path) -> None:
    from nava_lab.config import load
    from nava_lab.study.run import prepared

    with pytest.raises(ValueError, match="holds out 0 clips for the test and scores need 2"):
        prepared(load(["world=clips", f"clips.path={films}", "world.test_share=0"]))


def test_one_film_gives_two_windows_to_the_test(tmp_path: Path) -> None:
    film(tmp_path / "only.mp4", seconds=8.0)
    world = Clips(path=str(tmp_path), **SMALL)
    world.prepare()
    assert world.count("test") == 2
    assert world.count("validation") >= 1
