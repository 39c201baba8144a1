"""What models are trained on: recordings on disk, clips of latents in memory, and the order they come in."""

from typing import Protocol, runtime_checkable

from forcing.stages import Batch


@runtime_checkable
class Source(Protocol):
    """A batch as a function of the step and of which update of the step asks."""

    def batch_at(self, step: int, update: int) -> Batch: ...
