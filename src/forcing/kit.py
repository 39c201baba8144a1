"""What turns pixels, prompts and keys into tensors and back: everything of a world but its network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forcing.actions.keys import Keys
from forcing.codecs import Pixels
from forcing.codecs.linear import LinearCodec
from forcing.codecs.taehv import BLOCKS, TAEHV, Bend, Grow, Recall
from forcing.codecs.wan_vae import WanVAE
from forcing.data.order import seeded
from forcing.shapes import Latents
from forcing.text.names import Names
from forcing.text.umt5 import NEGATIVE, UMT5

CODEC = "codec.safetensors"
CHANNELS, STRIDE = 16, (4, 8, 8)  # of Wan's latents
WIDTHS, GROWTHS = (256, 128, 64, 64), (1, 2, 2)  # of the tiny decoder as it was released


@dataclass(frozen=True)
class SmallKit:
    """A linear tile codec, prompts that are names, and keys: small enough to be kept with each world."""

    codec: LinearCodec
    text: Names
    keys: Keys

    @property
    def frame(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.codec.config.frame

    def document(self) -> dict[str, Any]:
        """What world.json says of it."""
        return {"prompts": list(self.text.prompts), "keys": list(self.keys.names)}

    def save(self, folder: Path) -> None:
        """Write its own files."""
        self.codec.save(folder / CODEC)

    @staticmethod
    def load(document: Mapping[str, Any], folder: Path) -> "SmallKit":
        codec = LinearCodec.load(folder / CODEC)
        return SmallKit(codec, Names(tuple(document["prompts"])), Keys(tuple(document["keys"])))


@dataclass(frozen=True)
class WanKit:
    """Wan's VAE and text encoder, in a pipeline's folder that many worlds share; loaded when first asked for.

    pipeline: a folder in diffusers' layout, with vae, text_encoder and tokenizer. frame: (height, width) in pixels that
    the world was made for. text_len: embeddings that the network
    takes. dtype: of the text encoder. negative: what guidance is led away from.
    """

    pipeline: Path
    frame: tuple[int, int]
    text_len: int = 512
    device: str = "cpu"
    dtype: torch.dtype | None = None
    negative: str = NEGATIVE

    @property
    def keys(self) -> Keys:
        return Keys(())

    @property
    def codec(self) -> WanVAE:
        return self._codec

    @property
    def text(self) -> UMT5:
        return self._text

    @cached_property
    def _codec(self) -> WanVAE:
        return WanVAE.load(self.pipeline, device=self.device)  # as stored: half precision shows in pictures

    @cached_property
    def _text(self) -> UMT5:
        return UMT5(self.pipeline, negative=self.negative, length=self.text_len, device=self.device, dtype=self.dtype)

    def document(self) -> dict[str, Any]:
        return {"pipeline": str(self.pipeline.resolve()), "frame": list(self.frame)}

    def save(self, folder: Path) -> None:
        """Nothing: it stays where it is."""
        del folder


@dataclass(frozen=True)
class RandomText:
    """Prompts become noise [length, width], always the same for the same prompt."""

    length: int
    width: int
    seed: int = 0

    def encode(self, prompts: Sequence[str | None]) -> Tensor:
        streams = (seeded(self.seed, "text", prompt or "") for prompt in prompts)
        return torch.stack([torch.randn(self.length, self.width, generator=rng) for rng in streams])

    def null(self, batch: int) -> Tensor:
        return self.encode([None] * batch)


class RandomCodec(TAEHV):
    """The tiny decoder in its released size, with random weights. What it encodes is noise, too."""

    stride = STRIDE

    def __init__(self, seed: int = 0, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        with torch.random.fork_rng(devices=[]):  # layers draw weights from the global stream, which is not ours
            layers: list[nn.Module] = [Bend(), nn.Conv2d(CHANNELS, WIDTHS[0], 3, padding=1), nn.ReLU()]
            for width, out, growth in zip(WIDTHS, WIDTHS[1:], GROWTHS, strict=False):
                layers += [*(Recall(width) for _ in range(BLOCKS)), nn.Upsample(scale_factor=2), Grow(width, growth)]
                layers.append(nn.Conv2d(width, out, 3, padding=1, bias=False))
            layers += [nn.ReLU(), nn.Conv2d(WIDTHS[-1], 3, 3, padding=1)]
        network, rng = nn.Sequential(*layers), seeded(seed, "codec")
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=rng)
        super().__init__(network.to(device, dtype))

    def size(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of a latent frame."""
        _, high, wide = STRIDE
        if min(height, width) < 1 or height % high or width % wide:
            raise ValueError(f"frames are {height} x {width} pixels; sides must be multiples of {high} and {wide}")
        return CHANNELS, height // high, width // wide

    def encode(self, video: Pixels) -> Latents:
        clips, frames, height, width, _ = video.shape
        return torch.randn(
            clips, 1 + (frames - 1) // STRIDE[0], *self.size(height, width), generator=seeded(0, "codec")
        )


@dataclass(frozen=True)
class RandomKit:
    """What a Wan of random weights is told and shown with: to measure speed, for which weights do not matter.

    frame: (height, width) in pixels. words: (text_len, text_dim) of the network.
    """

    frame: tuple[int, int]
    words: tuple[int, int]
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype | None = None

    @property
    def keys(self) -> Keys:
        return Keys(())

    @property
    def text(self) -> RandomText:
        return RandomText(*self.words, self.seed)

    @cached_property
    def codec(self) -> RandomCodec:
        return RandomCodec(self.seed, self.device, self.dtype)

    def document(self) -> dict[str, Any]:
        raise ValueError("a world of random weights is not kept: it is drawn again from its seed")

    def save(self, folder: Path) -> None:
        """Nothing: it is drawn from its seed."""
        del folder


# No protocol with these names: before Python 3.12, asking whether something meets one reads them, and loads Wan's VAE.
Kit = SmallKit | WanKit | RandomKit
