"""The runs we know, as values. Nothing but the command line imports this."""

import difflib
from collections.abc import Mapping

from forcing.recipe import Recipe


def find(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    """The recipe called `name`, or an error that says which there are."""
    if name in recipes:
        return recipes[name]
    near = difflib.get_close_matches(name, recipes, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown recipe {name!r}; there are {', '.join(recipes)}.{hint}")
