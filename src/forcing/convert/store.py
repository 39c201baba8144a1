"""Tensors into safetensors files, one at a time: a file may be larger than the memory."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from forcing import files

KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
STEM = "diffusion_pytorch_model"
INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Spec:
    """What a tensor is without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) * self.dtype.itemsize


Read = Callable[[str], Tensor]  # the tensor of that name, contiguous, on the CPU


def save(
    path: Path,
    specs: Mapping[str, Spec],
    read: Read,
    called: Callable[[str], str],
    about: Mapping[str, str] | None = None,
) -> None:
    """A safetensors file of all `specs`, each under the name that `called` gives it. about: more of its metadata."""
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))  # so that each begins at its own size
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(about or {})}}
    start = 0
    for name in names:
        spec = specs[name]
        stop = start + spec.size
        header[called(name)] = {"dtype": KINDS[spec.dtype], "shape": spec.shape, "data_offsets": (start, stop)}
        start = stop
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for name in names:
            file.write(read(name).flatten().view(torch.uint8).numpy().data)


def save_shards(folder: Path, specs: Mapping[str, Spec], read: Read, called: Callable[[str], str], most: int) -> None:
    """The same as files of at most `most` bytes of tensors (or one tensor), with an index if there are several."""
    shards = _shards(specs, most)
    if len(shards) == 1:
        save(folder / f"{STEM}.safetensors", specs, read, called)
        return
    places: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = f"{STEM}-{i:05d}-of-{len(shards):05d}.safetensors"
        save(folder / file, {name: specs[name] for name in names}, read, called)
        places |= {called(name): file for name in names}
    total = sum(spec.size for spec in specs.values())
    files.write_json(folder / f"{STEM}{INDEX}", {"metadata": {"total_size": total}, "weight_map": places})


def _shards(specs: Mapping[str, Spec], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.size > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.size
    return shards
