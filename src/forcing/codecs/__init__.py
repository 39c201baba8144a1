"""Pixels to latents and back."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from forcing.shapes import Latents

Pixels = np.ndarray  # uint8 [..., F, H, W, 3]


@runtime_checkable
class Codec(Protocol):
    """`encode`: clips [B, F, H, W, 3] uint8 -> latents. `decoder`: a function of one stream, chunk by chunk."""

    def encode(self, video: Pixels) -> Latents: ...

    def decoder(self) -> Callable[[Latents], Pixels]: ...
