"""A shot: everything that decides what a clip of Wan shows, as a value, and the frames it makes."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from forcing import __version__, files, media
from forcing.backbones.wan import WanConfig
from forcing.cli.options import check_size
from forcing.codecs import Codec, Pixels
from forcing.cond import Cond
from forcing.data import videos
from forcing.data.order import seeded
from forcing.data.videos import Fit
from forcing.recipe import Sampling, dump, parse
from forcing.shapes import Latents
from forcing.text.umt5 import NEGATIVE
from forcing.world import World

FORMAT = 1
MADE_BY = "forcing generate --model"
MOST_FRAMES = 1_000_000


@dataclass(frozen=True)
class Start:
    """The image, or the last `frames` pictures of the video, that a clip goes on from, fitted to its size by `fit`."""

    medium: Literal["image", "video"]
    path: str
    mark: str  # of the file
    frames: int
    fit: Fit

    def pictures(self, fps: float, size: tuple[int, int]) -> Pixels:
        """uint8 [frames, height, width, 3]. ValueError if the file is no longer the one that was meant."""
        path = Path(self.path)
        if files.mark([path]) != self.mark:
            raise ValueError(f"{path} is not the file that this clip began with: it has changed")
        if self.medium == "image":
            return videos.fitted(media.image(path), size, self.fit)[None]
        return _ending(path, videos.Cut(size, self.frames, fps, self.fit))


@dataclass(frozen=True)
class Shot:
    """One clip of `frames` pictures, the start's included, of `size` (height, width), `fps` of them a second.

    switches: (picture, prompt): told from the first chunk on that begins there or later.
    """

    prompt: str
    frames: int
    fps: float
    size: tuple[int, int]
    seed: int
    sampling: Sampling
    negative: str = NEGATIVE
    switches: tuple[tuple[int, str], ...] = ()
    start: Start | None = None

    def check(self, world: World) -> None:
        """ValueError for what this world cannot make, before any work."""
        name = world.recipe.name
        if isinstance(world.recipe.backbone, WanConfig):
            check_size(self.size, world.codec.stride, world.recipe.backbone.patch)
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it must be 0 or more")
        least = 1 if self.start is None else self.start.frames + 1
        if not least <= self.frames <= MOST_FRAMES:
            raise ValueError(f"frames is {self.frames}: it must be from {least} to {MOST_FRAMES}")
        if not world.causal and (self.start is not None or self.switches):
            raise ValueError(
                f"{name} is bidirectional and makes its clip at once: no --image, --video or --at; a causal model "
                "(wan-ar, wan-cd, wan-dmd-...) goes on from what is there"
            )
        if len({at for at, _ in self.switches}) < len(self.switches):
            raise ValueError(f"--at names a moment twice: {', '.join(str(at) for at, _ in self.switches)}")
        for at, _ in self.switches:
            if not least <= at < self.frames:
                raise ValueError(
                    f"--at picture {at}: the prompt can change from picture {least} on and before {self.frames}"
                )

    def stream(self, world: World, given: Pixels | None, decode: Callable[[Latents], Pixels]) -> Iterator[Pixels]:
        """Pictures uint8 [n, H, W, 3], as they are made, those of the start first: as the codec gives them back."""
        time = world.codec.stride[0]
        start, held, made = None, 0, 0
        if given is not None:
            clean = world.codec.encode(given[None])
            held = clean.shape[1]
            start = (clean, world.cond([self.prompt], None, held))
            pictures = decode(clean)[0]
            made = len(pictures)
            yield pictures
        chunk, known = self.sampling.chunk, {}
        wanted = 1 + -(-(self.frames - 1) // time) - held
        conds = (self._told(world, held + first, time, known) for first in range(0, wanted, chunk))
        shape = world.codec.size(*self.size)
        rng = seeded(self.seed, "generate", device=device_of(world))
        for latents in world.stream(conds, 1, rng, sampling=self.sampling, start=start, latents=shape):
            pictures = decode(latents)[0][: self.frames - made]
            made += len(pictures)
            if len(pictures):
                yield pictures

    def _told(self, world: World, latent: int, time: int, known: dict[str, Cond]) -> Cond:
        """What a chunk is told that begins with this latent frame, whose first picture is 1 + time (latent - 1)."""
        picture, prompt = max(0, 1 + time * (latent - 1)), self.prompt
        for at, switched in sorted(self.switches):
            if at <= picture:
                prompt = switched
        if prompt not in known:
            known[prompt] = world.cond([prompt], None, self.sampling.chunk)
        return known[prompt]


def image(path: Path, fit: Fit) -> Start:
    """An image to go on from."""
    media.image(path)
    return Start("image", str(path.resolve()), files.mark([path]), 1, fit)


def video(path: Path, fit: Fit, fps: float, most: int, time: int) -> Start:
    """The end of a video to go on from: as many pictures, at most `most`, as whole latent frames of `time` hold."""
    if most < 1:
        raise ValueError(f"context is {most}: at least 1 picture of a video is gone on from")
    there = len(_ending(path, videos.Cut((16, 16), most, fps, fit)))
    return Start("video", str(path.resolve()), files.mark([path]), there - (there - 1) % time, fit)


def _ending(path: Path, cut: videos.Cut) -> Pixels:
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a video to go on from")
    try:
        return videos.ending(path, cut)
    except videos.UnusableError as damage:
        raise ValueError(f"{path} {damage}") from damage


def device_of(world: World) -> str:
    """Where a world computes."""
    return str(next(world.model.parameters()).device)


def count_latents(codec: Codec, frames: int) -> int:
    """Latent frames that hold so many pictures."""
    return 1 + -(-(frames - 1) // codec.stride[0])


def write(path: Path, shot: Shot, world: World, source: Mapping[str, object], file: str) -> None:
    """The JSON file that --from reads. source: which networks made it. file: the clip's name."""
    document = {
        "format": FORMAT,
        "made_by": MADE_BY,
        "shot": dump(shot),
        "source": {name: str(value) for name, value in source.items()},
        "file": file,
        "recipe": dump(world.recipe),
        "versions": {
            "forcing": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": device_of(world),
            "threads": torch.get_num_threads(),
        },
    }
    files.write_json(path, document)


