"""A take: everything that decides what a generated clip shows, as a value and as the JSON file beside the clip."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from forcing import __version__, files, media
from forcing.cond import Cond
from forcing.data.order import seeded
from forcing.recipe import Sampling, dump, parse
from forcing.world import World

FORMAT = 1
MOST_FRAMES = 1_000_000


@dataclass(frozen=True)
class Take:
    """One clip for each prompt (None: nothing is told), `frames` long, the given start included.

    switches: (frame, prompt), from which all clips are told another prompt. actions: of each clip, for each frame the
    key that leads to it, -1 where none is told; None: keys are never told. start: first frames as base64 PNG files.
    """

    prompts: tuple[str | None, ...]
    frames: int
    seed: int
    sampling: Sampling
    switches: tuple[tuple[int, str | None], ...] = ()
    actions: tuple[tuple[int, ...], ...] | None = None
    start: tuple[str, ...] = ()

    def check(self, world: World) -> None:
        """ValueError for what this world cannot generate, before any work."""
        chunk, name = self.sampling.chunk, world.recipe.name
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it must be 0 or more")
        if not world.causal and (self.frames != chunk or self.start or self.switches):
            raise ValueError(
                f"{name} is bidirectional and makes one clip of {chunk} frames at once: --frames {chunk}, no --at and "
                f"no --start; a causal world (ar, cd, dmd-...) streams any number of frames"
            )
        if not 1 <= self.frames <= MOST_FRAMES:
            raise ValueError(f"frames is {self.frames}: it must be from 1 to {MOST_FRAMES}")
        if self.frames % chunk:
            raise ValueError(f"frames is {self.frames}: {name} makes {chunk} at a time, give a multiple of {chunk}")
        if self.start and (len(self.start) % chunk or len(self.start) >= self.frames):
            those = "" if chunk == 1 else f"a multiple of {chunk} and "
            raise ValueError(
                f"{len(self.start)} start frames: {name} continues {those}fewer than the {self.frames} of the clip"
            )
        if len({frame for frame, _ in self.switches}) < len(self.switches):
            raise ValueError(f"--at names a frame twice: {', '.join(str(frame) for frame, _ in self.switches)}")
        for frame, _ in self.switches:
            if not len(self.start) < frame < self.frames or frame % chunk:
                every = "" if chunk == 1 else f", at multiples of {chunk}"
                raise ValueError(
                    f"--at {frame}: the prompt can change after frame {len(self.start)} and before {self.frames}{every}"
                )

    def conds(self, world: World) -> Iterator[Cond]:
        """What each chunk is told, made when it is asked for."""
        chunk = self.sampling.chunk
        for first in range(len(self.start), self.frames, chunk):
            yield self._told(world, first, first + chunk)

    def stream(self, world: World) -> Iterator[np.ndarray]:
        """Frames uint8 [clips, n, H, W, 3], as they are made; the start comes first."""
        decode, start = world.codec.decoder(), None
        if self.start:
            given = np.stack([unpack(frame) for frame in self.start])[None].repeat(len(self.prompts), 0)
            start = (world.codec.encode(given), self._told(world, 0, len(self.start)))
            yield given
        rng = seeded(self.seed, "generate")
        how = self.sampling
        for latents in world.stream(self.conds(world), len(self.prompts), rng, sampling=how, start=start):
            yield decode(latents)

    def _told(self, world: World, first: int, stop: int) -> Cond:
        prompts = self.prompts
        for frame, prompt in sorted(self.switches, key=lambda switch: switch[0]):
            if frame <= first:
                prompts = (prompt,) * len(prompts)
        actions = None if self.actions is None else [each[first:stop] for each in self.actions]
        return world.cond(prompts, actions, stop - first)


def write(path: Path, take: Take, world: World, home: Path, look: dict[str, Any]) -> None:
    """The JSON file that `forcing generate --from` reads. `look`: how the clip was written, and to which files."""
    document = {
        "format": FORMAT,
        "made_by": "forcing generate",
        "take": dump(take),
        "look": look,
        "world": {"path": str(home.resolve()), "weights": weights(home), "keys": list(world.keys.names)},
        "recipe": dump(world.recipe),
        "versions": {
            "forcing": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
    }
    files.write_json(path, document)


def read(path: Path) -> tuple[Take, dict[str, Any], dict[str, Any]]:
    """The take, its look and its world, from a JSON file that `write` wrote."""
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"{path} has format {document['format']!r}; this version reads format {FORMAT}")
        wanted, look, world = parse(Take, document["take"]), document["look"], document["world"]
        _types(wanted)
        _ = Path(look["files"][0]), Path(world["path"]), world["weights"]
    except (LookupError, TypeError, AttributeError, RecursionError, OSError, binascii.Error) as damage:
        raise ValueError(
            f"{path} is not the JSON file of a generated clip ({type(damage).__name__}: {damage})"
        ) from damage
    except (json.JSONDecodeError, UnicodeDecodeError) as damage:
        raise ValueError(f"{path} is not the JSON file of a generated clip ({damage})") from damage
    return wanted, look, world


def _types(wanted: Take) -> None:
    # JSON says nothing of types, and a number where a text should be would fail only when it is used
    if not all(isinstance(number, int) for number in (wanted.frames, wanted.seed)):
        raise TypeError(f"frames {wanted.frames!r} and seed {wanted.seed!r} must be whole numbers")
    for frame in wanted.start:
        unpack(frame)


def weights(home: Path) -> str:
    """The sha256 of a world's weights."""
    return hashlib.sha256((home / "model.safetensors").read_bytes()).hexdigest()


def pack(frame: np.ndarray) -> str:
    """A frame as text."""
    return base64.b64encode(media.png(frame)).decode()


def unpack(text: str) -> np.ndarray:
    """The frame that `pack` wrote."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.array(image.convert("RGB"))


def first_frame(path: Path, size: Sequence[int]) -> np.ndarray:
    """An image of the world's frame size (height, width), or of a whole multiple of it, as a clip of ours has."""
    image = media.image(path)
    height, width = size
    times = image.shape[0] // height
    if times < 1 or image.shape[:2] != (times * height, times * width):
        raise ValueError(
            f"{path} is {image.shape[1]}x{image.shape[0]}; this world's frames are {width}x{height} (or a whole "
            "multiple of it)"
        )
    return np.ascontiguousarray(image[times // 2 :: times, times // 2 :: times])
