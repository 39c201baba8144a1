"""Pictures on their way from the device that decodes them to the host.

On a GPU they are decoded beside the next passes, on a stream of kernels of their own, and only whoever looks at them
waits.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from forcing.codecs import Decoder, Pixels
from forcing.codecs.stream import Stream
from forcing.codecs.weights import finite
from forcing.shapes import Latents


@runtime_checkable
class Event(Protocol):
    """What a device will have done."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


@dataclass(frozen=True)
class Reel:
    """levels: uint8 [F', H, W, 3] on the host. fine: whether all numbers were finite. done: when both are there."""

    levels: Tensor
    fine: Tensor
    done: Event | None = None

    @property
    def ready(self) -> bool:
        return self.done is None or self.done.query()

    def take(self) -> Pixels:
        """Waits where it must. ValueError where numbers were not finite."""
        if self.done is not None:
            self.done.synchronize()
        if not self.fine:
            raise ValueError("the frames are not finite")
        return self.levels.numpy()


class Projector:
    """Decodes one session's chunks [1, F, C, h, w]; with `side`, on that stream of kernels."""

    def __init__(self, decoder: Decoder, side: "torch.cuda.Stream | None" = None) -> None:
        self.decoder, self.side = decoder, side

    def __call__(self, latents: Latents) -> Reel:
        if self.side is None or not isinstance(self.decoder, Stream):
            if not finite(latents):
                raise ValueError("the frames are not finite")
            return Reel(torch.from_numpy(self.decoder(latents)[0]), torch.tensor(True))
        self.side.wait_stream(torch.cuda.current_stream(latents.device))
        with torch.cuda.stream(self.side):
            latents.record_stream(self.side)  # whose memory must not be used again before it has been read
            levels, fine = self.decoder.levels(latents)
            there = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in (levels[0], fine)]
            for host, device in zip(there, (levels[0], fine), strict=True):
                host.copy_(device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self.side)
        return Reel(there[0], there[1], done)

    def fork(self) -> "Projector":
        return Projector(self.decoder.fork(), self.side)
