"""Events to per-frame tensors."""

from typing import Protocol

from torch import Tensor


class ActionSpace(Protocol):
    """`width` of one frame's action; `encode` a sequence of events, one a frame; zeros are "not told"."""

    @property
    def width(self) -> int: ...

    def encode(self, events: "list[str] | list[int]") -> Tensor: ...
