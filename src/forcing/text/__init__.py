"""Prompts to embeddings."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Text(Protocol):
    """`encode`: prompts (None: no prompt) -> [B, ...] float32. `null`: of that shape, what guidance leads away from."""

    def encode(self, prompts: Sequence[str | None]) -> Tensor: ...

    def null(self, batch: int) -> Tensor: ...
