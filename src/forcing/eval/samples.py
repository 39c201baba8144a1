"""What a model, or the real world, makes of the scenes: the clips that are then scored.

One rollout for each regime serves every metric. Noise is a function of the seed and the regime alone, so every row
meets the same.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from forcing import flow
from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.data.order import seeded
from forcing.eval.rows import Candidate
from forcing.eval.scenes import Footage, Scenes
from forcing.guidance import Guided
from forcing.layout import Cache, Layout, full
from forcing.rollout import denoise
from forcing.shapes import Latents, Sigma
from forcing.stages.diffusion import given_clean
from forcing.world import World

Tick = Callable[[int], None]  # told how many network evaluations of a frame were done


@dataclass(frozen=True)
class Samples:
    """Clips uint8 [N, T, H, W, 3] of each regime, None where a model cannot make them.

    ahead: every frame given the true ones before it. told: rollouts of the recorded keys; `started` says that they
    continue the real start. free: rollouts without keys. nothing: clips begun from a prompt alone.
    """

    ahead: np.ndarray | None
    told: np.ndarray
    free: np.ndarray | None
    nothing: np.ndarray
    started: bool = True


class GivenClean:
    """A backbone that denoises every frame of a clip at once, each given the clean frames before its chunk.

    So that one-frame-ahead prediction runs the same denoising loop as everything else; the layout it is called with
    is replaced by the teacher-forced one.
    """

    def __init__(self, model: Backbone, clean: Latents, chunk: int) -> None:
        self.model, self.clean, self.chunk = model, clean, chunk

    def __call__(self, x: Latents, sigma: Sigma, cond: Cond, layout: Layout) -> Latents:
        del layout
        return given_clean(self.model, x, sigma, self.clean, cond, self.chunk)

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return self.model.cache(batch, window=window, sink=sink)


def real(scenes: Scenes, seed: int) -> Samples:
    """What a perfect model would make: the recorded frames, and where the outcome is open other ones of the world."""
    start = scenes.free.frames.shape[1]
    return Samples(
        scenes.ahead.frames, scenes.told.frames[:, start:], scenes.forks[seed], scenes.others[seed], started=True
    )


def sample(world: World, row: Candidate, scenes: Scenes, seed: int, tick: Tick) -> Samples:
    """The clips of one row at one seed. A bidirectional model makes its own clips, with keys and without."""
    player = Player(world, row, seed, tick)
    nothing = player.free(scenes.nothing, None)
    if not row.causal:
        clip = row.recipe.frames
        return Samples(None, player.told(scenes.told, 0, clip), None, nothing, started=False)
    start = scenes.free.frames.shape[1]
    return Samples(
        player.ahead(scenes.ahead),
        player.told(scenes.told, start, scenes.told.frames.shape[1]),
        player.free(scenes.free, scenes.reference.shape[1]),
        nothing,
    )


def effort(row: Candidate, scenes: tuple[int, int, int, int, int, int]) -> int:
    raise NotImplementedError
