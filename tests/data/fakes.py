"""Videos, a codec and a text encoder that cost nothing, for latent sets.

As a script, `python fakes.py SOURCE OUT SECONDS` encodes slowly: a process that can be killed.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from forcing import media
from forcing.data.encode import Models
from forcing.data.videos import Cut

CUT = Cut(size=(16, 24), frames=5, fps=8.0)


@dataclass(frozen=True)
class Pooled:
    """A codec: means over tiles of 8 x 8 pixels, and over the frames that a latent covers. Stride (2, 8, 8)."""

    device: str = "cpu"
    pause: float = 0.0
    digest: str = "pooled"
    stride: tuple[int, int, int] = (2, 8, 8)

    def size(self, height: int, width: int) -> tuple[int, int, int]:
        if height % 8 or width % 8:
            raise ValueError(f"frames are {height} x {width} pixels: sides must be multiples of 8")
        return 3, height // 8, width // 8

    def encode(self, video: np.ndarray) -> Tensor:
        time.sleep(self.pause)
        frames = torch.from_numpy(video).float().unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).mean((3, 5))
        later = frames[:, 1:].unflatten(1, (-1, 2)).mean(2)
        return torch.cat([frames[:, :1], later], 1).movedim(-1, 2) / 127.5 - 1

    def decode(self, latents: Tensor) -> np.ndarray:
        raise AssertionError("nothing is decoded")

    def decoder(self):
        return self.decode


def pooled(pause: float, device: str) -> Pooled:
    return Pooled(device, pause)


@dataclass
class Letters:
    """A text encoder: one token a letter, its number in every of 4 places. No prompt is three tokens of -1."""

    length: int = 40
    digest: str = "letters"
    encoded: int = 0
    released: bool = False
    cut: dict[str, int] = field(default_factory=dict)

    def encode(self, prompts: Sequence[str | None]) -> Tensor:
        out = torch.zeros(len(prompts), self.length, 4)
        for row, prompt in zip(out, prompts, strict=True):
            self.encoded += 1
            for place, letter in zip(row, prompt or "", strict=False):
                place[:] = float(ord(letter) % 128)
        return out

    def null(self, batch: int) -> Tensor:
        out = torch.zeros(batch, self.length, 4)
        out[:, :3] = -1
        return out

    def release(self) -> None:
        self.released = True


def models(devices: Sequence[str] = ("cpu",), pause: float = 0.0) -> Models:
    return Models(partial(pooled, pause), Letters(), devices)


def film(frames: int, seed: int = 0, height: int = 16, width: int = 24) -> np.ndarray:
    """A clip whose frame i is bright in proportion to i, over a pattern of its own."""
    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 60, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    return (pattern + np.linspace(0, 190, frames)[:, None, None, None]).astype(np.uint8)


def record(
    path: Path, frames: np.ndarray, rate: int = 8, *, codec: str = "libx264rgb", times: Sequence[int] | None = None
) -> Path:
    """A video file, exact if `codec` is. times: of each frame, in thousandths of a second."""
    kind = {"libx264rgb": "rgb24", "libx264": "yuv420p", "mpeg4": "yuv420p", "libvpx-vp9": "yuv420p"}[codec]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=rate, options={"crf": "0"} if codec == "libx264rgb" else {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], kind
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=kind)
            if times is not None:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path


def shoot(folder: Path, lengths: Sequence[int], fps: float = 8.0) -> Path:
    """MP4 files v0.mp4, v1.mp4, ... of so many frames, with captions.csv."""
    for number, frames in enumerate(lengths):
        media.save(folder / f"v{number}.mp4", film(frames, number), fps=fps)
    rows = [f"v{number}.mp4,film number {number}" for number in range(len(lengths))]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


if __name__ == "__main__":
    from forcing.data import sources
    from forcing.data.encode import encode

    sources.UNIT = 2
    encode(Path(sys.argv[1]), Path(sys.argv[2]), CUT, models(pause=float(sys.argv[3])))
