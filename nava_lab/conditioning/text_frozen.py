"""Captions as features of a pretrained text encoder (T5, UMT5, or any other of ``transformers``), frozen and kept on disk.

    captions -> the encoder's own tokenizer -> last hidden states of the real tokens -> one file per caption
    batch       features "b l f" padded with zeros to one length, and which of them are real

The cache lies in the user's cache folder, by encoder (its configuration and weights) and caption; the encoder is loaded only
where a caption is not there. Of an encoder-decoder the encoder's states are taken, never the decoder's. An empty caption is
encoded like any other, and stands where a caption is dropped.

Shape letters: b batch, l tokens, f features.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nava_lab.conditioning.text import text_positions
from nava_lab.streams import Stream, TextSpec

EXTRA = "pip install -e '.[text]'"
BATCH = 32  # captions encoded at a time
WEIGHTS = ("*.safetensors", "*.bin")


def transformers() -> Any:
    """The library, or one line that says how to get it."""
    try:
        import transformers as library
    except ImportError:
        raise ValueError(f"clips.encoder needs the library transformers, which is not installed: {EXTRA}") from None
    return library


@dataclass(frozen=True)
class FrozenEncoder:
    """A pretrained encoder of captions.

    Attributes:
        model: a folder that ``save_pretrained`` wrote (model and tokenizer), or a name on the Hugging Face hub.
        length: most tokens of a caption; a longer one is cut, and ``cut`` counts them.
    """

    model: str
    length: int = 64

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"world.caption_tokens={self.length} must be at least 1")

    @cached_property
    def config(self) -> Any:
        """The encoder's configuration, which needs no weights."""
        return self._load("AutoConfig")

    @property
    def features(self) -> int:
        """Channels of a token."""
        found = getattr(self.config, "d_model", None) or getattr(self.config, "hidden_size", None)
        if not found:
            raise ValueError(f"clips.encoder={self.model}: its configuration names neither d_model nor hidden_size")
        return int(found)

    @property
    def spec(self) -> TextSpec:
        return TextSpec(self.length, features=self.features)

    @cached_property
    def identity(self) -> str:
        """A hash of the configuration and of what can be told of the weights without loading them."""
        told = json.dumps(self.config.to_dict(), sort_keys=True, default=str)
        parts = [told, str(self.length), getattr(self.config, "_commit_hash", None) or ""]
        if self._is_half:
            parts.append("encoder")  # what was once kept of such a model were its decoder's states
        folder = Path(self.model)
        if folder.is_dir():
            files = sorted({file for pattern in (*WEIGHTS, "*token*") for file in folder.glob(pattern)})
            parts += [f"{file.name}|{file.stat().st_size}|{_ends(file)}" for file in files]
        else:
            parts.append(self.model)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where this encoder's features are kept."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "nava-lab" / "text" / self.identity

    def prepare(self, captions: Sequence[str]) -> None:
        """Encode what the cache lacks, the empty caption with it."""
        missing = [caption for caption in dict.fromkeys(("", *captions)) if self._kept(caption) is None]
        if not missing:
            return
        tokenizer, model = self._load("AutoTokenizer"), self._encoder()
        for start in range(0, len(missing), BATCH):
            some = missing[start : start + BATCH]
            tokens = tokenizer(some, return_token_type_ids=False)["input_ids"]
            for caption, features, whole in zip(some, _encoded(tokenizer, model, some, self.length), tokens, strict=True):
                self._keep(caption, features, len(whole))

    def cut(self, captions: Sequence[str]) -> list[str]:
        """Those of the captions, each once, that have more than ``length`` tokens: what comes after is not read."""
        self.prepare(captions)
        known = {caption: self._kept(caption) for caption in dict.fromkeys(captions)}
        return [caption for caption, kept in known.items() if kept is not None and kept[1] > self.length]

    def __call__(self, captions: Sequence[str]) -> Stream:
        """Captions of different lengths as one padded stream of features."""
        self.prepare(captions)
        found = self._padded(captions)
        empty = self._padded([""])
        return Stream(found.tokens, found.positions, found.valid, empty=empty)

    def _padded(self, captions: Sequence[str]) -> Stream:
        kept = [self._kept(caption) for caption in captions]
        tokens = torch.zeros(len(kept), self.length, self.features)
        valid = torch.zeros(len(kept), self.length, dtype=torch.bool)
        for number, known in enumerate(kept):
            assert known is not None
            row, _ = known
            tokens[number, : len(row)], valid[number, : len(row)] = row, True
        return Stream(tokens, text_positions(self.length), valid)

    def _path(self, caption: str) -> Path:
        return self.folder / f"{hashlib.sha256(caption.encode()).hexdigest()[:32]}.safetensors"

    def _kept(self, caption: str) -> tuple[Float[Tensor, "l f"], int] | None:
        """A caption's features and its number of tokens uncut, from memory or disk; None where they are not there, or broken."""
        memory: dict[str, tuple[Tensor, int]] = self.__dict__.setdefault("_memory", {})
        if caption not in memory:
            try:
                found = load_file(self._path(caption))
                memory[caption] = found["features"], int(found["tokens"])
            except (OSError, SafetensorError, KeyError):
                return None
        return memory[caption]

    def _keep(self, caption: str, features: Float[Tensor, "l f"], tokens: int) -> None:
        path = self._path(caption)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            save_file({"features": features.contiguous(), "tokens": torch.tensor(tokens)}, draft)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    @property
    def _mapped(self) -> bool:
        """Whether the library itself says which model of this kind encodes text (T5, UMT5, CLIP's text half)."""
        return type(self.config) in transformers().MODEL_FOR_TEXT_ENCODING_MAPPING

    @property
    def _is_half(self) -> bool:
        """Whether it is the encoder within an encoder-decoder of which the library does not say that, such as BART."""
        return bool(getattr(self.config, "is_encoder_decoder", False)) and not self._mapped

    def _encoder(self) -> Any:
        """The encoder half of an encoder-decoder, or the whole of an encoder such as BERT.

        Raises:
            ValueError: it has no encoder that reads words.
        """
        model = self._load("AutoModelForTextEncoding" if self._mapped else "AutoModel")
        if self._is_half:
            model = model.get_encoder() if hasattr(model, "get_encoder") else None
        if model is None or "input_ids" not in inspect.signature(model.forward).parameters:
            raise ValueError(
                f"clips.encoder={self.model} ({type(self.config).__name__}) has no encoder that reads words: give one that "
                "does, such as google/umt5-small"
            )
        return model.float().eval().requires_grad_(False)

    def _load(self, kind: str) -> Any:
        try:
            return getattr(transformers(), kind).from_pretrained(self.model)
        except (OSError, ValueError, ImportError) as error:
            if str(error).startswith("clips.encoder"):
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(
                f"clips.encoder={self.model} cannot be loaded ({reason}): give a folder with model and tokenizer, or a hub name"
            ) from None


@torch.no_grad()
def _encoded(tokenizer: Any, model: Any, captions: Sequence[str], length: int) -> list[Float[Tensor, "l f"]]:
    """The last hidden states of each caption's real tokens; of one padding token where a caption has none at all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = {"padding": True, "truncation": True, "max_length": length, "return_token_type_ids": False}
    words = tokenizer(list(captions), return_tensors="pt", **how)
    ids, mask = words["input_ids"].long(), words["attention_mask"].bool()
    if ids.shape[1] == 0:
        ids, mask = torch.full((len(ids), 1), int(tokenizer.pad_token_id or 0)), torch.zeros(len(ids), 1, dtype=torch.bool)
    mask = mask.clone()
    mask[~mask.any(1), 0] = True
    found = model.to(device)(input_ids=ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state.float().cpu()
    return [row[real] for row, real in zip(found, mask, strict=True)]


def _ends(file: Path, size: int = 1 << 20) -> str:
    """A hash of a file's first and last mebibyte: gigabytes of weights are not read for a name."""
    with file.open("rb") as stream:
        digest = hashlib.sha256(stream.read(size))
        stream.seek(max(0, file.stat().st_size - size))
        digest.update(stream.read(size))
    return digest.hexdigest()[:16]
