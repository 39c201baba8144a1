"""`forcing demo`: the whole method on a small world, from recording to report, while you wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from forcing.cli import eval as evaluation
from forcing.cli import pipeline, report, setting
from forcing.cli.options import read
from forcing.data.shards import Recording
from forcing.eval.measure import QUICK


@dataclass(frozen=True)
class Options:
    """Record a small world, train AR teacher, causal CD and DMD students in it, measure them and write a report.

    About a quarter of an hour on two cores. Stopped, it continues when it is run again.
    """

    run: Path = Path("runs/demo")  # where everything is kept


def run(args: Sequence[str], console: Console) -> int:
    """Everything, then what was found and what to try next."""
    folder = read(Options, args, "demo").run
    began = time.monotonic()
    asked = setting.settle(folder, recording=setting.ROOMS, scale="demo", chunk=1)
    pipeline.train(folder, asked, console)
    data = Recording.open(setting.recorded(folder))
    results = evaluation.measure(folder, data, QUICK, " ".join(["forcing", "demo", *args]), console)
    page = report.write(folder)
    evaluation.show(results, console)
    console.print(
        f"\ndone in {pipeline.duration(time.monotonic() - began)}. Look at {page.resolve()}\n\n"
        "Next:\n"
        f"  forcing play {folder}    # in the browser: hold a key, change the prompt, beside the real environment\n"
        f'  forcing generate --run {folder} --prompt "four rooms" --actions "forward*3,left,forward*2,right"\n'
        f'  forcing generate --run {folder} --prompt "multi room" --at 24 "lava crossing" --policy random --show-keys\n'
        f"  forcing generate --run {folder} --recipe ar --steps 2    # the teacher, at as few steps as the student\n"
        "  forcing recipes"
    )
    return 0
