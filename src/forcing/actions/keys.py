"""Discrete keys, one a frame, one-hot. Zeros: the key is not told, and the model must imagine it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keys:
    """The keys of a world, in the order of its action numbers."""

    names: tuple[str, ...]

    @property
    def width(self) -> int:
        return len(self.names)

    def encode(self, events: Sequence[str | int]) -> Tensor:
        """Names, or numbers with -1 for "not told" -> [F, width] float32."""
        numbers = [self.number(event) if isinstance(event, str) else int(event) for event in events]
        for number in numbers:
            if not -1 <= number < len(self.names):
                raise ValueError(
                    f"action {number} does not exist; actions are 0..{len(self.names) - 1} {list(self.names)}"
                )
        return torch.cat([torch.eye(len(self.names)), torch.zeros(1, len(self.names))])[numbers]

    def number(self, name: str) -> int:
        """The action number of a key; any unambiguous beginning of its name will do."""
        found = [i for i, known in enumerate(self.names) if known.startswith(name)] if name else []
        if name in self.names:
            return self.names.index(name)
        if len(found) != 1:
            raise ValueError(f"unknown action {name!r}; this world knows {', '.join(self.names)}")
        return found[0]
