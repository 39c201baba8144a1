"""`forcing replay`: a played session made again from its log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from forcing import files, media
from forcing.cli import home, play
from forcing.cli.bar import Bar
from forcing.cli.options import read, shown

if TYPE_CHECKING:
    from forcing.codecs import Pixels
    from forcing.serve import journal
    from forcing.serve.replay import Replay

SIDE = 448  # smaller pictures are enlarged to about so many pixels


@dataclass(frozen=True)
class Kept:
    """Of what the engine was told then; None where that is not known, or was nothing."""

    world: str | None = None
    fps: float | None = None
    frame: tuple[int, int] | None = None
    reality: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Options:
    """Make a session again from the log that forcing play --logs kept: the same pictures, one after another.

    LOG is a file of that folder; images that the session began with, and the log of a session that it was forked from,
    are looked for beside it. Each picture is compared with what was shown: on the same machine, they are the same.
    """

    log: tyro.conf.Positional[Annotated[Path, shown("LOG.jsonl", name="LOG")]]
    out: Annotated[Path | None, shown("FILE.mp4|.gif|.png")] = None  # all that was shown, as a film or a sheet
    world: Annotated[Path | None, shown("DIR")] = None  # a world's or a run's folder; default: what the log says
    size: Annotated[str | None, shown("WIDTHxHEIGHT")] = None  # of Wan's pictures; default: what the log says
    cut: bool = False  # also a log whose end is missing, as of a server that was killed
    device: str = "auto"  # cpu, cuda or cuda:N


def run(args: Sequence[str], console: Console) -> int:
    """Make it again, and say what was made."""
    options = read(Options, args, "replay")
    try:
        from forcing.serve import host, journal, replay
    except ModuleNotFoundError as missing:
        raise ValueError(f'{missing.name} is not installed: pip install "forcing[serve]"') from missing
    log = journal.Log.read(options.log)
    if log.cut and not options.cut:
        raise ValueError(f"{options.log} is cut: its last line is no end of a session; --cut makes what there is")
    if not log.chunks:
        raise ValueError(f"{options.log} has no chunks: nothing was shown in this session")
    told = _told(options, log.engine)
    if options.out is not None:
        media.check(options.out, fps=told["fps"], scale=1)
        files.probe(options.out)
    studio = replay.Studio.open(host.Options(**told), play.plans_of)
    again = replay.Replay(log, studio)
    try:
        replay.check(log, studio.world)
        _make(options, again, told["fps"], console)
    finally:
        studio.close()
    for there in sorted(log.machines - {"", studio.machine}):
        console.print(f"note: it was made with {there}; here it is {studio.machine}, and sums may round differently")
    if options.out is not None:
        console.print(f"wrote {options.out}")
    return 0


def _told(options: Options, engine: journal.Engine | None) -> dict[str, Any]:
    """What the engine is told: as it was then, as far as the log says so."""
    import msgspec

    try:
        kept = msgspec.convert({} if engine is None else engine.told, Kept)
    except msgspec.ValidationError as damage:
        raise ValueError(f"{options.log} is damaged: what its engine was told cannot be ({damage})") from damage
    place = options.world
    if place is None and kept.world is not None:
        place = Path(kept.world)
        if not place.is_dir():
            raise ValueError(f"{options.log} is of a world in {place}, which is not there: give --world DIR")
    told = play.engine_of(home.find(place), play.Options(size=options.size, device=options.device))
    aside = ("world",) if options.size is None else ("world", "frame")
    return told | {name: was for name, was in asdict(kept).items() if was is not None and name not in aside}


def _make(options: Options, again: Replay, fps: float, console: Console) -> None:
    seen, pictures, total, same = hashlib.sha256(), 0, again.log.chunks, 0
    height, width = again.studio.options.frame or again.studio.world.kit.frame
    with Bar("replaying", "chunks", console) as bar:

        def made() -> Iterator[Pixels]:
            nonlocal pictures, same
            for number, each in enumerate(again.run(), 1):
                seen.update(each.pictures.tobytes())
                pictures, same = pictures + len(each.pictures), same + (each.same is True)
                bar.show(number, total, f"frame {each.latent}")
                yield each.pictures

        if options.out is None:
            for _ in made():
                pass
        else:
            with media.writer(options.out, fps=fps, scale=max(1, SIDE // max(height, width))) as film:
                for frames in made():
                    film.add(frames)
    console.print(f"{pictures} pictures of {width}x{height} in {total} chunks; sha256 {seen.hexdigest()[:16]}")
    if again.differ:
        console.print(
            f"{same} chunks are as they were shown; the first that differs begins with frame {again.differ[0]}"
        )
    elif same:
        console.print(f"all {same} chunks are as they were shown, to the bit")
    else:
        console.print("the log does not say what was shown, to compare with it")
