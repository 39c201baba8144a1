"""A latent set as it is made: files that appear one by one, with what is in them, and the manifest at last.

What is made from one unit of work is named by a digest of the work. Beside its files lies a .json that says what they
hold and comes last: where it lies, that unit is finished, whenever that was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from forcing import files
from forcing.data.captions import Problem, UnusableError
from forcing.data.latents import FORMAT, KIND, MANIFEST, read_manifest
from forcing.data.shards import checksum
from forcing.text import Text

PART = 64  # most clips in a file, and in memory
TEXTS = 256  # most captions in a file
PROBLEMS = "problems.txt"

Unit = tuple[str, Sequence[Any]]  # its name, and what it is made from
Tick = Callable[[int], None]  # told that one thing of a unit is done, and how much it made

_OURS = re.compile(r"((?:shard|text)-[0-9a-f]{16})(-\d+)?\.(safetensors|json)")


class TextEncoder(Text, Protocol):
    """`digest` identifies it. Embeddings are [B, length, D], zeros behind a prompt's own tokens."""

    @property
    def digest(self) -> str: ...

    def release(self) -> None:
        """Free what it takes; it is loaded again when needed."""
        ...


def ready(folder: Path) -> None:
    """ValueError or OSError where no latents can be kept in `folder`, or it holds something else."""
    files.probe(folder / MANIFEST)
    if (folder / MANIFEST).exists():
        read_manifest(folder)
    others = {path.name for path in folder.iterdir() if not _unit(path.name) and not path.name.startswith(".")}
    strange = others - {MANIFEST, PROBLEMS}
    if strange:
        raise ValueError(f"{folder} holds {min(strange)}, which is not of a latent set: give another folder")
    files.sweep(folder)


def name_of(kind: str, work: Any) -> str:
    """The name of the unit that is made from `work`, a JSON value."""
    return f"{kind}-{hashlib.sha256(json.dumps([FORMAT, work], sort_keys=True).encode()).hexdigest()[:16]}"


def finished(folder: Path, unit: str, verify: bool = False) -> dict[str, Any] | None:
    """What the unit holds; None where it was not made, or is damaged, so that it has to be made again.

    verify: read its files, for damage that leaves their sizes as they are.
    """
    try:
        record = json.loads((folder / f"{unit}.json").read_text(encoding="utf-8"))
        rows = [(folder / row["file"], row) for row in record["files"]]
        intact = all(path.stat().st_size == row["bytes"] for path, row in rows)
        intact = intact and not (verify and any(checksum(path) != row["sha256"] for path, row in rows))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return record if intact else None


class Parts:
    """The latents of one unit, PART clips to a file."""

    def __init__(self, folder: Path, unit: str) -> None:
        self.folder, self.unit = folder, unit
        self._files: list[dict[str, Any]] = []
        self._clips: list[dict[str, Any]] = []
        self._held: list[Tensor] = []

    def add(self, source: str, start: float, latents: Tensor) -> None:
        """A clip [F, C, h, w], kept as float16. UnusableError where a number is none, or too large for that."""
        small = latents.to("cpu", torch.float16)
        if not small.isfinite().all():
            raise UnusableError("has latents that are not finite numbers")
        self._clips.append({"shard": len(self._files), "index": len(self._held), "source": source, "start": start})
        self._held.append(small)
        if len(self._held) == PART:
            self._write()

    def drop(self, source: str) -> None:
        """Forget the clips of `source`, which was added last. What is in a file already stays there, unnamed."""
        while self._clips and self._clips[-1]["source"] == source:
            if self._clips.pop()["shard"] == len(self._files):
                self._held.pop()

    def close(self, problems: Sequence[Problem]) -> None:
        """Say that the unit is finished."""
        if self._held:
            self._write()
        record = {"files": self._files, "clips": self._clips, "problems": [each._asdict() for each in problems]}
        files.write_json(self.folder / f"{self.unit}.json", record)

    def _write(self) -> None:
        row = _keep(self.folder, f"{self.unit}-{len(self._files)}", {"latents": torch.stack(self._held)})
        self._files.append(row | {"clips": len(self._held)})
        self._held = []


def text_units(captions: Sequence[str], text: TextEncoder) -> list[Unit]:
    """What `embed` is to do: first what guidance is led away from (None), then the captions."""
    pieces = [[None], *(list(captions[at : at + TEXTS]) for at in range(0, len(captions), TEXTS))]
    return [(name_of("text", [text.digest, *piece]), piece) for piece in pieces]


def embed(folder: Path, text: TextEncoder, unit: Unit, tick: Tick) -> None:
    """Keep the embeddings of a unit of captions. A tick for each."""
    name, prompts = unit
    told = []
    for prompt in prompts:
        told.append(_own((text.null(1) if prompt is None else text.encode([prompt]))[0]))
        tick(1)
    ends = torch.tensor([len(each) for each in told]).cumsum(0)
    # bfloat16: released text encoders compute in it, and float16 may be too narrow for another
    row = _keep(folder, name, {"text": torch.cat(told).bfloat16(), "ends": ends})
    length, width = max(len(each) for each in told), told[0].shape[1]
    record = {"files": [row | {"captions": len(told)}], "length": length, "width": width}
    files.write_json(folder / f"{name}.json", record)


def complete(folder: Path, manifest: Mapping[str, Any], units: Collection[str]) -> None:
    """Write the manifest, and delete the files that are neither in it nor of the `units`."""
    files.write_json(folder / MANIFEST, {"format": FORMAT, "kind": KIND, **manifest})
    rows = (*manifest["shards"], *manifest["texts"], manifest["uncond"])
    wanted = {*units, *(_unit(row["file"]) for row in rows)}
    for path in folder.iterdir():
        if _unit(path.name) and _unit(path.name) not in wanted:
            path.unlink()


def _own(embedding: Tensor) -> Tensor:
    """[length, D] without the zeros behind a prompt's own tokens; at least one row."""
    return embedding[: int((torch.arange(len(embedding)) * embedding.any(-1)).max()) + 1]


def _keep(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    path = files.write(folder / f"{name}.safetensors", data)
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _unit(name: str) -> str | None:
    found = _OURS.fullmatch(name)
    return found[1] if found else None
