"""Prompts to what Wan was trained on: the last hidden states of UMT5, each prompt encoded once and kept on disk."""

import hashlib
import html
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from forcing import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

# What guidance leads the released models away from: garish, still, blurred, subtitled, deformed, walking backwards.
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"  # noqa: RUF001
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)

_KEPT = 256  # prompts held in memory; the others come from disk
_NEEDS = 'prompts need the packages transformers and ftfy: pip install "forcing[wan]"'
_TEXT = "text"  # the only tensor of a cached file


class UMT5:
    """The text encoder of a diffusers Wan pipeline `folder`, loaded when a prompt is met that was never encoded.

    length: tokens that a prompt is cut or padded to. dtype: to compute in; None, as the weights are stored. cache: a
    folder for embeddings; by default `text` in $FORCING_CACHE, or else in ~/.cache/forcing. A file there that is
    damaged is encoded again and replaced. ValueError where `folder` is not complete.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cache: Path | None = None,
        negative: str = NEGATIVE,
        length: int = 512,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}: a prompt takes at least 1 token")
        self.width = _width(folder)
        self.folder, self.negative, self.length, self.device, self.dtype = folder, negative, length, device, dtype
        self.cache = _cache() if cache is None else cache
        self._loaded: tuple[PreTrainedTokenizerBase, UMT5EncoderModel] | None = None
        self._known: dict[str, Tensor] = {}
        self.cut: dict[str, int] = {}  # prompts encoded here that are longer than `length`, and their tokens

    @cached_property
    def digest(self) -> str:
        """Identifies the encoder and its tokenizer by what their files hold, large ones by a sample."""
        config = self.folder / "text_encoder" / "config.json"
        return files.mark([config, *_weights(self.folder), *_tokenizer(self.folder)])[:16]

    def encode(self, prompts: Sequence[str | None]) -> Tensor:
        """[B, length, width] float32 on the CPU, zeros behind a prompt's own tokens. None is the empty prompt."""
        texts = _texts(prompts)
        out = torch.zeros(len(texts), self.length, self.width)
        for row, text in zip(out, texts, strict=True):
            known = self._embedding(text)
            row[: len(known)] = known
        return out

    def null(self, batch: int) -> Tensor:
        """[batch, length, width]: the negative prompt."""
        return self.encode([self.negative] * batch)

    def release(self) -> None:
        """Forget the encoder, which takes gigabytes; a prompt that was never encoded loads it again."""
        self._loaded = None
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()  # what torch holds back for itself, other processes on that GPU cannot have

    def _embedding(self, text: str) -> Tensor:
        if text not in self._known:
            asked = json.dumps([self.digest, self.length, str(self.dtype), text])
            path = self.cache / f"{hashlib.sha256(asked.encode()).hexdigest()}.safetensors"
            known = self._kept(path)
            if known is None:
                files.probe(path)  # before minutes of loading
                known = self._computed(text)
                files.write(path, save({_TEXT: known}))
            if len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[text] = known
        return self._known[text]

    def _kept(self, path: Path) -> Tensor | None:
        # None: not there, or damaged. Both are mended by encoding.
        try:
            found = load(path.read_bytes()).get(_TEXT)
        except (FileNotFoundError, SafetensorError):
            return None
        if found is None or found.ndim != 2 or not 1 <= len(found) <= self.length or found.shape[1] != self.width:
            return None
        return found if found.isfinite().all() else None

    def _computed(self, text: str) -> Tensor:
        """[n, width] of a prompt with n tokens, as the encoder gives it."""
        if self._loaded is None:
            self._loaded = self._load()
        tokenizer, model = self._loaded
        told = tokenizer(text, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt")
        ids, mask = told["input_ids"].to(self.device), told["attention_mask"].to(self.device)
        tokens = len(tokenizer(text, verbose=False)["input_ids"])
        if tokens > self.length:
            self.cut[text] = tokens
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state[0, : int(mask.sum())]
        if not hidden.isfinite().all():
            raise ValueError(f"the text encoder in {self.folder} gives numbers that are not finite for {text!r}")
        return hidden.cpu().contiguous()

    def _load(self) -> "tuple[PreTrainedTokenizerBase, UMT5EncoderModel]":
        try:
            from transformers import AutoTokenizer, UMT5EncoderModel
        except ModuleNotFoundError as missing:
            raise ValueError(_NEEDS) from missing
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
                loaded: Any = UMT5EncoderModel.from_pretrained(
                    self.folder / "text_encoder",
                    local_files_only=True,
                    dtype=self.dtype or "auto",
                    output_loading_info=True,
                )
            model, told = loaded
        except Exception as damage:  # tokenizers has no class of its own for a file that it cannot read
            raise ValueError(f"the text encoder in {self.folder} cannot be loaded ({_line(damage)})") from damage
        if told["missing_keys"]:  # they would be random, and so would every embedding
            lacking = sorted(told["missing_keys"])
            raise ValueError(f"the text encoder in {self.folder} lacks {len(lacking)} weights, such as {lacking[0]}")
        return tokenizer, model.to(self.device).eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's own progress bars, which would run into ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def clean(prompt: str) -> str:
    """A prompt as Wan's own pipeline reads it: broken encodings mended, HTML resolved, single spaces."""
    try:
        import ftfy
    except ModuleNotFoundError as missing:
        raise ValueError(_NEEDS) from missing
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def _texts(prompts: Sequence[str | None]) -> list[str]:
    wrong = [each for each in prompts if not isinstance(each, str | None)]
    if isinstance(prompts, str) or wrong:
        raise ValueError(f"prompts are a list of texts, with None for no prompt; got {(wrong or [prompts])[0]!r}")
    return [clean(prompt or "") for prompt in prompts]


def _width(folder: Path) -> int:
    """The width of the embeddings; ValueError where `folder` lacks anything that is needed to make them."""
    config = folder / "text_encoder" / "config.json"
    parts = {"text_encoder": config.is_file() and _weights(folder), "tokenizer": _tokenizer(folder)}
    lacking = [name for name, found in parts.items() if not found]
    if lacking:
        raise ValueError(
            f"{folder} is not a Wan pipeline: {' and '.join(lacking)} missing or not complete (a prompt needs its "
            f"folders text_encoder, with config.json and weights, and tokenizer)"
        )
    for path in _weights(folder):
        if path.suffix == ".safetensors":
            _readable(path)
    try:
        width = json.loads(config.read_text(encoding="utf-8"))["d_model"]
    except (ValueError, KeyError, TypeError) as damage:
        raise ValueError(f"{config} is damaged ({_line(damage)})") from damage
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"{config} is damaged: d_model is {width!r}, it must be a whole number of at least 1")
    return width


def _readable(path: Path) -> None:
    try:
        with safe_open(path, "pt"):  # reads the header, which says how long the file must be
            return
    except SafetensorError as damage:
        raise ValueError(f"{path} is damaged ({_line(damage)})") from damage


def _weights(folder: Path) -> list[Path]:
    home = folder / "text_encoder"
    return sorted(home.glob("*.safetensors")) or sorted(home.glob("*.bin"))


def _tokenizer(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "tokenizer").glob("[!.]*") if path.is_file())


def _cache() -> Path:
    return Path(os.environ.get("FORCING_CACHE") or "~/.cache/forcing").expanduser() / "text"


def _line(damage: Exception) -> str:
    return f"{type(damage).__name__}: {' '.join(str(damage).split())}"
