"""World ``clips``: windows of real video files, pictures and sound on one clock.

    film.mp4   |----------------------------------------------------|
    windows    [0 ---- 2 s)                                             one every stride_s seconds
                    [1 ---- 3 s)   ...
    video      16 pictures a window, each cut into patches              one token per patch and picture
    audio      100 frames of log-mel bands a window                     one token per audio_patch frames
    text       ""                                  or what a caption says of the film, through a frozen encoder

Films, not windows, are dealt to train, validation and test, by a hash of their names: adding one moves no other. Where
that leaves a split without a film, the films laid end to end are cut by time instead, without overlap: the last windows
are the test's, those before them the validation's. One scene may then stand on both sides of a cut; a warning says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nava_lab.conditioning.text import WordTokenizer
from nava_lab.conditioning.text_frozen import FrozenEncoder
from nava_lab.media.captions import read_captions
from nava_lab.media.codecs import MelCodec, decode_pixels, encode_pixels
from nava_lab.media.decode import read_clip, read_pictures, read_sound, read_still
from nava_lab.media.library import Library, Settings, hashed, open_library, share, warn
from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.streams import Batch, Interface, ModalitySpec, Stream, onto, time_positions
from nava_lab.worlds.base import SPLITS, Clip, World, positive, whole

Window = tuple[int, int]  # number of the film, number of the stride


@worlds.register("clips")
@dataclass(frozen=True)
class Clips(World):
    """Windows of the video files in a folder.

    Attributes:
        path: the folder, searched at any depth.
        window_s: seconds of a window.
        video_hz: pictures per second.
        audio_hz: frames of bands per second.
        size: pixels along an edge of the square picture.
        video_patch: pixels along an edge of a video token.
        bands: mel bands of the sound.
        audio_patch: frames of bands per audio token.
        sample_rate: samples per second from which the bands are made.
        stride_s: seconds from one window's start to the next one's.
        validation_share: share of the films held out for validation; 0 holds out none.
        test_share: share of the films held out for the test; 0 holds out none, which serves looking, for a run is scored on them.
        caption_files: "sidecar" (film.txt beside film.mp4), or a .json or .tsv file of captions; empty for none.
        encoder: the frozen encoder that reads them: a folder or hub name of T5, UMT5 or another model of ``transformers``.
        caption_tokens: most tokens of a caption.
    """

    path: str = ""
    window_s: float = 2.0
    video_hz: float = 8.0
    audio_hz: float = 50.0
    size: int = 32
    video_patch: int = 16
    bands: int = 32
    audio_patch: int = 5
    sample_rate: int = 16_000
    stride_s: float = 1.0
    validation_share: float = 0.1
    test_share: float = 0.1
    caption_files: str = ""
    encoder: str = ""
    caption_tokens: int = 64

    version = "clips-1"
    metrics = ("loss",)
    headline = "loss"
    SHORTCUTS: ClassVar[Mapping[str, str]] = {
        "clips.path": "path",
        "clips.captions": "caption_files",
        "clips.encoder": "encoder",
    }

    def __post_init__(self) -> None:
        positive(
            self,
            "window_s",
            "video_hz",
            "audio_hz",
            "size",
            "video_patch",
            "bands",
            "audio_patch",
            "sample_rate",
            "stride_s",
        )
        whole(self, self.window_s * self.video_hz, "the number of pictures in a window")
        whole(self, self.window_s * self.audio_hz / self.audio_patch, "the number of audio tokens in a window")
        whole(self, self.size / self.video_patch, "the number of patches along an edge")
        whole(self, self.stride_s * self.video_hz, "the number of pictures in a stride")
        whole(self, self.stride_s * self.audio_hz, "the number of audio frames in a stride")
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"world.validation_share={self.validation_share} and world.test_share={self.test_share} "
                "must not be negative and leave something for training"
            )
        if bool(self.caption_files) != bool(self.encoder):
            raise ValueError(
                f"clips.captions={self.caption_files or '(none)'} and clips.encoder={self.encoder or '(none)'} go together: "
                "captions are read by an encoder, such as clips.encoder=google/umt5-small"
            )
        _ = self.mel  # which refuses rates and bands that do not fit

    @cached_property
    def mel(self) -> MelCodec:
        return MelCodec(self.sample_rate, float(self.audio_hz), self.bands)

    @property
    def frames(self) -> tuple[int, int]:
        """Pictures and frames of bands in a window."""
        return round(self.window_s * self.video_hz), round(self.window_s * self.audio_hz)

    def interface(self) -> Interface:
        grid = self.size // self.video_patch
        pictures, sounds = self.frames
        specs = {
            "video": ModalitySpec(3 * self.video_patch**2, pictures * grid**2, 1 / self.video_hz, (grid, grid)),
            "audio": ModalitySpec(self.bands * self.audio_patch, sounds // self.audio_patch, self.audio_patch / self.audio_hz),
        }
        return Interface(specs, (self.tokenizer or WordTokenizer([], 1)).spec)

    @cached_property
    def tokenizer(self) -> FrozenEncoder | None:
        """What makes captions into text streams; None where there are none."""
        return FrozenEncoder(self.encoder, self.caption_tokens) if self.caption_files else None

    @cached_property
    def said(self) -> Mapping[str, str]:
        """Captions by the films' names."""
        return read_captions(Path(self.path).expanduser(), self.caption_files, [film.name for film in self.library.films])

    # What the folder holds

    @cached_property
    def library(self) -> Library:
        """The folder's films, decoded on first use."""
        if not self.path:
            raise ValueError("world=clips needs clips.path=FOLDER, a folder of video files with sound")
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise ValueError(f"clips.path={self.path} {what}; give a folder of video files with sound")
        library = open_library(folder, Settings(float(self.video_hz), self.size, self.mel), self.window_s)
        if not library.films:
            reasons = "".join(f"\n  {clip.path.relative_to(folder)}: {clip.reason}" for clip in library.skipped)
            raise ValueError(
                f"clips.path={self.path} holds no video file that is usable"
                + (f":{reasons}" if reasons else f"; it needs files with sound of at least window_s={self.window_s:g} s")
            )
        return library

    @cached_property
    def windows(self) -> Mapping[str, Int[Tensor, "w 2"]]:
        """Every split's windows: number of the film, number of the stride at which the window begins."""
        dealt = self._by_film()
        missing = [split for split, least in self._wanted.items() if len(dealt[split]) < least]
        if missing:
            dealt = self._by_time()
            warn(
                f"{len(self.library.films)} usable films leave too little for {' and '.join(missing)}: "
                "windows are split by time instead, without overlap, and splits may share a film"
            )
        if any(len(dealt[split]) < least for split, least in self._wanted.items()):
            needed = ", ".join(f"{least} to {split}" for split, least in self._wanted.items())
            raise ValueError(
                f"clips.path={self.path} is too short: it must give windows of {self.window_s:g} s apart from each other, "
                f"{needed}; add files, or shorten world.window_s or world.stride_s"
            )
        return {split: torch.tensor(dealt[split], dtype=torch.int64).reshape(-1, 2) for split in SPLITS}

    @property
    def _wanted(self) -> dict[str, int]:
        """Splits that are to hold windows, and the fewest that serve; an interval over clips needs two."""
        shares = {"train": 1.0, "validation": self.validation_share, "test": self.test_share}
        return {split: 2 if split == "test" else 1 for split in SPLITS if shares[split] > 0}

    def _starts(self, film: int) -> range:
        """Numbers of the strides at which a window of the film begins."""
        pictures, sounds = (have - need for have, need in zip(self.library.films[film].steps, self.frames, strict=True))
        last = min(pictures / (self.stride_s * self.video_hz), sounds / (self.stride_s * self.audio_hz))
        return range(int(last + 1e-6) + 1)

    def _by_film(self) -> dict[str, list[Window]]:
        dealt: dict[str, list[Window]] = {split: [] for split in SPLITS}
        for number, film in enumerate(self.library.films):
            at = share(film.name)
            held_out = "validation" if at < self.test_share + self.validation_share else "train"
            dealt["test" if at < self.test_share else held_out] += [(number, start) for start in self._starts(number)]
        return dealt

    def _by_time(self) -> dict[str, list[Window]]:
        """Windows of the films laid end to end; one that overlaps the next split's first window is left out."""
        order = sorted(range(len(self.library.films)), key=lambda number: share(self.library.films[number].name))
        rest = [(number, start) for number in order for start in self._starts(number)]
        total = len(rest)
        dealt: dict[str, list[Window]] = {split: [] for split in SPLITS}
        for split, part in (("test", self.test_share), ("validation", self.validation_share)):
            if part > 0 and rest:
                count = max(self._wanted[split], round(part * total))
                rest, dealt[split] = rest[:-count], rest[-count:]
                film, first = dealt[split][0]
                last = first - self.window_s / self.stride_s + 1e-6  # the last start whose window ends by then
                rest = [(number, start) for number, start in rest if number != film or start <= last]
        dealt["train"] = rest
        return dealt

    def prepare(self) -> None:
        """Decode what the cache lacks, name what is skipped, and deal the windows."""
        _ = self.windows
        if self.tokenizer is not None:
            captions = [self._caption(number) for number in range(len(self.library.films))]
            if cut := self.tokenizer.cut(captions):
                films = sum(caption in cut for caption in captions)
                warn(
                    f"{films} of {len(captions)} films have captions longer than world.caption_tokens={self.caption_tokens}, "
                    f"of which the end is not read, first '{cut[0][:60]}': raise world.caption_tokens"
                )
            without = [film.name for film in self.library.films if not self.said.get(film.name)]
            if without:
                of = f"{len(without)} of {len(self.library.films)}"
                warn(f"{of} films have no caption, {without[0]} first: nothing is said of them")

    def count(self, split: str) -> int | None:
        """Windows held out; training draws from its own without end."""
        return None if split == "train" else len(self.windows[split])

    def data_version(self) -> str:
        """The version, and a hash of the usable files' names, sizes and contents."""
        if not self.path:
            return self.version  # no data are chosen yet; prepare() says what to do
        films = [f"{film.name}|{film.size}|{film.digest}" for film in self.library.films]
        if self.tokenizer is not None:
            films += [self.tokenizer.identity, *(f"{name}|{text}" for name, text in sorted(self.said.items()))]
        return f"{self.version}-{hashed(*films)[:16]}"

    # Windows as tokens and back

    def batch(self, split: str, index: Int[Tensor, " b"]) -> Batch:
        """Windows of these numbers: drawn for training, whose numbers never end; counted round and round elsewhere."""
        return replace(self.sent(split, index.cpu(), index.device), index=index)

    def sent(self, split: str, index: Int[Tensor, " b"], device: torch.device) -> Batch:
        chosen = self._chosen(split, index)
        parts = [self._read(*window) for window in chosen]
        video, audio = (onto(torch.stack(part), device) for part in zip(*parts, strict=True))
        text = (self.tokenizer or WordTokenizer([], 1))([self._caption(film) for film, _ in chosen]).to(device)
        return Batch(self.tokens(encode_pixels(video.float() / 255), audio), text, index)

    def _chosen(self, split: str, index: Int[Tensor, " b"]) -> list[Window]:
        seed, windows = self.seed(split, "window"), self.windows[split]
        if not len(windows):
            raise ValueError(f"world=clips has no {split} windows: world.{split}_share is 0")
        numbers = index.cpu()
        chosen = (uniform(seed, numbers, 1)[:, 0] * len(windows)).long() if split == "train" else numbers % len(windows)
        return [(film, start) for film, start in windows[chosen].tolist()]

    def captions(self, split: str, index: Int[Tensor, " b"]) -> list[str]:
        """What is said of these windows' films; "" where nothing is."""
        if not self.caption_files:
            return super().captions(split, index)
        return [self._caption(film) for film, _ in self._chosen(split, index)]

    def _caption(self, film: int) -> str:
        return self.said.get(self.library.films[film].name, "") if self.caption_files else ""

    def _read(self, film: int, start: int) -> tuple[UInt8[Tensor, "t h w 3"], Float[Tensor, "n f"]]:
        video = round(start * self.stride_s * self.video_hz)
        audio = round(start * self.stride_s * self.audio_hz)
        pictures, sounds = self.frames
        return self.library.films[film].window(slice(video, video + pictures), slice(audio, audio + sounds))

    def read(self, path: Path, names: Sequence[str], still: bool = False, last: bool = False) -> dict[str, Tensor]:
        """A window of a media file that need not be among the world's own; a modality that is not asked for may be missing."""
        pictures, sounds = self.frames
        video = torch.zeros(pictures, self.size, self.size, 3, dtype=torch.uint8)
        sound = torch.zeros(round(self.window_s * self.sample_rate))
        if still:
            video = torch.from_numpy(read_still(path, self.size).copy()).expand_as(video)
        elif set(names) == {"video", "audio"}:
            clip = read_clip(path, video_hz=self.video_hz, size=self.size, sample_rate=self.sample_rate, least_s=self.window_s)
            start = len(clip.frames) - pictures if last else 0
            video = torch.from_numpy(clip.frames[start : start + pictures])
            begin = round(start / self.video_hz * self.sample_rate)
            sound = torch.from_numpy(clip.sound[begin : begin + len(sound)])
        elif "video" in names:
            video = torch.from_numpy(read_pictures(path, self.video_hz, self.size, self.window_s)[:pictures])
        else:
            sound = torch.from_numpy(read_sound(path, self.sample_rate, self.window_s)[: len(sound)])
        tokens = self.tokens(encode_pixels(video.unsqueeze(0).float() / 255), self.mel.encode(sound.unsqueeze(0))[:, :sounds])
        return {name: tokens[name].tokens for name in names}

    def tokens(self, video: Float[Tensor, "b t h w 3"], audio: Float[Tensor, "b n f"]) -> dict[str, Stream]:
        """Scaled pictures and scaled bands as tokens."""
        p = self.video_patch
        spec = self.interface().modalities
        values = {
            "video": rearrange(video, "b t (y p) (x q) c -> b (t y x) (p q c)", p=p, q=p),
            "audio": rearrange(audio, "b (n p) f -> b n (p f)", p=self.audio_patch),
        }
        return {
            name: Stream(part, time_positions(part.shape[1], spec[name].seconds, spec[name].grid, part.device))
            for name, part in values.items()
        }

    def untokenize(self, streams: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Token values back to scaled pictures and bands, the inverse of ``tokens``."""
        p, grid = self.video_patch, self.size // self.video_patch
        video = rearrange(streams["video"], "b (t y x) (p q c) -> b t (y p) (x q) c", y=grid, x=grid, p=p, q=p)
        return video, rearrange(streams["audio"], "b n (p f) -> b (n p) f", f=self.bands)

    def clip(self, streams: Mapping[str, Tensor], row: int) -> Clip:
        """The pictures, and a sound that Griffin-Lim finds for the bands."""
        video, audio = self.untokenize({name: part[row : row + 1].float().cpu() for name, part in streams.items()})
        frames = (decode_pixels(video[0]) * 255).round().to(torch.uint8)
        sound = self.mel.decode(audio)[0].clamp(-1, 1)
        return Clip(frames.numpy(), self.video_hz, sound.numpy(), self.sample_rate)
