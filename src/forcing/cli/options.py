"""Command lines into frozen dataclasses. The comment behind a field is its help text."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import pairwise
from typing import Any, TypeVar

import tyro

Kind = TypeVar("Kind")

MOST_SIDE = 16384  # more than a video can have
_NEAR = "Perhaps you meant:"
HELP = frozenset(("-h", "--help"))
_STYLE = (
    tyro.conf.AvoidSubcommands,  # a union with a default is of that default's kind: --stage.guidance, no subcommand
    tyro.conf.FlagCreatePairsOff,
)


def read(kind: type[Kind], args: Sequence[str], command: str, default: Kind | None = None) -> Kind:
    """A `kind` from the arguments of `forcing command`. Mistakes are shown, and leave with code 2."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    with _mistakes_in_a_line(command):
        return tyro.cli(kind, args=list(args), prog=f"forcing {command}", config=_STYLE, **given)


def read_known(kind: type[Kind], args: Sequence[str], command: str) -> tuple[Kind, list[str]]:
    """The same, with the arguments that `kind` does not know handed back."""
    with _mistakes_in_a_line(command):
        return tyro.cli(kind, args=list(args), prog=f"forcing {command}", config=_STYLE, return_unknown_args=True)


@contextmanager
def _mistakes_in_a_line(command: str) -> Iterator[None]:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
        sys.stderr.write(said.getvalue())
    except SystemExit as leaving:
        if leaving.code:
            sys.stderr.write(f"error: {_in_a_line(said.getvalue(), command)}\n")
        raise


def _in_a_line(box: str, command: str) -> str:
    # The parser draws a box of many lines: a title, what is wrong, a rule, hints. Without Unicode it has no sides.
    inside = [line.strip(" │|") for line in box.splitlines()[1:]]
    ruled = [not line.strip("+-─╰╯") for line in inside]
    if all(ruled):  # drawn in a way that we do not know: better as it is than lost
        return box
    first = ruled.index(False)
    wrong = " ".join(inside[first : [*ruled, True].index(True, first)]).rstrip(".")
    near = [option.split()[0] for line, option in pairwise(inside) if line == _NEAR]
    hint = f"did you mean {near[0]}?" if near else f"see forcing {command} --help"
    wrong = wrong.removeprefix("Error parsing ")  # what is said begins with "error: "
    return f"{wrong[0].lower()}{wrong[1:]}; {hint}"


def shown(metavar: str, name: str | None = None) -> object:
    """Of a field that may be left out: how its value and its option are called, and no "default: None"."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint="")


def size(told: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT", as videos are spoken of."""
    width, cross, height = told.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size is {told!r}: give width x height in pixels, such as 832x480")
    if max(int(width), int(height)) > MOST_SIDE:
        raise ValueError(f"size is {told!r}: sides are at most {MOST_SIDE} pixels")
    return int(height), int(width)
