"""`forcing fixture`: a tiny random Wan pipeline and a few videos, to try every command without a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from forcing.cli.options import read
from forcing.fixture import SIZE, fixture, new, videos


@dataclass(frozen=True)
class Options:
    """Write a tiny Wan pipeline of random weights, and a few captioned videos, to try every command with.

    The weights are random, so nothing that it generates looks like anything.
    """

    folder: tyro.conf.Positional[Path]  # a new folder, for the pipeline and the videos
    seed: int = 0  # of the weights and of the videos


def run(args: Sequence[str], console: Console) -> int:
    """Both, then what to try with them."""
    options = read(Options, args, "fixture")
    folder = options.folder
    with new(folder) as draft:
        made = videos(draft / "videos", seed=options.seed)
        fixture(draft / "pipeline", seed=options.seed)
        prompt = (made / "prompts.txt").read_text(encoding="utf-8").splitlines()[0]
    pipeline, clips, size = folder / "pipeline", folder / "videos", f"{SIZE[1]}x{SIZE[0]}"
    console.print(
        f"{pipeline}: a pipeline of random weights\n{clips}: captioned clips, and start.png to begin with\n\n"
        "Next:\n"
        f"  forcing encode {clips} --model {pipeline} --out {folder}/latents --size {size} --frames 9\n"
        f"  forcing train wan-ar --model {pipeline} --data {folder}/latents --run {folder}/run --steps 5 --batch 2\n"
        f'  forcing generate --model {pipeline} --prompt "{prompt}" --size {size} --frames 9\n'
        f'  forcing generate --model {folder}/run/wan-ar/world --image {clips}/start.png --prompt "{prompt}" --frames 9'
    )
    return 0
