"""`forcing record`: play an environment with held random keys and keep what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from forcing.cli.bar import Bar
from forcing.cli.options import read, shown
from forcing.data.shards import MANIFEST, Recording
from forcing.envs.gym import SHARD, Record, record
from forcing.recipes.rooms import FRAMES


@dataclass(frozen=True)
class Options:
    """Record a world into shards, the same bytes for the same options.

    Any Gymnasium environment that renders RGB and has discrete actions will do; "rooms" is the default world.
    """

    env: tyro.conf.Positional[str]  # "rooms", or a Gymnasium id, also as module:Id
    out: Path  # folder to record into
    frames: int  # frames in all
    seed: int = 0  # of the worlds and of the keys
    episode: int = 80  # most steps in an episode
    size: Annotated[int | None, shown("PIXELS")] = None  # shrink frames until the longer side is so many pixels
    holdout: float = 0.1  # share of the episodes kept for evaluation
    hold: float = 0.6  # probability that a key stays pressed for another step


def run(args: Sequence[str], console: Console) -> int:
    """Record, and say what was recorded."""
    options = read(Options, args, "record")
    spec = Record(
        options.env,
        options.frames,
        options.seed,
        options.episode,
        size=options.size,
        shard=max(SHARD, options.episode + 1),
        holdout=options.holdout,
        hold=options.hold,
    )
    lack = lacks(kept(spec, options.out, console))
    if lack:
        console.print(f"note: our recipes cannot be trained on it: {lack}")
    return 0


def kept(spec: Record, out: Path, console: Console) -> Recording:
    """The recording of `spec` in `out`, made now or there already, described on the console."""
    there = (out / MANIFEST).is_file()
    with Bar(f"recording {spec.env}", "frames", console) as bar:
        recording = Recording.open(record(spec, out, bar.show))
    console.print(f"{describe(recording)}{'; recorded before' if there else ''}")
    return recording


def lacks(recording: Recording) -> str | None:
    """Why our recipes cannot be trained on a recording; None if they can."""
    for split, remedy in (("train", "longer"), ("heldout", "longer, or more of them")):
        rows = recording.episodes(split)
        if not rows:
            return f"it keeps no episodes for {'evaluation: raise --holdout' if split == 'heldout' else 'training'}"
        longest = max(row["length"] for row in rows)
        if longest < FRAMES:
            return f"clips have {FRAMES} frames, and its longest {split} episode has {longest}: record {remedy}"
    return None


def describe(recording: Recording) -> str:
    """What was recorded, and where, in a few words."""
    rows, shards = recording.episodes(), recording.manifest["shards"]
    height, width, _ = recording.shape
    size = sum(shard["bytes"] for shard in shards) / 1e6
    return (
        f"{recording.path}: {sum(row['length'] for row in rows)} frames of {width}x{height} in {len(rows)} episodes "
        f"({len(recording.episodes('heldout'))} held out, {size:.1f} MB); prompts: {', '.join(recording.prompts)}; "
        f"keys: {', '.join(recording.actions)}"
    )
