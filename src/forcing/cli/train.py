"""`forcing train`: one recipe, any field of which can be changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from forcing.cli import setting
from forcing.cli.options import HELP, read, read_known, shown
from forcing.recipe import Recipe
from forcing.recipes import find, rooms, wan


@dataclass(frozen=True)
class Where:
    """Train one recipe: forcing train NAME [options]. NAME comes first; forcing recipes lists them. Those of Wan
    (wan-ar, ...) have options of their own: forcing train wan-ar --help.

    `forcing train NAME --help` shows the recipe's own fields; each can be changed, as in
    `forcing train dmd-2step --run runs/rooms --name dmd-strong --stage.guidance 2`.
    """

    run: Path = Path("runs/rooms")  # where the recording and the worlds to start from are
    recording: Annotated[str | None, shown("DIR")] = (
        None  # "rooms" or the folder of a recording; default: what the run is about
    )
    scale: Annotated[rooms.Scale | None, shown("demo|full")] = None  # default: the run's, else full
    chunk: Annotated[int | None, shown("N")] = None  # frames generated together; default: the run's, else 1


@dataclass(frozen=True)
class Options(Where):
    recipe: Annotated[Recipe | None, tyro.conf.arg(name="")] = None


def run(args: Sequence[str], console: Console) -> int:
    """Train the recipe into the folder of its name in the run, or say that it is finished."""
    if not args or args[0] in HELP:
        read(Where, ["--help"], "train")
    name, rest = args[0], args[1:]
    if name.startswith("-"):
        raise ValueError(f"the recipe comes first: forcing train NAME {' '.join(args)}; there are {_names()}")
    if name.startswith("wan"):
        from forcing.cli import distil

        return distil.run(args, console)
    find(rooms.recipes(), name)
    where, changes = read_known(Where, [arg for arg in rest if arg not in HELP], f"train {name}")
    if HELP.intersection(rest):
        asked = setting.Setting(scale=where.scale or "full", chunk=where.chunk or 1)
        return _help(name, asked)
    asked = setting.settle(where.run, recording=where.recording, scale=where.scale, chunk=where.chunk)
    drafted = _changed(rooms.recipes(None, asked.scale, asked.chunk)[name], changes, name)
    setting.ready(where.run, asked, drafted)  # a mistake shows before any work
    data = setting.recording(where.run, asked, console)
    setting.keep(where.run, asked)
    pipeline = setting.pipeline(where.run, asked, data, console, from_scratch=name == "base")
    recipe = _changed(pipeline.recipes[name], changes, name)
    replace(pipeline, recipes={**pipeline.recipes, recipe.name: recipe}).run([recipe.name], data)
    console.print(f"{recipe.name} is in {where.run / recipe.name / 'world'}")
    return 0


def _changed(recipe: Recipe, changes: Sequence[str], name: str) -> Recipe:
    changed = read(Recipe, changes, f"train {name}", recipe)
    if Path(changed.name).name != changed.name or changed.name.startswith("."):
        raise ValueError(f"name is {changed.name!r}: it must be the name of a folder within the run")
    return changed


def _help(name: str, asked: setting.Setting) -> int:
    recipe = rooms.recipes(None, asked.scale, asked.chunk)[name]
    read(Options, ["--help"], f"train {name}", Options(recipe=recipe))
    return 0


def _names() -> str:
    return ", ".join([*rooms.recipes(), *wan.recipes()])