def is_one(path: Path) -> bool:
    """Whether `path` is what `write` wrote, rather than the JSON file of a small world's clip."""
    return _document(path).get("made_by") == MADE_BY


def beside(path: Path) -> Path:
    """The JSON file of the clip `path`."""
    return path.with_name(path.name + ".json")


@dataclass(frozen=True)
class Sidecar:
    """What `write` wrote to `path`: the shot, which networks made it, and the name of its clip."""

    path: Path
    shot: Shot
    source: Mapping[str, str]
    file: str


def read(path: Path) -> Sidecar:
    """ValueError for what `write` did not write."""
    document = _document(path)
    if document.get("format") != FORMAT:
        raise ValueError(f"{path} has format {document.get('format')!r}; this version reads format {FORMAT}")
    try:
        shot, source = parse(Shot, document["shot"]), document["source"]
        _ = source["model"], source["pipeline"], Path(document["file"])
        whole = (shot.frames, shot.seed, *shot.size, *(at for at, _ in shot.switches))
        if not all(isinstance(number, int) for number in whole):
            raise TypeError(f"frames, seed, size and switches must be whole numbers, not {whole}")  # noqa: TRY301
    except (LookupError, TypeError, AttributeError, ValueError) as damage:
        raise ValueError(
            f"{path} is not the JSON file of a clip of Wan ({type(damage).__name__}: {damage})"
        ) from damage
    return Sidecar(path, shot, source, document["file"])


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as damage:
        raise ValueError(f"{path} is not the JSON file of a generated clip ({damage})") from damage
    return found if isinstance(found, dict) else {}
