"""A linear tile codec: each tile of pixels becomes a few channels, by the principal axes of the tiles seen.

What a VAE is to Wan, for worlds small enough not to need one: a world drawn from k different tiles is coded without
loss in k - 1 channels. Frames are padded at the top and the right to the size the backbone needs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from forcing.codecs import Memoryless, Pixels
from forcing.shapes import Latents


@dataclass(frozen=True)
class LinearConfig:
    """`frame`: (height, width) in pixels. `tile`: pixels a side. `multiple`: the latent grid is padded to it."""

    frame: tuple[int, int]
    tile: int = 8
    channels: int = 8
    multiple: int = 2

    @property
    def latents(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent frame."""
        height, width = (_up(-(-side // self.tile), self.multiple) for side in self.frame)
        return self.channels, height, width


class LinearCodec:
    """mean [D], axes [D, C] orthonormal, scale: latents = (tile - mean) axes / scale, with D = tile x tile x 3."""

    def __init__(self, config: LinearConfig, mean: Tensor, axes: Tensor, scale: float) -> None:
        self.config, self.mean, self.axes, self.scale = config, mean, axes, scale

    @staticmethod
    def fit(frames: Pixels, tile: int = 8, channels: int = 8, multiple: int = 2) -> "LinearCodec":
        """Principal axes of the different tiles in `frames` [N, H, W, 3]; at most `channels`, fewer if they suffice."""
        config = LinearConfig(tuple(frames.shape[1:3]), tile, channels, multiple)
        kinds, counts = _kinds(frames, config)
        # each kind counts once, so that rare ones (a goal) are coded as well as the floor, whatever was recorded
        data = torch.from_numpy(kinds).double() / 127.5 - 1
        mean = data.mean(0)
        _, strength, axes = torch.linalg.svd(data - mean, full_matrices=False)
        rank = int((strength > 1e-6 * strength[0]).sum()) if len(kinds) > 1 else 1
        keep = min(channels, rank)
        axes = axes[:keep].T
        axes = axes * torch.where(axes.gather(0, axes.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)  # a sign for each
        weight = torch.from_numpy(counts).double() / counts.sum()
        spread = (((data - mean) @ axes).square().mean(1) * weight).sum().sqrt()
        config = LinearConfig(config.frame, tile, keep, multiple)
        return LinearCodec(config, mean.float(), axes.float().contiguous(), float(spread))

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels that a latent covers."""
        return 1, self.config.tile, self.config.tile

    def size(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of a latent frame. ValueError for any size but the one it was fitted to."""
        if (height, width) != self.config.frame:
            raise ValueError(
                f"frames are {height} x {width} pixels; this codec takes {' x '.join(map(str, self.config.frame))}"
            )
        return self.config.latents

    def encode(self, video: Pixels) -> Latents:
        """uint8 [B, F, H, W, 3] -> float32 [B, F, C, h, w]. Values are of order 1."""
        if tuple(video.shape[-3:]) != (*self.config.frame, 3):
            raise ValueError(f"frames are {video.shape[-3:]}, this codec takes {(*self.config.frame, 3)}")
        tiles = torch.from_numpy(_tiles(_pad(video, self.config), self.config.tile)).float() / 127.5 - 1
        return torch.movedim((tiles - self.mean) @ self.axes / self.scale, -1, -3)

    def decode(self, latents: Latents) -> Pixels:
        """float [B, F, C, h, w] -> uint8 [B, F, H, W, 3]."""
        tiles = torch.movedim(latents.detach().float().cpu(), -3, -1) * self.scale @ self.axes.T + self.mean
        pixels = ((tiles + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        side, (height, width) = self.config.tile, self.config.frame
        *lead, h, w, _ = pixels.shape
        image = pixels.reshape(*lead, h, w, side, side, 3).swapaxes(-4, -3).reshape(*lead, h * side, w * side, 3)
        return np.ascontiguousarray(image[..., h * side - height :, :width, :])

    def decoder(self) -> Memoryless:
        """A stream; any number of them may go on at once."""
        return Memoryless(self.decode)

    def save(self, path: Path) -> None:
        meta = {name: str(value) for name, value in asdict(self.config).items() if name != "frame"}
        meta |= {"height": str(self.config.frame[0]), "width": str(self.config.frame[1]), "scale": repr(self.scale)}
        save_file({"mean": self.mean, "axes": self.axes}, path, metadata={"codec": "linear", **meta})

    @staticmethod
    def load(path: Path) -> "LinearCodec":
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("codec") != "linear":
                raise ValueError(f"{path} is not a linear codec (its metadata says {meta.get('codec')!r})")
            mean, axes = file.get_tensor("mean"), file.get_tensor("axes")
        frame = (int(meta["height"]), int(meta["width"]))
        config = LinearConfig(frame, int(meta["tile"]), int(meta["channels"]), int(meta["multiple"]))
        return LinearCodec(config, mean, axes, float(meta["scale"]))


def _kinds(frames: Pixels, config: LinearConfig) -> tuple[Pixels, np.ndarray]:
    """The different tiles in `frames`, uint8 [K, D], and how often each occurs [K]."""
    side = config.tile * config.tile * 3
    weights = np.random.default_rng(0).integers(1, 2**62, side, dtype=np.uint64)
    found: dict[int, list] = {}
    for start in range(0, len(frames), 256):
        tiles = _tiles(_pad(frames[start : start + 256], config), config.tile).reshape(-1, side)
        # sorting tiles themselves is a hundred times slower than sorting a 64-bit hash of each
        marks, first, counts = np.unique(tiles.astype(np.uint64) @ weights, return_index=True, return_counts=True)
        for mark, index, count in zip(marks.tolist(), first, counts, strict=True):
            found.setdefault(mark, [tiles[index], 0])[1] += int(count)
    order = sorted(found, key=lambda mark: found[mark][0].tobytes())
    return np.stack([found[mark][0] for mark in order]), np.array([found[mark][1] for mark in order])


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _pad(video: Pixels, config: LinearConfig) -> Pixels:
    _, h, w = config.latents
    high, wide = h * config.tile - config.frame[0], w * config.tile - config.frame[1]
    return np.pad(video, [(0, 0)] * (video.ndim - 3) + [(high, 0), (0, wide), (0, 0)])


def _tiles(video: Pixels, tile: int) -> Pixels:
    """[..., H, W, 3] -> [..., H / tile, W / tile, tile * tile * 3]."""
    *lead, height, width, _ = video.shape
    split = video.reshape(*lead, height // tile, tile, width // tile, tile, 3).swapaxes(-4, -3)
    return split.reshape(*lead, height // tile, width // tile, tile * tile * 3)
