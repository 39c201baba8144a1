"""Command lines into frozen dataclasses. The comment behind a field is its help text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import tyro

Kind = TypeVar("Kind")

HELP = frozenset(("-h", "--help"))
_STYLE = (
    tyro.conf.AvoidSubcommands,  # a union with a default is of that default's kind: --stage.guidance, no subcommand
    tyro.conf.FlagCreatePairsOff,
)


def read(kind: type[Kind], args: Sequence[str], command: str, default: Kind | None = None) -> Kind:
    """A `kind` from the arguments of `forcing command`. Mistakes are shown, and leave with code 2."""
    if default is None:
        return tyro.cli(kind, args=list(args), prog=f"forcing {command}", config=_STYLE)
    return tyro.cli(kind, args=list(args), prog=f"forcing {command}", config=_STYLE, default=default)


def read_known(kind: type[Kind], args: Sequence[str], command: str) -> tuple[Kind, list[str]]:
    """The same, with the arguments that `kind` does not know handed back."""
    return tyro.cli(kind, args=list(args), prog=f"forcing {command}", config=_STYLE, return_unknown_args=True)


def shown(metavar: str, name: str | None = None) -> object:
    """Of a field that may be left out: how its value and its option are called, and no "default: None"."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint="")
