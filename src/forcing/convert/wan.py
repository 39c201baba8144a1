"""Wan's weights: loaded from what people publish, saved as what people expect, one tensor at a time."""

import json
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from forcing import files
from forcing.backbones.wan import Wan, WanConfig
from forcing.codecs.weights import finite
from forcing.convert import names, sizes
from forcing.convert.source import Entry, find, opened
from forcing.convert.store import KINDS, Read, Spec, save, save_shards

Form = Literal["wan", "diffusers"]
SHARD = 5 * 1024**3  # bytes


def load_wan(
    source: str | Path,
    config: WanConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
) -> Wan:
    """The Wan in `source`, ready to sample: in eval mode, without gradients.

    source: a .safetensors, .pt, .pth or .bin file; a folder of a diffusers pipeline, of a diffusers or original
    transformer, or of a world. Names are the original ones, diffusers', or those of Self-Forcing and Causal-Forcing.
    config: its sizes; None takes them from config.json or world.json beside the weights, else from the tensors.
    dtype: None keeps what is stored. What modulates or normalises is float32 at least, however it is stored or asked.
    weights: the part of a .pt file, by its key; None takes an average of the student before the student itself.
    ValueError, with the file and the tensor, where something is missing, too much, of another shape or not finite.
    Each tensor is read, checked, cast and moved before the next one: there never is a second copy of all.
    """
    _check_dtype(dtype)
    with _stored(Path(source), config, weights) as stored:
        model = stored.model
        for name in stored.entries:
            owner, _, leaf = name.rpartition(".")
            value = nn.Parameter(stored.read(name, dtype, device), requires_grad=False)
            model.get_submodule(owner).register_parameter(leaf, value)
    return model.eval()


def save_wan(
    model: Wan, path: str | Path, *, to: Form = "wan", dtype: torch.dtype | None = None, shard: int = SHARD
) -> Path:
    """Write a Wan whole, or not at all, and return `path`: a new folder, or, for "wan" alone, a .safetensors file.

    to: "wan" for the original names, config.json and one file; "diffusers" for what WanTransformer3DModel loads, in
    files of at most `shard` bytes. dtype: as in `load_wan`. An older file is replaced. ValueError where a folder holds
    something already, or a weight is not finite.
    """
    _check_dtype(dtype)
    target = _Target(Path(path), to, shard)
    values = dict(model.named_parameters())
    specs = {name: Spec(tuple(value.shape), _kind(name, value.dtype, dtype)) for name, value in values.items()}
    return target.write(model.config, specs, lambda name: _cast(values[name], specs[name].dtype, "cpu", name))


@dataclass(frozen=True)
class Written:
    """What is in the files: the sizes of the network, and how many of its parameters are of each dtype."""

    config: WanConfig
    parameters: Mapping[torch.dtype, int]


def convert_wan(
    source: str | Path,
    path: str | Path,
    *,
    to: Form = "wan",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    shard: int = SHARD,
) -> Written:
    """What `load_wan` and `save_wan` do one after the other, with a single tensor in memory."""
    _check_dtype(dtype)
    target = _Target(Path(path), to, shard)
    with _stored(Path(source), None, weights) as stored:
        specs = {name: Spec(each.shape, _kind(name, each.dtype, dtype)) for name, each in stored.entries.items()}
        target.write(stored.model.config, specs, lambda name: stored.read(name, dtype, "cpu"))
    counts = Counter[torch.dtype]()
    for spec in specs.values():
        counts[spec.dtype] += prod(spec.shape)
    return Written(stored.model.config, counts)


@dataclass(frozen=True)
class _Stored:
    """`model`: on the meta device. `entries`: where each of its parameters is."""

    model: Wan
    entries: Mapping[str, Entry]

    def read(self, name: str, dtype: torch.dtype | None, device: str | torch.device) -> Tensor:
        entry = self.entries[name]
        return _cast(entry.read(), _kind(name, entry.dtype, dtype), device, str(entry))


@contextmanager
def _stored(source: Path, config: WanConfig | None, part: str | None) -> Iterator[_Stored]:
    path = find(source)
    with opened(path, part) as found:
        entries = _named(found, path)
        shapes = {name: entry.shape for name, entry in entries.items()}
        told = config or sizes.within(path) or sizes.beside(path.parent)
        known = told or sizes.measured(shapes, path)
        note = "" if told else f"; sizes are those of {', '.join(sizes.MEASURED)}"
        model = _empty(known, len(entries), path)
        _check_fit(entries, model, path, note)
        yield _Stored(model, {name: entries[name] for name, _ in model.named_parameters()})


