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

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """[B, len(self.prompts)] float32."""
        for prompt in prompts:
            if prompt not in self.prompts:
                near = difflib.get_close_matches(prompt, self.prompts, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown prompt {prompt!r}; this world knows {list(self.prompts)}.{hint}")
        return torch.eye(len(self.prompts))[[self.prompts.index(prompt) for prompt in prompts]]
