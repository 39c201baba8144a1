"""Files and folders that are there whole, or not at all."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DRAFT, _LOCK = ".tmp", ".lock"
_MIB = 1 << 20
_WHOLE = 64 * _MIB  # files beyond it are known by a sample: reading 11 GB would take longer than what it is asked for


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what is to be `path`, a file or a folder: moved there when the block ends, gone if it fails.

    A file is replaced; a folder that holds something is not, nor by a file: OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    remove(draft)
    try:
        yield draft
        os.replace(draft, path)
    except OSError as error:
        if error.filename in (None, str(draft)):  # what was asked for is what the user knows
            error.filename = str(path)
        raise
    finally:
        remove(draft)


def probe(path: Path) -> None:
    """OSError, naming `path`, where nothing can be written there. Makes the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        draft.touch()
        draft.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


def draft_of(path: Path) -> Path:
    """Where `whole` has a file or folder written; its own in each process, for two may write the same file."""
    return path.absolute().with_name(f".{path.name}.{os.getpid()}{_DRAFT}")


def write(path: Path, data: bytes | str) -> Path:
    """A file with these bytes, or with this text in UTF-8."""
    with whole(path) as draft:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_json(path: Path, document: Any) -> Path:
    """A JSON file. ValueError where a number is not finite."""
    return write(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it no other process is in `folder`, which is made; ValueError where one is. It ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as taken:
            if taken.errno == errno.EWOULDBLOCK:  # anything else: a file system without locks
                raise ValueError(
                    f"{folder} is in use by another process: wait for it, or take another folder"
                ) from taken
        yield


def remove(path: Path) -> None:
    """Delete a file, a folder with all it holds, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete the drafts that a killed process left in `folder`, whose only writer the caller is."""
    for stray in folder.glob(f".*{_DRAFT}"):
        remove(stray)


def mark(paths: Sequence[Path]) -> str:
    """Identifies files by their names, sizes and contents, large ones by their first, middle and last MiB."""
    seen = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        seen.update(f"{path.parent.resolve().name}/{path.name} {size}\n".encode())  # from wherever it is asked
        with path.open("rb") as file:
            for start in (0, size // 2, size - _MIB) if size > _WHOLE else (0,):
                file.seek(start)
                seen.update(file.read(_MIB if size > _WHOLE else size))
    return seen.hexdigest()
