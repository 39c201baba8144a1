"""Latent sets on disk: clips of video as latents, their captions as embeddings. docs/latents.md describes the folder.

A training process opens the folder and reads clips as it needs them; videos, codec and text encoder stay elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from forcing.cond import Cond
from forcing.data.order import indices
from forcing.data.shards import SPLITS, checksum
from forcing.stages import Batch

FORMAT = 1
KIND = "latents"
MANIFEST = "manifest.json"


class LatentsError(ValueError):
    """A latent set that is missing, damaged or of another format; the message names the file."""


@dataclass(frozen=True)
class LatentSet:
    """Clips of one shape, or prompts alone, whose manifest has been checked; `batch` reads from the files."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> LatentSet:
        """Check a set's manifest, its files' sizes and, with `verify`, their checksums."""
        folder = Path(path)
        found = cls(folder, read_manifest(folder))
        try:
            found._check_rows()
            found._check_files(verify)
        except LatentsError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as damage:
            raise LatentsError(f"{folder / MANIFEST} is damaged: {type(damage).__name__} {damage}") from damage
        return found

    def __len__(self) -> int:
        return len(self.manifest["clips"])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, C, h, w) of a clip of latents."""
        frames, channels, height, width = self.manifest["latents"]
        return frames, channels, height, width

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames that were encoded."""
        height, width = self.manifest["size"]
        return height, width

    @property
    def has_latents(self) -> bool:
        """False for a set of prompts alone."""
        return bool(self.manifest["shards"])

    @cached_property
    def digest(self) -> str:
        """Identifies the set: the sha256 of its manifest, which holds the checksums of everything else."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def split(self, name: str) -> np.ndarray:
        """Indices of the clips of one split, "train" or "heldout"; it may be empty."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: choose from {', '.join(SPLITS)}")
        return np.flatnonzero([row["split"] == name for row in self.manifest["clips"]])

    def batch(self, which: np.ndarray) -> Batch:
        """The clips `which`: latents float32 [B, F, C, h, w], zeros if there are none, and text [B, length, D].

        Text is padded with zeros to the set's longest; `uncond` tells what the text encoder says for no prompt.
        """
        rows = [self.manifest["clips"][int(index)] for index in which]
        if self.has_latents:
            latents = torch.stack([self._latents(row) for row in rows])
        else:
            latents = torch.zeros(len(rows), *self.shape)
        text = torch.stack([self._caption(row["caption"]) for row in rows])
        null = self._null.expand(len(rows), -1, -1)
        return Batch(latents, Cond({"text": text}), Cond({"text": null}))

    def clips(self, split: str) -> Iterator[tuple[Tensor, str]]:
        """The clips of one split, one by one: latents float32 [F, C, h, w], and the caption in words."""
        for index in self.split(split):
            row = self.manifest["clips"][index]
            yield self._latents(row), self.manifest["captions"][row["caption"]]

    def fixed(self, count: int) -> Batch:
        """The first `count` clips that are held out, or of the training ones if none is; fewer if there are fewer."""
        held = self.split("heldout")
        return self.batch((held if len(held) else self.split("train"))[:count])

    @cached_property
    def _null(self) -> Tensor:
        return self._text(self.manifest["uncond"]["file"], 0)

    @cached_property
    def _ends(self) -> np.ndarray:
        # how many captions there are up to the end of each text file
        return np.cumsum([row["captions"] for row in self.manifest["texts"]])

    def _latents(self, row: dict[str, Any]) -> Tensor:
        path = self.path / self.manifest["shards"][row["shard"]]["file"]
        return _read(path, "latents", row["index"], row["index"] + 1, self.shape)[0].float()

    def _caption(self, caption: int) -> Tensor:
        number = int(np.searchsorted(self._ends, caption, side="right"))
        row = self.manifest["texts"][number]
        return self._text(row["file"], caption - int(self._ends[number]) + row["captions"])

    def _text(self, name: str, index: int) -> Tensor:
        path = self.path / name
        start = int(_read(path, "ends", index - 1, index, ())[0]) if index else 0
        stop = int(_read(path, "ends", index, index + 1, ())[0])
        told = _read(path, "text", start, stop, (self.manifest["width"],))
        if len(told) > self.manifest["length"]:
            raise LatentsError(f"{path} holds a caption of {len(told)} tokens, not at most {self.manifest['length']}")
        return torch.nn.functional.pad(told.float(), (0, 0, 0, self.manifest["length"] - len(told)))

    def _check_rows(self) -> None:
        manifest, shape = self.manifest, (*self.shape, *self.size, self.manifest["length"], self.manifest["width"])
        told = sum(row["captions"] for row in manifest["texts"])
        if min(shape) < 1 or not manifest["clips"] or told != len(manifest["captions"]):
            raise LatentsError(f"{self.path / MANIFEST} is damaged: it names no clips, no shape, or not every caption")
        for number, row in enumerate(manifest["clips"]):
            there = range(manifest["shards"][row["shard"]]["clips"]) if self.has_latents else range(number, number + 1)
            if row["index"] not in there or row["caption"] not in range(told) or row["split"] not in SPLITS:
                raise LatentsError(f"{self.path / MANIFEST} is damaged at clip {number}")

    def _check_files(self, verify: bool) -> None:
        for row in (*self.manifest["shards"], *self.manifest["texts"], self.manifest["uncond"]):
            path = self.path / row["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != row["bytes"]:
                raise LatentsError(f"{path} " + ("is missing" if size is None else f"is not of {row['bytes']} bytes"))
            if verify and checksum(path) != row["sha256"]:
                raise LatentsError(f"{path} is damaged: its checksum is not the one in {MANIFEST}")


@dataclass(frozen=True)
class LatentSampler:
    """Batches of clips as a function of the step. Clips differ between the updates of one step."""

    data: LatentSet
    batch: int
    seed: int
    split: str = "train"

    def __post_init__(self) -> None:
        if not len(self._clips):
            raise ValueError(f"{self.data.path} has no clips of the split {self.split!r}")

    def batch_at(self, step: int, update: int) -> Batch:
        which = indices(self.seed * 1000 + update, step, self.batch, len(self._clips))
        return self.data.batch(self._clips[which])

    @cached_property
    def _clips(self) -> np.ndarray:
        return self.data.split(self.split)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a latent set; LatentsError if there is none, it is damaged or of another kind or format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise LatentsError(f"{folder} holds no latents: {path} does not exist")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as damage:
        raise LatentsError(f"{path} cannot be read: {damage}") from damage
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise LatentsError(f"{path} is not the manifest of a latent set")
    if manifest.get("format") != FORMAT:
        raise LatentsError(f"{path} has format {manifest.get('format')!r}; this version reads format {FORMAT}")
    return manifest


def _read(path: Path, name: str, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
    """Rows start..stop-1 of a tensor [n, *shape]; nothing else of the file is read."""
    try:
        with safe_open(path, "pt") as file:
            found = file.get_slice(name)[start:stop]
    except (OSError, SafetensorError, IndexError) as damage:
        raise LatentsError(f"{path} is damaged: {damage}") from damage
    if found.shape != (stop - start, *shape):
        raise LatentsError(f"{path} holds {name} {list(found.shape)}, not {[stop - start, *shape]}")
    return found
