"""One stream of a video decoder: latents come in chunks of any length, and what came before is remembered."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from forcing.codecs import Pixels
from forcing.codecs.weights import finite
from forcing.shapes import Latents

Memory = tuple[Any, ...]  # empty at the start; never changed in place


@dataclass
class Stream:
    """`advance`: a latent frame [B, C, h, w], and a memory -> float32 [B, F, 3, H, W], and the next memory.

    Pictures are cut off at `black` and at 1, which is white. Frames are decoded one by one, so that they are the same,
    to the bit, however a clip is cut into chunks.
    """

    advance: Callable[[Tensor, Memory], tuple[Tensor, Memory]]
    channels: int
    black: float
    memory: Memory = ()
    shape: tuple[int, ...] | None = None

    def __call__(self, latents: Latents) -> Pixels:
        """The next latents [B, F, C, h, w] -> their frames, uint8 [B, F', H, W, 3]."""
        return self._levels(self.step(latents)).cpu().numpy()

    @torch.no_grad()
    def step(self, latents: Latents) -> Tensor:
        """The same, as float32 [B, F', 3, H, W] from `black` to 1. After an error the stream is as it was.

        ValueError where latents do not suit, and where they or the pictures are not finite.
        """
        if not finite(latents):
            raise ValueError("the latents are not finite: NaN and infinite values cannot be decoded")
        before = self.memory, self.shape
        pictures = self._advanced(latents)
        if not finite(pictures):
            self.memory, self.shape = before
            raise ValueError("the decoded pictures are not finite, though the latents are")
        return pictures.clamp_(self.black, 1)

    @torch.no_grad()
    def levels(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """The frames, uint8 [B, F', H, W, 3], and whether all numbers are finite [], both on the device: no waiting.

        The stream goes on even if they are not.
        """
        pictures = self._advanced(latents)
        fine = latents.isfinite().all() & pictures.isfinite().all()
        return self._levels(pictures.clamp_(self.black, 1)), fine

    def _levels(self, pictures: Tensor) -> Tensor:
        levels = (pictures - self.black).mul_(255 / (1 - self.black)).round_().to(torch.uint8)
        return levels.permute(0, 1, 3, 4, 2).contiguous()

    def _advanced(self, latents: Latents) -> Tensor:
        clips, length, *frame = latents.shape
        if frame[0] != self.channels or 0 in latents.shape:
            raise ValueError(f"latents are {list(latents.shape)}: need [B, F, {self.channels}, h, w], none of them 0")
        shape = (clips, *frame)
        if self.shape not in (None, shape):
            raise ValueError(f"this stream began with clips and frames of {list(self.shape or ())}, not {list(shape)}")
        made, memory = [], self.memory
        for i in range(length):
            frames, memory = self.advance(latents[:, i], memory)
            made.append(frames)
        self.memory, self.shape = memory, shape
        return torch.cat(made, 1)

    def fork(self) -> "Stream":
        """Another stream that goes on from here."""
        return replace(self)
