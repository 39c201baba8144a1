"""`forcing pipeline`: every stage in order, on the default world or on any recording."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from forcing.cli import setting
from forcing.cli.options import read, shown
from forcing.envs.gym import ROOMS
from forcing.recipes import find, rooms


@dataclass(frozen=True)
class Options:
    """Train base, AR teacher, causal CD and DMD students in order.

    What is finished is skipped, what is not is resumed: run the same command again at any time.
    """

    recording: tyro.conf.Positional[str] = ROOMS  # "rooms", or the folder of a recording (forcing record)
    run: Annotated[Path | None, shown("DIR")] = None  # where everything is kept; default runs/NAME
    scale: rooms.Scale = "full"  # how much is recorded and how long is trained
    chunk: int = 1  # frames generated together: 1 is frame-wise
    from_scratch: bool = False  # train the base, too, instead of starting from the shipped one
    only: Annotated[tuple[str, ...], shown("NAME")] = ()  # train only these recipes


def run(args: Sequence[str], console: Console) -> int:
    """Train what is not trained yet."""
    options = read(Options, args, "pipeline")
    folder = options.run or Path("runs") / Path(options.recording).name
    asked = setting.settle(folder, recording=options.recording, scale=options.scale, chunk=options.chunk)
    began = time.monotonic()
    train(folder, asked, console, from_scratch=options.from_scratch, only=options.only)
    console.print(
        f"done in {duration(time.monotonic() - began)}. Next: forcing generate --run {folder}"
        + (f", forcing eval {folder}" if asked.recording == ROOMS else "")
    )
    return 0


def train(
    folder: Path, asked: setting.Setting, console: Console, *, from_scratch: bool = False, only: Sequence[str] = ()
) -> None:
    """Record and train into `folder`. Raises GateClosed or Interrupted."""
    for name in only:
        find(rooms.recipes(None, asked.scale, asked.chunk), name)
    data = setting.recording(folder, asked, console)
    setting.keep(folder, asked)
    made = setting.pipeline(folder, asked, data, console, from_scratch=from_scratch)
    made.run(only or rooms.PIPELINE, data)


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
