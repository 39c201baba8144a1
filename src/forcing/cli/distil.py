"""`forcing train wan-...`: one stage on encoded video, from weights that the user has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from forcing.backbones.wan import WanConfig
from forcing.cli.models import DTYPES, kit_of, opened
from forcing.cli.options import HELP, check_size, read, read_known, shown
from forcing.codecs.wan_vae import WanVAE
from forcing.data.latents import LatentSet
from forcing.recipe import Recipe, differences, parse
from forcing.recipes import find, wan
from forcing.stages.consistency import Consistency
from forcing.stages.dmd import DMD
from forcing.text.umt5 import UMT5
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
    fitted = _fitted(name, base, data, where.chunk)
    recipe = read(Recipe, changes, f"train {name}", fitted)
    _check_changes(recipe, fitted, where.model)
    _check_encoders(data, kit_of(base).pipeline)
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
    stride = (1, data.size[0] // data.shape[2], data.size[1] // data.shape[3])
    check_size(data.size, stride, config.patch, f"the size of clips in {data.path}")
    return find(wan.recipes(wan.Facts(config, data.shape[0]), chunk), name)


def _check_changes(recipe: Recipe, fitted: Recipe, model: Path) -> None:
    """ValueError for what was changed and would not be heard."""
    sizes = replace(fitted.backbone, checkpoint=recipe.backbone.checkpoint)
    if _starts(recipe) and recipe.backbone != sizes:
        raise ValueError(f"--backbone: sizes are those of the weights in {model}; only --backbone.checkpoint is free")
    for name in ("gate", "withhold"):
        if getattr(recipe, name) != getattr(fitted, name):
            raise ValueError(f"--{name} is for recordings: nothing asks for it where Wan is trained")


def _check_encoders(data: LatentSet, pipeline: Path) -> None:
    """ValueError where data was encoded by other networks than those of `pipeline`; training alone can do without."""
    made = {
        "codec": ("vae", lambda: WanVAE.load(pipeline).digest),
        "text": ("text_encoder", lambda: UMT5(pipeline).digest),
    }
    for name, (folder, digest) in made.items():
        before = data.manifest[name]
        if (pipeline / folder).is_dir() and (now := digest()) != before:
            raise ValueError(
                f"{data.path} was encoded with another {folder} ({before}) than that of {pipeline} ({now}): encode it "
                "again, or name the pipeline that it was encoded with by --pipeline"
            )


def _check_chunk(recipe: Recipe, world: World, path: Path) -> None:
    """ValueError where a few-step student would begin as a model of other chunks."""
    own, asked = world.recipe.sampling.chunk, recipe.sampling.chunk
    if isinstance(recipe.stage, Consistency | DMD) and world.causal and own != asked:
        raise ValueError(f"{path} has chunks of {own}, and {recipe.name} of {asked}: give --chunk {own}")


def _starts(recipe: Recipe) -> list[str]:
    return sorted({role.start for role in recipe.roles.values() if role.start})


def _opened(start: str, recipe: Recipe, where: Where, base: World, device: str) -> World:
    if where.start is not None and start == recipe.roles["student"].start:
        world = opened(where.start, pipeline=kit_of(base).pipeline, frames=recipe.frames)
        if (where.start / "world.json").is_file():  # nothing else says how it was trained
            _check_chunk(recipe, world, where.start)
        return world
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
    world = World.load(path)
    _check_chunk(recipe, world, path)
    return world


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
