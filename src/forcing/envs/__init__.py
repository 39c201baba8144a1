"""Worlds to record, and what playing one means."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Environment(Protocol):
    """Anything that can be played: a recorded world, or a model that imagines one."""

    def reset(self, seed: int) -> np.ndarray:
        """Start again from `seed`; the first frame, uint8 [H, W, 3]."""
        ...

    def step(self, action: int) -> np.ndarray:
        """Press one key; the frame that it leads to, uint8 [H, W, 3]."""
        ...
