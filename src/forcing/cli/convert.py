"""`forcing convert`: Wan's weights under the names that others expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from forcing.cli.models import DTYPES, check_place
from forcing.cli.options import read, shown
from forcing.convert import Form, Written, convert_wan


@dataclass(frozen=True)
class Options:
    """Convert the weights of a Wan transformer, one tensor at a time.

    SOURCE is a file (.safetensors, .pt, .pth, .bin), or the folder of a diffusers pipeline, a transformer, or a world.
    Weights that modulate or normalise are float32 at least, whatever the dtype.
    """

    source: tyro.conf.Positional[Annotated[Path, shown("SOURCE")]]  # what to read
    out: tyro.conf.Positional[Annotated[Path, shown("OUT")]]  # a new folder, or a .safetensors file (--to wan only)
    to: Form = "wan"  # the names: the original ones, or diffusers'
    dtype: Annotated[str | None, shown("NAME")] = None  # float32, bfloat16, float16; default: as stored
    weights: Annotated[str | None, shown("NAME")] = None  # which network of a .pt file, such as generator_ema


def run(args: Sequence[str], console: Console) -> int:
    """Convert, and say what was written."""
    options = read(Options, args, "convert")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise ValueError(f"dtype is {options.dtype!r}: choose from {', '.join(DTYPES)}")
    dtype = DTYPES[options.dtype] if options.dtype else None
    check_place(options.source)
    written = convert_wan(options.source, options.out, to=options.to, dtype=dtype, weights=options.weights)
    console.print(f"{options.out}: {describe(written)}; {_listed(options.out)}")
    return 0


def describe(written: Written) -> str:
    """Parameters, layers and types, in a few words."""
    kinds = sorted(written.parameters.items(), key=lambda each: -each[1])
    shares = " and ".join(f"{count:,} in {str(kind).removeprefix('torch.')}" for kind, count in kinds)
    total, layers = sum(written.parameters.values()), written.config.num_layers
    return f"{total:,} parameters, {layers} layers ({shares})"


def _listed(out: Path) -> str:
    found = sorted(out.iterdir()) if out.is_dir() else [out]
    return ", ".join(f"{path.name} ({path.stat().st_size / 1e6:,.1f} MB)" for path in found)
