"""Pixels to latents and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from forcing.shapes import Latents

Pixels = np.ndarray  # uint8 [..., F, H, W, 3]


@runtime_checkable
class Decoder(Protocol):
    """One stream: latents [B, F, C, h, w] in chunks of any length to their frames [B, F', H, W, 3]."""

    def __call__(self, latents: Latents) -> Pixels: ...

    def fork(self) -> "Decoder":
        """Another stream that goes on from here."""
        ...


@dataclass(frozen=True)
class Memoryless:
    """The stream of a codec that decodes each frame alone."""

    decode: Callable[[Latents], Pixels]

    def __call__(self, latents: Latents) -> Pixels:
        return self.decode(latents)

    def fork(self) -> "Memoryless":
        return self


@runtime_checkable
class Codec(Protocol):
    """Clips [B, F, H, W, 3] uint8 to latents and back. The first latent covers one frame, whatever the stride."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels that a latent covers."""
        ...

    def size(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of a latent frame of such pixels. ValueError, with what would do, if none is."""
        ...

    def encode(self, video: Pixels) -> Latents: ...

    def decode(self, latents: Latents) -> Pixels:
        """A whole clip."""
        ...

    def decoder(self) -> Decoder:
        """A stream; any number of them may go on at once."""
        ...
