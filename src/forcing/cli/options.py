"""Command lines into frozen dataclasses. The comment behind a field is its help text."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import pairwise
from typing import Any, TypeVar

import tyro

Kind = TypeVar("Kind")

MOST_SIDE = 16384  # more than a video can have
_NEAR = "Perhaps you meant:"
_PLAIN = (  # the parser speaks of its types, users do not
    (r"no type matching .*\|INT could be instantiated from \[(.*)\]", r"\1 is not a whole number"),
    (r"no type matching .*\|FLOAT could be instantiated from \[(.*)\]", r"\1 is not a number"),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number"),
    (r"could not convert string to float: (.*)", r"\1 is not a number"),
    (r"Could not parse arguments \[(.*)\] into tuple type .*", r"\1 are not what it takes"),
)
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
    wrong = _plainly(wrong.removeprefix("Error parsing "))  # what is said begins with "error: "
    return f"{wrong[0].lower()}{wrong[1:]}; {hint}"


def _plainly(wrong: str) -> str:
    if found := re.fullmatch(r"invalid choice '(.*)' for argument '--(.*)'\. Expected one of \((.*)\)", wrong):
        choices = set(re.findall(r"'([^']*)'", found[3])) - {"None"}
        return f"{found[2]} is {found[1]!r}: choose from {', '.join(sorted(choices))}"
    for words, plain in _PLAIN:
        wrong = re.sub(words, plain, wrong)
    return wrong


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


def check_size(size: tuple[int, int], stride: Sequence[int], patch: Sequence[int], what: str = "size") -> None:
    """ValueError where frames of `size` (height, width) are not of whole latents in whole patches of a transformer."""
    high, wide = (pixels * latents for pixels, latents in zip(stride[1:], patch[1:], strict=True))
    if min(size) < 1 or size[0] % high or size[1] % wide:
        raise ValueError(
            f"{what} is {size[1]}x{size[0]}: the width must be a multiple of {wide} pixels, the height of {high}"
        )
