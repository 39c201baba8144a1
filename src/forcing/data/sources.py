"""What clips are made from: a folder of videos, prompts alone, or a published LMDB. Each says what work it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from forcing import files
from forcing.codecs import Codec
from forcing.data import lmdb, parts
from forcing.data.captions import FORMATS, Problem, UnusableError, find, lines
from forcing.data.crew import Do
from forcing.data.parts import Parts, Tick, Unit, name_of
from forcing.data.videos import Cut, clips, library

UNIT = 16  # videos in a unit; of prompts or rows, there are as many as clips in a file


class VideoCodec(Codec, Protocol):
    """`digest` identifies it."""

    @property
    def digest(self) -> str: ...


Load = Callable[[str], VideoCodec]  # of a device; each process loads its own


class Told(NamedTuple):
    """Of a source of clips: its caption, and its kin. What is of one kin is never split."""

    caption: str
    kin: str


@dataclass(frozen=True)
class Work:
    """head: what the manifest says of the clips. told: of each source of clips. start: see `crew.work`."""

    head: Mapping[str, Any]
    told: Mapping[str, Told]
    problems: Sequence[Problem]
    units: Sequence[Unit]
    start: Callable[[str], Do]


def work(source: Path, out: Path, cut: Cut, load: Load, table: Path | None = None) -> Work:
    """What is to be done to make latents of `source` in the folder `out`. ValueError where that cannot be."""
    if source.is_dir():
        databases = _databases(source)
        if databases:
            return _of_lmdb(source, databases, out, cut, load("cpu"))
        return _of_videos(source, out, cut, load, table)
    if source.suffix.lower() == ".txt" and source.is_file():
        return _of_prompts(source, out, cut, load("cpu"))
    raise ValueError(f"{source} is not a folder of videos, a .txt file of prompts, or the folder of an LMDB")


def _of_videos(source: Path, out: Path, cut: Cut, load: Load, table: Path | None) -> Work:
    library()
    videos, problems = find(source, table)
    codec = load("cpu")
    units = []
    for at in range(0, len(videos), UNIT):
        piece = videos[at : at + UNIT]
        known = [[video.name, video.path.stat().st_size] for video in piece]
        units.append((name_of("shard", ["videos", asdict(cut), codec.digest, known]), piece))
    told = {video.name: Told(video.caption, video.name) for video in videos}
    return Work(_head(cut, codec), told, problems, units, partial(_encoding, out, cut, load))


def _of_prompts(source: Path, out: Path, cut: Cut, codec: VideoCodec) -> Work:
    told = {str(index): Told(prompt, prompt) for index, prompt in enumerate(lines(source))}
    unit = (name_of("shard", ["prompts", len(told)]), list(told))
    return Work(_head(cut, codec), told, [], [unit], partial(_listing, out))


def _databases(source: Path) -> list[Path]:
    """The LMDB that `source` is, or the shards of one, which are its sub-folders, by name; none if it is no LMDB."""
    if (source / lmdb.DATA).is_file():
        return [source]
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    lacking = [path for path in folders if not (path / lmdb.DATA).is_file()]
    if lacking == folders or any(path.suffix.lower() in FORMATS for path in source.rglob("*")):
        return []
    if lacking:
        raise ValueError(f"{lacking[0]} has no {lmdb.DATA}, as a shard of the LMDB {source} must")
    return folders


def _of_lmdb(source: Path, databases: Sequence[Path], out: Path, cut: Cut, codec: VideoCodec) -> Work:
    told, problems, units, shapes = {}, [], [], {}
    for database in databases:
        with lmdb.opened(database) as rows:
            shapes.setdefault(rows.shape, database)
            named = {(database.relative_to(source) / str(index)).as_posix(): index for index in range(len(rows))}
            own, odd = _prompts(rows, named)
        known = ["lmdb", (database / lmdb.DATA).stat().st_size, rows.shape[0], list(rows.shape[1:])]
        pieces = [list(own)[at : at + parts.PART] for at in range(0, len(own), parts.PART)]
        units += [(name_of("shard", [known, piece]), piece) for piece in pieces]
        told |= own
        problems += odd
    if len(shapes) > 1:
        (one, first), (two, second), *_ = shapes.items()
        raise ValueError(f"{second} has clips of {list(two)}, and {first} of {list(one)}: they must be alike")
    ((frames, *latent),) = shapes
    time, high, wide = codec.stride
    size = (latent[1] * high, latent[2] * wide)
    if list(codec.size(*size)) != latent:
        raise ValueError(f"{source} has latents {latent}, and this codec makes {list(codec.size(*size))}")
    cut = replace(cut, size=size, frames=1 + time * (frames - 1))
    return Work(_head(cut, codec), told, problems, units, partial(_copying, out, source))


def _prompts(rows: lmdb.Rows, named: Mapping[str, int]) -> tuple[dict[str, Told], list[Problem]]:
    told, problems = {}, []
    for name, index in named.items():
        try:
            prompt = rows.prompt(index)
            told[name] = Told(prompt, prompt)
        except UnusableError as error:
            problems.append(Problem(f"row {name}", str(error)))
    return told, problems


def _head(cut: Cut, codec: VideoCodec) -> dict[str, Any]:
    """What the manifest says of clips that are cut and encoded so. ValueError where the codec does not take them."""
    time = codec.stride[0]
    odd = (cut.frames - 1) % time
    if odd:
        below = cut.frames - odd
        raise ValueError(f"frames is {cut.frames}: this codec takes 1 + {time} n, such as {below} or {below + time}")
    shape = [1 + (cut.frames - 1) // time, *codec.size(*cut.size)]
    return {**asdict(cut), "latents": shape, "codec": codec.digest}


def _encoding(out: Path, cut: Cut, load: Load, device: str) -> Do:
    codec = load(device)

    def encoded(unit: Unit, tick: Tick) -> None:
        made, problems = Parts(out, unit[0]), []
        for video in unit[1]:
            count = 0
            try:
                for start, pixels in clips(video.path, cut):
                    made.add(video.name, start, codec.encode(pixels[None])[0])
                    count += 1
            except UnusableError as error:
                made.drop(video.name)
                problems.append(Problem(video.name, str(error)))
            tick(count)
        made.close(problems)

    return encoded


def _listing(out: Path, _device: str) -> Do:
    def listed(unit: Unit, tick: Tick) -> None:
        clips = [{"shard": 0, "index": int(name), "source": name, "start": 0.0} for name in unit[1]]
        files.write_json(out / f"{unit[0]}.json", {"files": [], "clips": clips, "problems": []})
        tick(len(clips))

    return listed


def _copying(out: Path, source: Path, _device: str) -> Do:
    def copied(unit: Unit, tick: Tick) -> None:
        made, problems = Parts(out, unit[0]), []
        with lmdb.opened((source / unit[1][0]).parent) as rows:  # all rows of a unit are of one database
            for name in unit[1]:
                try:
                    made.add(name, 0.0, rows.latents(int(PurePosixPath(name).name)))
                except UnusableError as error:
                    problems.append(Problem(f"row {name}", str(error)))
                tick(1)
        made.close(problems)

    return copied
