"""Recordings on disk: a manifest and compressed shards of whole episodes.

`manifest.json` names the actions, the prompts and every episode; `shard-00000.npz` holds, for N frames, frames uint8
[N, H, W, 3], actions int64 [N], rewards float32 [N], ends bool [N] and episode int64 [N]. actions[t] leads from frame
t to frame t+1 and earns rewards[t]; the last frame of an episode has action -1, reward 0 and ends True.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "heldout")
ARRAYS = {"frames": np.uint8, "actions": np.int64, "rewards": np.float32, "ends": np.bool_, "episode": np.int64}

_KEYS = ("spec", "worlds", "actions", "shape", "episodes", "shards")


class RecordingError(ValueError):
    """A recording that is missing, damaged or of another format; the message names the file."""


def write_shard(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write ARRAYS to `path` such that the same arrays give the same bytes."""
    # A member opened by name carries the zip format's fixed first date; level 1 is fast and drawn frames shrink well.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, kind in ARRAYS.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(arrays[name], kind), allow_pickle=False)


def checksum(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a recording; RecordingError if there is none, it is damaged or of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise RecordingError(f"{folder} holds no recording: {path} does not exist")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as damage:
        raise RecordingError(f"{path} cannot be read: {damage}") from damage
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise RecordingError(f"{path} is not the manifest of a recording")
    if manifest["format"] != FORMAT:
        raise RecordingError(f"{path} has format {manifest['format']!r}; this version reads format {FORMAT}")
    missing = [key for key in _KEYS if key not in manifest]
    if missing:
        raise RecordingError(f"{path} lacks {', '.join(missing)}")
    return manifest


@dataclass(frozen=True)
class Episode:
    """One episode of L frames; see the module's text for how the arrays line up."""

    index: int
    prompt: str
    seed: int
    split: str
    frames: np.ndarray  # uint8 [L, H, W, 3]
    actions: np.ndarray  # int64 [L], -1 at the last
    rewards: np.ndarray  # float32 [L]
    ends: np.ndarray  # bool [L], True at the last

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Recording:
    """A recording whose manifest has been checked; frames are read by `load`."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Recording:
        """Check a recording's manifest, its shards' sizes and, with `verify`, their checksums."""
        folder = Path(path)
        recording = cls(folder, read_manifest(folder))
        try:
            recording._check_episodes()
            recording._check_shards(verify)
        except (KeyError, TypeError, AttributeError, IndexError) as damage:
            raise RecordingError(f"{folder / MANIFEST} is damaged: {type(damage).__name__} {damage}") from damage
        return recording

    @property
    def actions(self) -> tuple[str, ...]:
        """Action names: actions[i] is what action i of the arrays means."""
        return tuple(action["name"] for action in self.manifest["actions"])

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the recorded worlds."""
        return tuple(world["prompt"] for world in self.manifest["worlds"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a frame."""
        height, width, channels = self.manifest["shape"]
        return height, width, channels

    def episodes(self, split: str | None = None) -> list[dict[str, Any]]:
        """Rows of the episode table: of one split, or all."""
        if split is not None and split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
        return [row for row in self.manifest["episodes"] if split in (None, row["split"])]

    def load(self, split: str | None = None) -> list[Episode]:
        """The episodes of one split, or all, in recorded order. A split may be empty."""
        return list(self.stream(split))

    def stream(self, split: str | None = None) -> Iterator[Episode]:
        """The same one by one, with one shard read at a time."""
        rows = self.episodes(split)
        for number, shard in enumerate(self.manifest["shards"]):
            wanted = [row for row in rows if row["shard"] == number]
            if not wanted:
                continue
            arrays = self._read(shard)
            # A view keeps its whole shard in memory: worth it only where the split is most of the shard.
            copy = 2 * sum(row["length"] for row in wanted) < shard["frames"]
            for row in wanted:
                yield self._cut(row, arrays, copy)

    def _cut(self, row: dict[str, Any], arrays: dict[str, np.ndarray], copy: bool) -> Episode:
        span = slice(row["start"], row["start"] + row["length"])
        parts = {name: arrays[name][span] for name in ARRAYS}
        if (parts["episode"] != row["episode"]).any() or not parts["ends"][-1] or parts["ends"][:-1].any():
            raise RecordingError(f"{self.path / MANIFEST} does not fit the shards at episode {row['episode']}")
        if copy:
            parts = {name: part.copy() for name, part in parts.items()}
        del parts["episode"]
        return Episode(row["episode"], row["prompt"], row["seed"], row["split"], **parts)

    def _read(self, shard: dict[str, Any]) -> dict[str, np.ndarray]:
        path = self.path / shard["file"]
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as damage:
            raise RecordingError(f"{path} is damaged: {damage}") from damage
        for name, array in arrays.items():
            shape = (shard["frames"], *(self.shape if name == "frames" else ()))
            if array.shape != shape or array.dtype != ARRAYS[name]:
                raise RecordingError(f"{path} holds {name} as {array.dtype} {list(array.shape)}, not {list(shape)}")
        return arrays

    def _check_episodes(self) -> None:
        shards, prompts = self.manifest["shards"], self.prompts
        if len(self.shape) != 3 or not self.actions or not prompts:
            raise RecordingError(f"{self.path / MANIFEST} names no frame shape, actions or worlds")
        for row in self.episodes():
            fits = row["start"] >= 0 and 0 < row["length"] <= shards[row["shard"]]["frames"] - row["start"]
            if not fits or row["prompt"] not in prompts or row["split"] not in SPLITS or "seed" not in row:
                raise RecordingError(f"{self.path / MANIFEST} is damaged at episode {row['episode']}")

    def _check_shards(self, verify: bool) -> None:
        for shard in self.manifest["shards"]:
            path = self.path / shard["file"]
            if not path.is_file():
                raise RecordingError(f"{path} is missing")
            if path.stat().st_size != shard["bytes"]:
                raise RecordingError(f"{path} has {path.stat().st_size} bytes, not the {shard['bytes']} recorded")
            if verify and checksum(path) != shard["sha256"]:
                raise RecordingError(f"{path} is damaged: its checksum is not the one recorded")
