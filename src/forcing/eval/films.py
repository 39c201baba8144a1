"""Clips to look at: every row from the same starts, prompts and keys, beside the real world."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from forcing import files
from forcing.data.shards import Recording
from forcing.eval.rows import Candidate, facts
from forcing.eval.samples import Player
from forcing.eval.scenes import Footage, showcase
from forcing.world import World

COLORS = 256  # of a strip: tiles have fewer, blends of them more


@dataclass(frozen=True)
class Shooting:
    """How much is shown. start: real frames given; frames: generated after them; clip: frames begun from nothing."""

    start: int = 4
    frames: int = 44
    clip: int = 24
    seed: int = 7


@dataclass(frozen=True)
class Take:
    """What a row, or "real", made of the scenes: uint8 [prompts, T, H, W, 3], None where it cannot."""

    name: str
    label: str
    told: np.ndarray | None
    free: np.ndarray | None
    nothing: np.ndarray | None


@dataclass(frozen=True)
class Reel:
    """All takes of the same scenes. keys: int [prompts, T], what is pressed in the told scenes, -1 before the first."""

    prompts: tuple[str, ...]
    keys: np.ndarray
    takes: tuple[Take, ...]


def shoot(rows: Sequence[Candidate], recording: Recording, folder: Path, shooting: Shooting | None = None) -> Reel:
    """Play every row; what was played before is kept in `folder`, by what made it."""
    how = shooting or Shooting()
    footage = showcase(recording, how.start + how.frames)
    real = Take("real", "the real world", footage.frames, footage.frames, footage.frames[:, : how.clip])
    takes = [real]
    loaded: tuple[Path, World] | None = None
    for row in rows:
        facing = [asdict(how), facts(row), recording.manifest["spec"]]
        key = hashlib.sha256(json.dumps(facing, sort_keys=True).encode()).hexdigest()[:16]
        path = folder / f"{row.name}-{key}.npz"
        take = _kept(path, row)
        if take is None:
            world = loaded[1] if loaded is not None and loaded[0] == row.world else World.load(row.world)
            loaded = (row.world, world)
            take = _play(world, row, footage, how)
            _keep(path, take)
        takes.append(take)
    return Reel(footage.prompts, footage.led, tuple(takes))


def strip(clip: np.ndarray) -> str:
    """A clip uint8 [T, H, W, 3] as a data URI: its frames side by side in one PNG, pixel for pixel."""
    image = Image.fromarray(np.concatenate(list(clip), 1))
    packed = io.BytesIO()
    # by coverage, not by count: the one red tile of the agent must stay red
    flat = image.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    flat.save(packed, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def _play(world: World, row: Candidate, footage: Footage, how: Shooting) -> Take:
    player = Player(world, row, how.seed)
    if not row.causal:
        return Take(row.name, row.label, None, None, player.free(footage, 0, row.recipe.frames))
    given, frames = footage.frames[:, : how.start], footage.frames.shape[1] - how.start
    told, free = (np.concatenate([given, play(footage, how.start, frames)], 1) for play in (player.told, player.free))
    return Take(row.name, row.label, told, free, player.free(footage, 0, how.clip))


def _kept(path: Path, row: Candidate) -> Take | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError):
        return None
    return Take(row.name, row.label, found.get("told"), found.get("free"), found.get("nothing"))


def _keep(path: Path, take: Take) -> None:
    clips = {"told": take.told, "free": take.free, "nothing": take.nothing}
    with files.whole(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: c for name, c in clips.items() if c is not None})
