"""Videos and what they show: which files of a folder are videos, and where their captions are written."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FORMATS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif", ".m4v")
TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")

_FILE = ("file", "video", "path", "file_name")
_CAPTION = ("caption", "text", "prompt")


class Video(NamedTuple):
    """`name`: its path within the folder, with slashes."""

    name: str
    path: Path
    caption: str


class Problem(NamedTuple):
    """A file that cannot be used, and why."""

    file: str
    reason: str


class UnusableError(ValueError):
    """Why something cannot be used, in words that follow its name."""


def find(folder: Path, table: Path | None = None) -> tuple[list[Video], list[Problem]]:
    """The captioned videos in `folder` and below, by name, and those without a caption.

    table: a CSV or JSONL file of captions; by default one of TABLES in the folder, or else a text file beside each
    video. ValueError where there are no videos, no captions, or a table that cannot be read.
    """
    inside = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix.lower() in FORMATS}
    found = {name: path for name, path in sorted(inside.items()) if path.is_file() and not _hidden(name)}
    if not found:
        raise ValueError(f"{folder} holds no videos ({', '.join(FORMATS)})")
    paths = {name: path for name, path in found.items() if _written(name)}
    table = table or next((folder / name for name in TABLES if (folder / name).is_file()), None)
    told, problems = _beside(paths) if table is None else _listed(table, folder, paths)
    known = {problem.file for problem in problems}
    problems += [Problem(ascii(name), "has a name that is not Unicode") for name in found if name not in paths]
    problems += [Problem(name, "has no caption") for name in paths if not told.get(name) and name not in known]
    videos = [Video(name, path, told[name]) for name, path in paths.items() if told.get(name)]
    if not videos:
        raise ValueError(
            f"no video in {folder} has a caption: write them to {TABLES[0]} there (columns file and caption), to a "
            "JSONL file with the same keys, or to a .txt file beside each video"
        )
    return videos, problems


def lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that say something, one prompt each."""
    found = [_plain(line) for line in _text(path).split("\n")]
    if not any(found):
        raise ValueError(f"{path} holds no prompts: write one in each line")
    return [line for line in found if line]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _written(text: str) -> bool:
    # half of a pair, as a name of other bytes or a broken escape gives, cannot be written again
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _beside(paths: Mapping[str, Path]) -> tuple[dict[str, str], list[Problem]]:
    told, problems = {}, []
    for name, path in paths.items():
        beside = path.with_suffix(".txt")
        try:
            told[name] = _plain(_text(beside)) if beside.is_file() else ""
        except ValueError as error:
            problems.append(Problem(name, str(error)))
    return told, problems


def _listed(table: Path, folder: Path, paths: Mapping[str, Path]) -> tuple[dict[str, str], list[Problem]]:
    told: dict[str, str] = {}
    unlike, strange = set(), []
    for line, row in _jsonl(table) if table.suffix.lower() in (".jsonl", ".ndjson") else _csv(table):
        file, caption = (_value(row, names, f"{table}:{line}") for names in (_FILE, _CAPTION))
        name = Path(os.path.relpath(folder / file, folder)).as_posix()
        if name not in paths:
            strange.append(file)
        elif told.setdefault(name, caption) != caption:
            unlike.add(name)
    problems = [Problem(name, f"has several captions in {table.name}") for name in sorted(unlike)]
    if strange:
        problems.append(Problem(table.name, f"captions {len(strange)} files that are not there, as {strange[0]}"))
    return {name: caption for name, caption in told.items() if name not in unlike}, problems


def _value(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise ValueError(f"{where} has {', '.join(row) or 'nothing'}, and needs one of {', '.join(names)}")
    value = row[name]
    if not isinstance(value, str) or not _written(value) or (names is _FILE and not value.strip()):
        raise ValueError(f"{where} has {value!r} as its {name}: give text")
    return _plain(value) if names is _CAPTION else value.strip()


def _csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = [column.strip().lower() for column in next(rows, [])]
        for row in filter(None, rows):
            if len(row) != len(columns):
                raise ValueError(
                    f"{path}:{rows.line_num} has {len(row)} values for {len(columns)} columns: a caption with commas "
                    "belongs in quotes"
                )
            yield rows.line_num, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num} is not CSV: {error}") from error


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):  # splitlines would cut within a string, too
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number} is {line.strip()[:40]}, not an object with a file and a caption")
            yield number, row
