"""Videos, prompts or a published LMDB into a latent set: encoded once, so that training needs neither codec nor text.

The work is cut into units whose results are kept as they come: what was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from forcing import files
from forcing.data import crew, parts
from forcing.data.captions import Problem
from forcing.data.latents import MANIFEST, read_manifest
from forcing.data.parts import TextEncoder, Tick, Unit
from forcing.data.sources import Load, Told, work
from forcing.data.videos import Cut

Progress = Callable[[int, int, str], None]  # how many are done, of how many, and what they are


@dataclass(frozen=True)
class Models:
    """`codec`: of a device. devices: one for each process that encodes, such as "cpu" or "cuda:1"."""

    codec: Load
    text: TextEncoder
    devices: Sequence[str] = ("cpu",)


class Summary(NamedTuple):
    """How many clips there are, and what could not be used."""

    clips: int
    problems: list[Problem]


def encode(
    source: Path,
    out: Path,
    cut: Cut,
    models: Models,
    *,
    table: Path | None = None,
    holdout: float = 0.02,
    replace: bool = False,
    progress: Progress = lambda _done, _total, _note: None,
) -> Summary:
    """Make the latent set `out` from a folder of videos, a .txt of prompts, or the folder of an LMDB.

    table: the captions, as in `captions.find`. holdout: share of the videos, or of the prompts, kept for evaluation.
    replace: what was made otherwise. ValueError before any work where something cannot be. A file that cannot be used
    is a problem; where that is true of all of them there are 0 clips, and no set; one that was there stays as it was.
    """
    if not 0 <= holdout <= 0.5:
        raise ValueError(f"holdout is {holdout}: it must lie in 0..0.5")
    todo = work(source, out, cut, models.codec, table)
    parts.ready(out)
    if not replace:
        _check_same(out, {**todo.head, "text": models.text.digest, "holdout": holdout}, todo.told.values())
    captions = list(dict.fromkeys(told.caption for told in todo.told.values()))
    text = _texts(out, captions, models.text, progress)

    def encoded(units: Sequence[Unit], tick: Tick) -> None:
        crew.work(units, todo.start, models.devices, tick)

    made = _made(out, todo.units, encoded, progress, "clips")
    problems = sorted([*todo.problems, *(Problem(**each) for record in made for each in record["problems"])])
    clips = _clips(made, todo.told, {caption: number for number, caption in enumerate(captions)}, holdout)
    if clips or not (out / MANIFEST).exists():
        files.write(out / parts.PROBLEMS, "".join(f"{file}: {reason}\n" for file, reason in problems))
    if clips:
        shards = [row for record in made for row in record["files"]]
        found = {"shards": shards, "clips": clips, "problems": [problem._asdict() for problem in problems]}
        parts.complete(out, {**todo.head, "holdout": holdout, **text, **found}, [name for name, _ in todo.units])
    return Summary(len(clips), problems)


def _check_same(out: Path, asked: Mapping[str, Any], told: Iterable[Told]) -> None:
    """ValueError where `out` is a set that was made otherwise, or of other things."""
    if not (out / MANIFEST).exists():
        return
    before = read_manifest(out)
    now = json.loads(json.dumps(asked))  # as a manifest has it
    other = [f"{name} {before.get(name)!r}, not {value!r}" for name, value in now.items() if before.get(name) != value]
    known = {row["source"] for row in before["clips"]} | set(before["captions"])
    if not known & {each.kin for each in told}:
        other.append("other videos or prompts")
    if other:
        raise ValueError(f"{out} is a set with {' and '.join(other)}: give another --out, or --replace")


def _texts(out: Path, captions: Sequence[str], text: TextEncoder, progress: Progress) -> dict[str, Any]:
    """What the manifest says of text, once it is there."""

    def embedded(units: Sequence[Unit], tick: Tick) -> None:
        for unit in units:
            parts.embed(out, text, unit, tick)
        text.release()

    null, *told = _made(out, parts.text_units(captions, text), embedded, progress, "captions")
    return {
        "text": text.digest,
        "captions": list(captions),
        "texts": [row for record in told for row in record["files"]],
        "uncond": null["files"][0],
        "length": max(record["length"] for record in (null, *told)),
        "width": null["width"],
    }


def _made(
    out: Path, units: Sequence[Unit], do: Callable[[Sequence[Unit], Tick], None], progress: Progress, what: str
) -> list[dict[str, Any]]:
    """The records of all units, those that are missing made by `do`."""
    left = [unit for unit in units if parts.finished(out, unit[0], verify=True) is None]
    total, done, made, began = sum(len(things) for _, things in left), 0, 0, time.monotonic()

    def tick(count: int) -> None:
        nonlocal done, made
        done, made = done + 1, made + count
        progress(done, total, f"{made / (time.monotonic() - began):.3g} {what}/s")

    if left:
        do(left, tick)
    records = [parts.finished(out, name) for name, _ in units]
    lost = [name for (name, _), record in zip(units, records, strict=True) if record is None]
    if lost:
        raise ValueError(f"{out / lost[0]}.json or its files were changed meanwhile: encode again")
    return [record for record in records if record is not None]


def _clips(
    made: Sequence[Mapping[str, Any]], told: Mapping[str, Told], numbers: Mapping[str, int], holdout: float
) -> list[dict[str, Any]]:
    """The manifest's table of clips."""
    clips, shards = [], 0
    for record in made:
        for clip in record["clips"]:
            caption, kin = told[clip["source"]]
            split = "heldout" if _share(kin) < holdout else "train"
            clips.append({**clip, "shard": shards + clip["shard"], "caption": numbers[caption], "split": split})
        shards += len(record["files"])
    return clips


def _share(kin: str) -> float:
    """A number in [0, 1) that depends on `kin` alone, so that what is held out stays so as data is added."""
    return int.from_bytes(hashlib.blake2b(kin.encode(), digest_size=6).digest(), "big") / 2**48
