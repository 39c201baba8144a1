"""`forcing report`: one self-contained page about a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from forcing.cli import setting
from forcing.cli.eval import one, shipped
from forcing.cli.options import read, shown
from forcing.eval.report import report


@dataclass(frozen=True)
class Options:
    """Write one HTML page: the table, loss curves, drift, and clips of every stage beside the real world."""

    folder: tyro.conf.Positional[Annotated[Path | None, shown("RUN")]] = None  # the run's folder
    run: Annotated[Path | None, shown("DIR")] = None  # the same, as an option
    out: Annotated[Path | None, shown("FILE.html")] = None  # default: report.html in the run


def run(args: Sequence[str], console: Console) -> int:
    """Write the page, and say where it is."""
    options = read(Options, args, "report")
    folder = one(options.folder, options.run, "report")
    page = write(folder, options.out)
    console.print(f"open {page.resolve()}")
    return 0


def write(folder: Path, out: Path | None = None) -> Path:
    """The page of a run folder."""
    if not (folder / setting.SETTING).is_file() and not any(folder.glob("*/world/world.json")):
        raise ValueError(f"{folder} is not a run: it holds neither {setting.SETTING} nor a trained world")
    data = setting.where(folder)
    return report(folder, out, recording=data if data.is_dir() else None, shipped=shipped(folder))
