"""Events to per-frame tensors."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ActionSpace(Protocol):
    """`width` of one frame's action; `encode` a sequence of events, one a frame; zeros are "not told"."""

    @property
    def width(self) -> int: ...

    def encode(self, events: Sequence[str | int]) -> Tensor: ...
