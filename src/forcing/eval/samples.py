"""What a model, or the real world, makes of the scenes: the clips that are then scored.

One rollout for each regime serves every metric. Noise is a function of the seed and the regime alone, so every row
meets the same.
"""

from dataclasses import dataclass

import numpy as np
import torch

from forcing import flow
from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.data.order import seeded
from forcing.eval.measure import Measure
from forcing.eval.rows import Candidate
from forcing.eval.scenes import Footage, Scenes
from forcing.eval.workers import Tick
from forcing.guidance import Guided
from forcing.layout import Cache, Layout, full
from forcing.rollout import denoise
from forcing.shapes import Latents, Sigma
from forcing.stages.diffusion import given_clean
from forcing.world import World


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
    """What the world makes: the recorded frames, and where the outcome is open other ones of the world.

    Not what a perfect model would: forks wander the same hidden map as the reference, which a model cannot see from
    the few frames it is given and must imagine. A perfect model's free clips are farther from the reference, and
    differ more from each other.
    """
    start = scenes.free.frames.shape[1]
    return Samples(
        scenes.ahead.frames, scenes.told.frames[:, start:], scenes.forks[seed], scenes.others[seed], started=True
    )


def sample(world: World, row: Candidate, scenes: Scenes, seed: int, tick: Tick) -> Samples:
    """The clips of one row at one seed. A bidirectional model makes clips of its own, with keys and without."""
    player = Player(world, row, seed, tick)
    clip = scenes.nothing.frames.shape[1]
    nothing = player.free(scenes.nothing, 0, clip)
    if not row.causal:
        return Samples(None, player.told(scenes.told, 0, clip), None, nothing, started=False)
    start, frames = scenes.free.frames.shape[1], scenes.reference.shape[1]
    told, free = player.both(scenes.told, scenes.free, start, frames)
    return Samples(player.ahead(scenes.ahead), told, free, nothing)


def effort(row: Candidate, measure: Measure) -> int:
    """Network evaluations of a frame that `sample` costs."""
    if not row.causal:
        return (measure.told + measure.nothing) * row.recipe.frames * row.passes
    guided = 1 if row.sampling.guidance == 1 else 2
    ahead = measure.ahead * 2 * measure.clip * len(row.sampling.plan.rest) * guided
    rolled = (measure.told + measure.free) * measure.frames + measure.nothing * measure.clip
    return ahead + rolled * row.passes


@dataclass(frozen=True)
class Player:
    """Plays one row at one seed."""

    world: World
    row: Candidate
    seed: int
    tick: Tick = lambda _: None

    def told(self, footage: Footage, start: int, frames: int) -> np.ndarray:
        """`frames` frames after the first `start` of `footage`, with the keys that it records."""
        return self._roll("told", footage, footage.led, start, frames)

    def free(self, footage: Footage, start: int, frames: int) -> np.ndarray:
        """`frames` frames after the first `start` of `footage`, or from nothing; no key is told."""
        untold = np.full((len(footage), start + frames), -1)
        return self._roll("free" if start else "nothing", footage, untold, start, frames)

    def both(self, told: Footage, free: Footage, start: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """`told(told, ...)` and `free(free, ...)` in one batch, which takes less time than two."""
        led = np.concatenate([told.led[:, : start + frames], np.full((len(free), start + frames), -1)])
        given = np.concatenate([told.frames[:, :start], free.frames[:, :start]])
        clips = self._roll("both", Footage(given, led, told.prompts + free.prompts), led, start, frames)
        return clips[: len(told)], clips[len(told) :]

    @torch.no_grad()
    def ahead(self, footage: Footage) -> np.ndarray:
        """Every frame of `footage` given the true frames before it and its key."""
        how, rng = self.row.sampling, seeded(self.seed, "eval", "ahead")
        clean = self.world.codec.encode(footage.frames)
        cond = self.world.cond(footage.prompts, footage.led.tolist(), clean.shape[1])
        model = GivenClean(Guided(self.world.model, how.guidance), clean, how.chunk)
        noise = flow.randn(tuple(clean.shape), rng)
        made = denoise(model, noise, cond, full(clean.shape[1]), how.plan, rng)
        guided = 1 if how.guidance == 1 else 2
        self.tick(len(footage) * 2 * clean.shape[1] * len(how.plan.rest) * guided)
        return self.world.codec.decode(made)

    def _roll(self, regime: str, footage: Footage, led: np.ndarray, start: int, frames: int) -> np.ndarray:
        how, clips = self.row.sampling, len(footage)
        # a bidirectional model makes whole clips, of which only `frames` may be wanted
        whole = start + -(-frames // how.chunk) * how.chunk
        cond = self.world.cond(footage.prompts, _padded(led, whole).tolist(), whole)
        begun = (self.world.codec.encode(footage.frames[:, :start]), cond.frames(0, start)) if start else None
        conds = cond.frames(start, whole).chunks(whole - start, how.chunk)
        rng = seeded(self.seed, "eval", regime)
        made = []
        for chunk in self.world.stream(conds, clips, rng, sampling=how, start=begun):
            made.append(self.world.codec.decode(chunk))
            self.tick(clips * how.chunk * self.row.passes)
        return np.concatenate(made, 1)[:, :frames]


def _padded(led: np.ndarray, frames: int) -> np.ndarray:
    missing = max(0, frames - led.shape[1])
    return np.pad(led[:, :frames], [(0, 0), (0, missing)], constant_values=-1)
