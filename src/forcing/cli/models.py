"""Which Wan is meant: a pipeline's folder, a transformer's, a world of ours, or a file of weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

import torch

from forcing.convert import load_wan
from forcing.kit import WanKit
from forcing.recipe import Recipe
from forcing.recipes import find, wan
from forcing.world import World

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def opened(
    source: Path,
    *,
    pipeline: Path | None = None,
    recipe: str | None = None,
    frames: int = wan.Facts().frames,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
) -> World:
    """The world at `source`. Weights that do not say how they are sampled are taken for the product of `recipe`.

    pipeline: the folder with VAE and text encoder, if `source` is none. weights: which of a file's networks.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist: give the folder of a pipeline or a world, or a file of weights")
    for place in (source, pipeline or source):
        check_place(place)
    if (source / "world.json").is_file():
        world = World.load(source, device=device, dtype=dtype)
        if recipe is not None:
            raise ValueError(f"{source} says itself how it is sampled ({world.recipe.name}): leave out --recipe")
        if weights is not None:
            raise ValueError(f"{source} is a world, which holds one network: leave out --weights")
        if pipeline is not None:
            world.kit = replace(kit_of(world), pipeline=pipeline)
        return world
    model = load_wan(source, device=device, dtype=dtype, weights=weights)
    made_by = _recipe(recipe or (wan.RELEASED if source.is_dir() else "wan-dmd-4step"), wan.Facts(model.config, frames))
    home = pipeline or _pipeline(source)
    return World(model, WanKit(home, wan.SIZE, model.config.text_len, device, dtype), made_by)


def kit_of(world: World) -> WanKit:
    """Where Wan's VAE and text encoder are; ValueError for a small world."""
    if not isinstance(world.kit, WanKit):
        raise ValueError(f"{world.recipe.name} is the recipe of a small world, not of Wan")  # noqa: TRY004 (the user's)
    return world.kit


def weights_of(source: Path) -> list[Path]:
    """The files that hold a model's weights."""
    if source.is_file():
        return [source]
    home = source / "transformer" if (source / "transformer").is_dir() else source
    return sorted(home.glob("*.safetensors"))


def check_place(source: Path) -> None:
    """ValueError for a folder that is nothing itself and holds what is most likely meant."""
    near = [source / name for name in ("pipeline", "world") if (source / name).is_dir()]
    if near and not any(source.glob("*.json")):
        raise ValueError(f"{source} is no pipeline, world or transformer. Did you mean {near[0]}?")


def warn_of_cut(cut: Mapping[str, int], length: int) -> None:
    """Say on stderr which prompts, of so many tokens, are heard only to their first `length`."""
    for prompt, tokens in cut.items():
        start = shorten(prompt, 60, placeholder=" ...")
        sys.stderr.write(f"warning: a prompt has {tokens} tokens, of which {length} are heard: {start}\n")


def _recipe(name: str, facts: wan.Facts) -> Recipe:
    return find({wan.RELEASED: wan.released(facts), **wan.recipes(facts)}, name)


def _pipeline(source: Path) -> Path:
    # a transformer's folder, or a file in one, lies within its pipeline
    for place in (source, *source.resolve().parents[:2]):
        if (place / "vae").is_dir():
            return place
    raise ValueError(f"{source} comes without VAE and text encoder: give the folder of a Wan pipeline by --pipeline")
