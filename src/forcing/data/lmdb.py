"""The LMDB of latents that published training code reads: Self-Forcing's, which Causal Forcing shares.

`latents_shape` and `prompts_shape` are integers as text, the number of rows first. `latents_{i}_data` is a row in
float16: a clip [F, C, h, w], or [S, F, C, h, w] with the steps of a teacher that lead to it, the clean clip last.
`prompts_{i}_data` is its prompt in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcing import files
from forcing.data.captions import UnusableError

DATA = "data.mdb"

_ROOM = 1 << 26  # bytes that a new database may grow to before it is given more
_PAGES = 1 << 16  # bytes that a row may take beside its own


class Rows:
    """The rows of a database, in order. Those that are damaged are UnusableError, each when it is asked for."""

    def __init__(self, read: Any, shape: tuple[int, ...]) -> None:
        self._read, self._count, self._row = read, shape[0], shape[1:]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(F, C, h, w) of a clip."""
        frames, channels, height, width = self._row[-4:]
        return frames, channels, height, width

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Tensor, str]]:
        return ((self.latents(index), self.prompt(index)) for index in range(len(self)))

    def latents(self, index: int) -> Tensor:
        """The clean clip of a row: float16 [F, C, h, w]."""
        data = self._value(f"latents_{index}_data")
        size = 2 * int(np.prod(self._row))
        if len(data) != size:
            raise UnusableError(f"has {len(data)} bytes of latents, not {size}")
        row = torch.from_numpy(np.frombuffer(data, "<f2").astype(np.float16)).reshape(self._row)
        return row[-1] if len(self._row) == 5 else row

    def prompt(self, index: int) -> str:
        try:
            return self._value(f"prompts_{index}_data").decode()
        except UnicodeDecodeError as error:
            raise UnusableError(f"has a prompt that is not UTF-8 ({error})") from error

    def _value(self, key: str) -> bytes:
        value = self._read.get(key.encode())
        if value is None:
            raise UnusableError(f"has no {key}")
        return value


@contextmanager
def opened(path: Path) -> Iterator[Rows]:
    """The rows of the database in folder `path`. ValueError where it is none, or is damaged."""
    lmdb = _lmdb()
    size = (path / DATA).stat().st_size
    try:
        with lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False) as env:
            needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            if needed > size:  # to read behind the end would kill the process
                raise ValueError(f"{path / DATA} is cut short: it has {size} bytes of {needed}")
            with env.begin() as read:
                yield Rows(read, _shape(read, path))
    except lmdb.Error as error:
        raise ValueError(f"{path} cannot be read as an LMDB: {error}") from error


def write(path: Path, clips: Iterable[tuple[Tensor, str]]) -> None:
    """A new database of clips [F, C, h, w] and their prompts, whole or not at all; rows are [1, F, C, h, w]."""
    lmdb = _lmdb()
    with files.whole(path) as draft, lmdb.open(str(draft), map_size=_ROOM, lock=False, sync=False) as env:
        room, used, count, shape = _ROOM, 0, 0, ()
        for latents, prompt in clips:
            row, shape = latents.to("cpu", torch.float16).numpy().astype("<f2").tobytes(), latents.shape
            told = prompt.encode()
            used += len(row) + len(told) + _PAGES
            while used > room // 2:  # pages are copied before they are written, and freed after
                room *= 2
                env.set_mapsize(room)
            with env.begin(write=True) as into:
                into.put(f"latents_{count}_data".encode(), row)
                into.put(f"prompts_{count}_data".encode(), told)
            count += 1
        if not count:
            raise ValueError(f"there are no clips to write to {path}")
        with env.begin(write=True) as into:
            into.put(b"latents_shape", " ".join(map(str, (count, 1, *shape))).encode())
            into.put(b"prompts_shape", str(count).encode())
        env.sync(True)


def check(path: Path) -> None:
    """ValueError or OSError, before any work, where no database can be written to `path`."""
    _lmdb()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} exists already: give a new folder for the LMDB")
    files.probe(path)


def _shape(read: Any, path: Path) -> tuple[int, ...]:
    told = read.get(b"latents_shape")
    if told is None:
        raise ValueError(f"{path} is an LMDB, but not of latents: it has no latents_shape")
    numbers = told.split()
    shape = tuple(int(number) for number in numbers if number.isdigit())
    if len(numbers) != len(shape) or len(shape) not in (5, 6) or min(shape) < 1:
        raise ValueError(f"{path} has {told!r} as its latents_shape: need the numbers of rows, [steps,] F, C, h and w")
    return shape


def _lmdb() -> ModuleType:
    try:
        import lmdb
    except ModuleNotFoundError as missing:
        raise ValueError('LMDB needs the package lmdb: pip install "forcing[lmdb]"') from missing
    return lmdb
