"""`forcing eval`: every stage of a run, measured against the world itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.measure import Measurement

from forcing import files
from forcing.cli import setting
from forcing.cli.bar import Bar
from forcing.cli.options import read, shown
from forcing.data.shards import Recording
from forcing.envs.gym import ROOMS
from forcing.eval.measure import FULL, QUICK, Measure
from forcing.eval.results import METRICS, SHORT_NOTE, Results
from forcing.eval.rooms import evaluate, results_path
from forcing.eval.tables import markdown, noted, table
from forcing.eval.verdict import promises, verdict


@dataclass(frozen=True)
class Options:
    """Measure every world of a run on held-out episodes: control, validity, distribution, drift and cost.

    Each row is kept as it is measured: run the same command again to continue.
    """

    folder: tyro.conf.Positional[Annotated[Path | None, shown("RUN")]] = None  # the run's folder
    run: Annotated[Path | None, shown("DIR")] = None  # the same, as an option
    quick: bool = False  # fewer and shorter clips
    recording: Annotated[Path | None, shown("DIR")] = None  # default: the run's


def run(args: Sequence[str], console: Console) -> int:
    """Measure what is not measured yet; show the table and what it says of the promises."""
    options = read(Options, args, "eval")
    folder = one(options.folder, options.run, "eval")
    data = Recording.open(options.recording or setting.recorded(folder))
    command = " ".join(["forcing", "eval", *args])
    results = measure(folder, data, QUICK if options.quick else FULL, command, console)
    show(results, console)
    kept = results_path(folder)
    files.write(kept.with_suffix(".md"), f"{promises(results)}\n{markdown(results)}")
    console.print(f"kept in {kept} and, to read, {kept.with_suffix('.md')}. Next: forcing report {folder}")
    return 0


def one(folder: Path | None, run: Path | None, command: str) -> Path:
    """The run folder, given once, as an argument or as an option."""
    if (folder is None) == (run is None):
        raise ValueError(f"give one run folder: forcing {command} RUN (a folder such as runs/rooms)")
    found = folder or run or Path()
    if not found.is_dir():
        raise ValueError(f"{found} is not a folder: give the folder of a run, such as runs/rooms")
    return found


def shipped(folder: Path) -> dict[str, Path]:
    """The shipped base where it is what the run starts from: it knows `rooms` and nothing else."""
    about = setting.known(folder)
    return setting.shipped_base() if about is None or about.recording == ROOMS else {}


def measure(folder: Path, data: Recording, how: Measure, command: str, console: Console) -> Results:
    """`evaluate` with a progress bar."""
    with Bar("measuring", "%", console) as bar:

        def progress(what: str, share: float) -> None:
            bar.show(round(100 * share), 100, what)

        return evaluate(folder, data, how, shipped=shipped(folder), progress=progress, command=command)


def show(results: Results, console: Console) -> None:
    """The table, in as many pieces as the console's width asks for, and the promises, kept or not."""
    pieces: list[tuple[str, ...]] = []
    for group in dict.fromkeys(metric.group for metric in METRICS):
        if pieces and _fits(_only(results, (*pieces[-1], group)), console):
            pieces[-1] = (*pieces[-1], group)
        else:
            pieces.append((group,))
    for groups in pieces:
        piece = table(_only(results, groups))
        piece.title = piece.title if groups == pieces[0] else None
        if groups != pieces[-1]:
            piece.caption = SHORT_NOTE if noted(_only(results, groups)) else None
        console.print(piece, soft_wrap=False, markup=True)
    for claim in verdict(results):
        console.print(f"{'kept  ' if claim.passed else 'MISSED'}  {claim.claim}\n        {claim.numbers}")


def _only(results: Results, groups: tuple[str, ...]) -> Results:
    names = {metric.name for metric in METRICS if metric.group in groups}
    rows = [replace(row, values={k: v for k, v in row.values.items() if k in names}) for row in results.rows]
    return replace(results, rows=tuple(row for row in rows if row.values))


def _fits(results: Results, console: Console) -> bool:
    unbound = console.options.update(max_width=1000, markup=True)
    return Measurement.get(console, unbound, table(results)).maximum <= console.width
