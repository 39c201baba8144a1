"""Prompts that are names from a short list, one-hot. Zeros: no prompt."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Names:
    """The prompts a small world knows."""

    prompts: tuple[str, ...]

    def encode(self, prompts: Sequence[str | None]) -> Tensor:
        """[B, len(self.prompts)] float32; None, no prompt, is zeros. ValueError for a name that is not known."""
        told = self.null(len(prompts))
        for row, prompt in zip(told, prompts, strict=True):
            if prompt is not None:
                row[self._place(prompt)] = 1
        return told

    def null(self, batch: int) -> Tensor:
        """[batch, len(self.prompts)]: no prompt."""
        return torch.zeros(batch, len(self.prompts))

    def _place(self, prompt: str) -> int:
        if prompt not in self.prompts:
            near = difflib.get_close_matches(prompt, self.prompts, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown prompt {prompt!r}; this world knows {', '.join(self.prompts)}.{hint}")
        return self.prompts.index(prompt)
