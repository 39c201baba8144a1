"""`forcing train wan-...`: one stage on encoded video, from weights that the user has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from forcing.backbones.wan import WanConfig
from forcing.cli.models import DTYPES, kit_of, opened
from forcing.cli.options import HELP, read, read_known, shown
from forcing.data.latents import LatentSet
from forcing.recipe import Recipe, differences, parse
from forcing.recipes import find, wan
from forcing.stages.dmd import DMD
from forcing.train.compute import place
from forcing.train.material import DATA, Encoded
from forcing.train.run import train
from forcing.world import World


@dataclass(frozen=True)
class Where:
    """Train one stage of Causal Forcing++ on Wan: forcing train wan-NAME --model DIR --data DIR [options].

    wan-ar makes the AR teacher of the base, wan-cd the few-step student of that, and wan-dmd-4step, -2step and -1step
    the final ones of that: each starts from the product in the same run. wan-base, first, tunes the base to the data;
    --start takes it, or any other weights.
    """

    model: Path  # the released base: a pipeline's folder
    data: Path  # what forcing encode made
    run: Path = Path("runs/wan")  # where the products are kept, and where starts are looked for
    teacher: Annotated[Path | None, shown("DIR")] = None  # DMD's larger base; default: --model
    start: Annotated[Path | None, shown("PATH")] = None  # what the student starts from, instead of the run's product
    pipeline: Annotated[Path | None, shown("DIR")] = None  # VAE and text encoder, if --model is without
    chunk: int = 1  # frames generated together: 1 is frame-wise, the published chunk-wise models have 3
    device: str = "auto"  # cpu, cuda or cuda:N
    frozen: str = "bfloat16"  # what DMD's teacher is kept in, on a GPU: float32 or bfloat16


@dataclass(frozen=True)
class Options(Where):
    recipe: Annotated[Recipe | None, tyro.conf.arg(name="")] = None


def run(args: Sequence[str], console: Console) -> int:
    """Train the recipe into the folder of its name in the run, or say that it is finished."""
    name, rest = args[0], [arg for arg in args[1:] if arg not in HELP]
    find(wan.recipes(), name)
    if HELP.intersection(args):
        example = Options(Path("PIPELINE"), Path("LATENTS"), recipe=wan.recipes()[name])
        read(Options, ["--help"], f"train {name}", example)
    where, changes = read_known(Where, rest, f"train {name}")
    if where.frozen not in DTYPES:
        raise ValueError(f"frozen is {where.frozen!r}: choose from {', '.join(DTYPES)}")
    device, data = place(where.device), LatentSet.open(where.data)
    base = opened(where.model, pipeline=where.pipeline, frames=data.shape[0])
    recipe = read(Recipe, changes, f"train {name}", _fitted(name, base, data, where.chunk))
    if recipe.name != Path(recipe.name).name or recipe.name.startswith("."):
        raise ValueError(f"name is {recipe.name!r}: it must be the name of a folder within the run")
    home = where.run / recipe.name
    if isinstance(recipe.stage, DMD) and where.teacher is None:
        console.print(f"no --teacher: {where.model} itself is asked (the published teacher is the 14B model)")
    starts = {start: _opened(start, recipe, where, base, device) for start in _starts(recipe)}
    if _finished(home, recipe, {name: world.digest for name, world in starts.items()} | {DATA: data.digest}):
        console.print(f"{recipe.name}: finished already", highlight=False)
    else:
        train(recipe, home, starts, Encoded(data, kit_of(base).pipeline), console, device=device)
    console.print(
        f'{recipe.name} is in {home / "world"}; try: forcing generate --model {home / "world"} --prompt "..."'
    )
    return 0


def _fitted(name: str, base: World, data: LatentSet, chunk: int) -> Recipe:
    # the network's sizes are those of the weights, the clips' those of the data
    config = base.recipe.backbone
    if not isinstance(config, WanConfig) or config.in_channels != data.shape[1]:
        raise ValueError(
            f"{data.path} has latents of {data.shape[1]} channels, which a model of {config} does not take"
        )
    return find(wan.recipes(wan.Facts(config, data.shape[0]), chunk), name)


def _starts(recipe: Recipe) -> list[str]:
    return sorted({role.start for role in recipe.roles.values() if role.start})


def _opened(start: str, recipe: Recipe, where: Where, base: World, device: str) -> World:
    if where.start is not None and start == recipe.roles["student"].start:
        return opened(where.start, pipeline=kit_of(base).pipeline, frames=recipe.frames)
    if start == wan.RELEASED:
        return base
    # nothing but DMD's teacher is frozen and brought from elsewhere; it is the largest, so it goes where it is needed
    if start == wan.TEACHER:
        dtype = DTYPES[where.frozen] if device != "cpu" else None
        source = where.teacher or where.model
        return opened(source, pipeline=kit_of(base).pipeline, frames=recipe.frames, device=device, dtype=dtype)
    path = where.run / start / "world"
    if not path.exists():
        raise ValueError(f"{start} must be trained first: no world in {path}; or name weights to start from by --start")
    return World.load(path)


def _finished(home: Path, recipe: Recipe, origin: Mapping[str, str]) -> bool:
    path = home / "world" / "world.json"
    if not path.is_file():
        return False
    try:
        document = json.loads(path.read_text())
        before, came = parse(Recipe, document["recipe"]), dict(document["starts"])
    except (ValueError, KeyError, TypeError) as damage:
        raise ValueError(f"{path} is damaged ({damage}); delete {home} to train it again") from damage
    different = differences(before, recipe)
    if different:
        raise ValueError(
            f"{home} was made by a different recipe (differs in: {', '.join(different)}); give another --run or --name"
        )
    other = [name for name, digest in origin.items() if came.get(name) != digest]
    if other:
        raise ValueError(
            f"{home} was made from another {', another '.join(other)}; give another --run or --name, or delete it"
        )
    return True
