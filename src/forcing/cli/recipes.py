"""`forcing recipes`: the runs we know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from forcing.cli.options import read, shown
from forcing.recipe import Recipe, dump
from forcing.recipes import find, rooms, wan


@dataclass(frozen=True)
class Options:
    """Show the recipes, or one of them as JSON."""

    name: tyro.conf.Positional[Annotated[str | None, shown("[NAME]")]] = None  # the recipe to print
    scale: rooms.Scale = "full"  # how long its stages train
    chunk: int = 1  # frames generated together


def run(args: Sequence[str], console: Console) -> int:
    """A table of all, or the JSON of one."""
    options = read(Options, args, "recipes")
    recipes = rooms.recipes(None, options.scale, options.chunk) | wan.recipes(None, options.chunk)
    if options.name is not None:
        console.print(json.dumps(dump(find(recipes, options.name)), indent=1))
        return 0
    table = Table("recipe", "stage", "starts from", "samples in", "trains for")
    for name, recipe in recipes.items():
        table.add_row(name, type(recipe.stage).__name__, _starts(recipe), _samples(recipe), f"{recipe.steps} steps")
    console.print(table, soft_wrap=False)
    console.print(f"a pipeline runs {', '.join(rooms.PIPELINE)}; forcing recipes NAME prints one")
    return 0


def _starts(recipe: Recipe) -> str:
    return ", ".join(f"{role}: {how.start}" for role, how in recipe.roles.items() if how.start) or "nothing"


def _samples(recipe: Recipe) -> str:
    plan = recipe.sampling.plan
    steps = f"{len(plan.rest)} step{'s' * (len(plan.rest) > 1)}"
    return steps if plan.first is None else f"{steps} ({len(plan.first)} at first)"
