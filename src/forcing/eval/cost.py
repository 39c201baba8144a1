"""What a generated frame costs: network evaluations, counted, and milliseconds, measured."""

import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch

from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.data.order import seeded
from forcing.eval.rows import Candidate
from forcing.flow import randn
from forcing.guidance import Guided
from forcing.layout import Cache, Layout
from forcing.rollout import remember, rollout
from forcing.shapes import Latents, Sigma
from forcing.world import World


class Counted:
    """A backbone that counts the frames it is evaluated on; the two halves of a guided batch count each."""

    def __init__(self, model: Backbone) -> None:
        self.model, self.frames = model, 0

    def __call__(self, x: Latents, sigma: Sigma, cond: Cond, layout: Layout) -> Latents:
        self.frames += x.shape[0] * x.shape[1]
        return self.model(x, sigma, cond, layout)

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return self.model.cache(batch, window=window, sink=sink)


@dataclass(frozen=True)
class Cost:
    """Of one generated frame, once something precedes it. passes: network evaluations. ms: median milliseconds."""

    passes: float
    ms: float


@torch.no_grad()
def cost(world: World, row: Candidate, frames: int) -> Cost:
    """Measured over about `frames` frames of one clip, after a full window, with the threads torch has.

    A bidirectional model makes one clip, whose price its frames share.
    """
    how, counted = row.sampling, Counted(world.model)
    model = Guided(counted, how.guidance)
    shape = (1, how.chunk, *world.latents)
    rng = seeded(0, "eval", "cost")
    cond = world.cond([None], None, how.chunk)
    cache = model.cache(1, window=how.window, sink=how.sink)
    if row.causal:
        for _ in range(-(-how.window // how.chunk)):
            remember(model, randn(shape, rng), cond, cache)
    chunks = 1 + -(-frames // how.chunk) if row.causal else 1
    clock, seen = [time.perf_counter()], [counted.frames]
    for _ in rollout(model, [cond] * chunks, shape, how.plan, cache, rng):
        clock.append(time.perf_counter())
        seen.append(counted.frames)
    # from the first chunk to the last each costs its steps and settling the one before it
    first = 1 if row.causal else 0
    spent = [1000 * (after - before) / how.chunk for before, after in pairwise(clock[first:])]
    return Cost((seen[-1] - seen[first]) / (len(spent) * how.chunk), statistics.median(spent))
