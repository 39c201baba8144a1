"""The environment that a world imitates, stepped beside a session by the very keys that the session hears."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np

from forcing.envs.gym import Env, open_envs
from forcing.serve.orders import Walk

EVERY, KEPT = 32, 32  # steps between two copies to go back to, and how many of them are kept
STILL = 255  # a step in which no key of its was heard
MOST = 2000  # steps that are made again at once


class Beside:
    """walk: how it began, and the keys since. name: of the environments. ValueError for a walk that is too long."""

    def __init__(self, name: str, walk: Walk) -> None:
        if len(walk.steps) > MOST:
            raise ValueError(f"{len(walk.steps)} steps are too many to be made again; at most {MOST}")
        envs = open_envs(name)
        self.env: Env = next((env for env in envs if env.prompt == walk.prompt), envs[0])
        for other in envs:
            if other is not self.env:
                other.close()
        self.begun, self.steps = walk, bytearray()
        self.env.restart(walk.seed % 2**31)
        self.copies: list[tuple[int, Env]] = [(0, deepcopy(self.env))]
        self._go(walk.steps)

    @property
    def walk(self) -> Walk:
        return Walk(self.begun.prompt, self.begun.seed, bytes(self.steps))

    def frame(self) -> np.ndarray:
        """As it is now, uint8 [H, W, 3]."""
        return self.env.frame()

    def heard(self, keys: Sequence[str | int]) -> list[np.ndarray]:
        """A frame for each latent frame's key; where it is none of the environment's, nothing moves."""
        numbers, frames = {name: n for n, name in enumerate(self.env.names)}, []
        for key in keys:
            self._go([numbers.get(str(key), STILL)])
            frames.append(self.env.frame())
        return frames

    def back(self, steps: int) -> None:
        """Go back to where it was after so many steps. ValueError where that is too long ago."""
        made, near = next(((n, env) for n, env in reversed(self.copies) if n <= steps), (0, None))
        if near is None:
            raise ValueError(f"what was after {steps} steps is not kept")
        self.copies = [(n, env) for n, env in self.copies if n <= steps]
        self.env, again = deepcopy(near), bytes(self.steps[made:steps])
        del self.steps[made:]
        self._go(again)

    def fork(self) -> "Beside":
        """Another that stands here, and goes its own way."""
        other = object.__new__(Beside)
        other.begun, other.steps = self.begun, bytearray(self.steps)
        other.env, other.copies = deepcopy(self.env), list(self.copies)  # which are only ever copied
        return other

    def close(self) -> None:
        self.env.close()

    def _go(self, steps: Sequence[int]) -> None:
        for step in steps:
            if step != STILL and not self.env.ended:
                self.env.advance(step)
            self.steps.append(step)
            if len(self.steps) % EVERY == 0 and self.copies[-1][0] < len(self.steps):
                self.copies = [*self.copies[-KEPT:], (len(self.steps), deepcopy(self.env))]
