"""Files of weights, opened: each tensor's shape and type are known at once, and its values are read when asked for."""

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from forcing.convert.store import INDEX, KINDS, STEM

PICKLED = (".pt", ".pth", ".bin")

_SINGLE = (f"{STEM}.safetensors", "model.safetensors")
# What others' files call the student, its running average first. Keys of theirs, and not our words for it.
_PARTS = "generator_ema generator model".split()  # noqa: SIM905
_KINDS = {name: kind for kind, name in KINDS.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor called `key` in the file `path`. `read` gives it, on the CPU, and need not do so twice."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def __str__(self) -> str:
        return f"{self.key} in {self.path}"


def find(source: Path) -> Path:
    """The file that `source` is or whose tensors it holds: of tensors, or the index of several such files."""
    if source.is_dir():
        return _within(source)
    if not source.is_file():
        raise ValueError(f"there is no file or folder {source}")
    if not source.name.endswith((".safetensors", INDEX, *PICKLED)):
        raise ValueError(f"{source} is not known as weights: they are a folder, or .safetensors, {', '.join(PICKLED)}")
    return source


def _within(folder: Path) -> Path:
    if (folder / "transformer_2").is_dir():
        raise ValueError(f"{folder} has two transformers, as Wan2.2 has: name the folder of one of them")
    if (folder / "transformer").is_dir():
        folder = folder / "transformer"
    found = [folder / name for name in _SINGLE if (folder / name).is_file()] + sorted(folder.glob(f"*{INDEX}"))
    if not found:
        raise ValueError(f"{folder} has none of {', '.join(_SINGLE)} or *{INDEX}: name the file of the weights")
    if len(found) > 1:
        raise ValueError(f"{folder} has {' and '.join(path.name for path in found)}: name one of them")
    return found[0]


@contextmanager
def opened(path: Path, part: str | None = None) -> Iterator[list[Entry]]:
    """The tensors of the file that `find` found. part: of the dictionary in a .pt file; None for the one we know.

    ValueError names a file that cannot be read, and a tensor that holds no floating point numbers.
    """
    if path.suffix in PICKLED:
        yield _pickled(path, part)
        return
    if part is not None:
        raise ValueError(f"{path} has no parts: weights {part!r} can be chosen in {', '.join(PICKLED)} only")
    with ExitStack() as stack:
        if path.suffix == ".json":
            yield _indexed(path, stack)
        else:
            yield _safe(path, stack)


def document(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError if it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: no readable JSON ({_line(error)})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")  # noqa: TRY004 (the user's)
    return found


def _safe(path: Path, stack: ExitStack) -> list[Entry]:
    try:
        file = stack.enter_context(safe_open(path, "pt"))
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a file is no dictionary)
        found = {key: (tuple(each.get_shape()), str(each.get_dtype())) for key, each in slices.items()}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or is no safetensors file ({_line(error)})") from error
    return [
        _entry(path, key, shape, _KINDS.get(kind, kind), partial(file.get_tensor, key))
        for key, (shape, kind) in found.items()
    ]


def _indexed(path: Path, stack: ExitStack) -> list[Entry]:
    places = document(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{path} is damaged: it has no weight_map, from tensors to files")
    shards = sorted({Path(name).name for name in places.values()})
    absent = [name for name in shards if not (path.parent / name).is_file()]
    if absent:
        raise ValueError(f"{path} names {', '.join(map(repr, absent[:3]))}, and {len(absent)} such files are not there")
    found = [entry for name in shards for entry in _safe(path.parent / name, stack)]
    odd = sorted({(key, Path(name).name) for key, name in places.items()} ^ {(e.key, e.path.name) for e in found})
    if odd:
        key, name = odd[0]
        raise ValueError(f"{path} and its files differ in {len(odd)} tensors, such as {key!r} in {name!r}")
    return found


def _pickled(path: Path, part: str | None) -> list[Entry]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is damaged; we say so ourselves
            # files of before 2020 are no archives, and cannot be mapped
            whole = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever bytes that mean something else lead the reader to
        raise ValueError(f"{path} is damaged, or holds more than tensors ({_line(error)})") from error
    if part is None and isinstance(whole, dict):
        part = next((name for name in _PARTS if name in whole), None)
    tensors = whole if part is None else _part(whole, part, path)
    if not isinstance(tensors, dict):
        what = "it" if part is None else repr(part)
        raise ValueError(f"{path}: {what} is a {_kind(tensors)}, not named tensors")  # noqa: TRY004 (the user's)
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            wrong = f"{key!r} is a {_kind(value)}, not a named tensor"
            hint = f"; it has {_some(tensors)}: weights can name one" if part is None else ""
            raise ValueError(f"{path}: {wrong}{hint}")  # noqa: TRY004 (the user's)
        if value.layout is not torch.strided or value.is_meta:
            raise ValueError(f"{path}: {key!r} is a sparse or an empty tensor, not a dense one")
    return [  # `pop`, so that what has been read from a file that is not mapped can go
        _entry(path, key, tuple(value.shape), value.dtype, partial(tensors.pop, key)) for key, value in tensors.items()
    ]


def _part(whole: Any, part: str, path: Path) -> Any:
    if not isinstance(whole, dict) or part not in whole:
        has = _some(whole) if isinstance(whole, dict) else f"a {_kind(whole)}"
        raise ValueError(f"{path} has no weights {part!r}; it has {has}")
    return whole[part]


def _entry(path: Path, key: str, shape: tuple[int, ...], kind: torch.dtype | str, read: Callable[[], Tensor]) -> Entry:
    if not key.isprintable():  # it would be printed where something is wrong with it
        raise ValueError(f"{path} is damaged: {key!r} is no name of a tensor")
    if not isinstance(kind, torch.dtype) or kind not in KINDS:
        raise ValueError(f"{path}: {key} is stored as {kind}; weights are {', '.join(map(str, KINDS))}")
    return Entry(path, key, shape, kind, read)


def _some(values: dict[Any, Any]) -> str:
    return ", ".join([repr(key) for key in list(values)[:5]] + ["..."] * (len(values) > 5)) or "nothing"


def _kind(value: object) -> str:
    return type(value).__name__


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