@dataclass(frozen=True)
class _Target:
    """Where to write and in which form; ValueError if that cannot be."""

    path: Path
    to: Form
    shard: int

    def __post_init__(self) -> None:
        if self.to not in typing.get_args(Form):
            raise ValueError(f"to is {self.to!r}; it must be one of {typing.get_args(Form)}")
        if self.shard < 1:
            raise ValueError(f"shard must be at least 1 byte, got {self.shard}")
        if self.single and self.to != "wan":
            raise ValueError(f"{self.path} is to be a file, and the form {self.to!r} is a folder: leave out the suffix")
        folder = self.path.is_dir()
        if self.path.exists() and (folder == self.single or (folder and any(self.path.iterdir()))):
            raise ValueError(f"{self.path} is there already, and is not replaced: give the name of a new one")

    @property
    def single(self) -> bool:
        return self.path.suffix == ".safetensors"

    def write(self, config: WanConfig, specs: Mapping[str, Spec], read: Read) -> Path:
        with files.whole(self.path) as draft:
            if self.single:
                save(draft, specs, read, str, {sizes.CONFIG: json.dumps(sizes.original(config))})
                return self.path
            draft.mkdir()
            if self.to == "wan":
                files.write_json(draft / "config.json", sizes.original(config))
                save_shards(draft, specs, read, str, sum(spec.size for spec in specs.values()))
            else:
                files.write_json(draft / "config.json", sizes.diffusers(config))
                save_shards(draft, specs, read, names.diffusers, self.shard)
        return self.path


def _named(found: Sequence[Entry], path: Path) -> dict[str, Entry]:
    cleaned = [names.original(entry.key) for entry in found]
    entries = dict(zip(cleaned, found, strict=True))
    name, count = Counter(cleaned).most_common(1)[0] if cleaned else ("", 0)
    if count > 1:
        keys = [entry.key for entry, own in zip(found, cleaned, strict=True) if own == name]
        raise ValueError(f"{path} has {' and '.join(keys)}, which are both {name}")
    return entries


def _empty(config: WanConfig, tensors: int, path: Path) -> Wan:
    if config.num_layers > tensors:  # before so many are built
        raise ValueError(f"{path} holds {tensors} tensors, too few for {config.num_layers} layers")
    try:
        with torch.device("meta"):
            return config.build()
    except (RuntimeError, TypeError) as error:  # both mean that a size does not fit into 64 bits
        raise ValueError(f"{path} is said to be of {config}, which no tensor can be") from error


def _check_fit(entries: Mapping[str, Entry], model: Wan, path: Path, note: str) -> None:
    needed = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    faults = {
        "missing": [name for name in needed if name not in entries],
        "unexpected": [entry.key for name, entry in entries.items() if name not in needed],
        "of another shape": [
            f"{entry.key} is {list(entry.shape)}, must be {list(needed[name])}"
            for name, entry in entries.items()
            if name in needed and needed[name] != entry.shape
        ],
    }
    said = [
        f"{len(each)} {fault} ({', '.join(each[:3])}{', ...' if len(each) > 3 else ''})"
        for fault, each in faults.items()
        if each
    ]
    if said:
        raise ValueError(f"{path} is not the Wan transformer that it should be: {'; '.join(said)}{note}")


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in KINDS:
        raise ValueError(f"dtype is {dtype}; weights are {', '.join(map(str, KINDS))}")


def _kind(name: str, stored: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    kind = asked or stored
    return torch.promote_types(kind, torch.float32) if Wan.keeps_float32(name) else kind


def _cast(value: Tensor, kind: torch.dtype, device: str | torch.device, what: str) -> Tensor:
    """A copy of its own, never a view of a file."""
    if not finite(value):
        raise ValueError(f"{what} has values that are NaN or infinite")
    out = value.detach().to(device, kind, copy=True, memory_format=torch.contiguous_format)
    if not finite(out):
        raise ValueError(f"{what} has values that are too large for {kind}")
    return out
