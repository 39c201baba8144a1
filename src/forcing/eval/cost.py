"""What a generated frame costs: network evaluations, counted, and milliseconds, measured."""

import statistics
import time
from dataclasses import dataclass

import torch

from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.data.order import seeded
from forcing.eval.rows import Candidate
from forcing.guidance import Guided
from forcing.layout import Cache, Layout
from forcing.rollout import rollout
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
    """Measured on one clip with the threads torch has, a full window before the first of `frames` frames timed.

    A bidirectional model makes one clip, whose price its frames share.
    """
    how, model = row.sampling, Counted(world.model)
    chunk = how.chunk
    before = -(-how.window // chunk) if row.causal else 0
    chunks = before + -(-frames // chunk) if row.causal else 1
    cond = world.cond([world.text.prompts[0]], None, chunks * chunk)
    cache = Guided(model, how.guidance).cache(1, window=how.window, sink=how.sink)
    shape = (1, chunk, *world.codec.config.latents)
    spent, seen = [], [0]
    began = time.perf_counter()
    conds = cond.chunks(chunks * chunk, chunk)
    for _ in rollout(Guided(model, how.guidance), conds, shape, how.plan, cache, seeded(0, "eval", "cost")):
        now = time.perf_counter()
        spent.append(1000 * (now - began) / chunk)
        seen.append(model.frames)
        began = now
    # what lies between two chunks is the steps of one and settling the one before
    passes = (seen[-1] - seen[before]) / ((chunks - before) * chunk)
    return Cost(passes, statistics.median(spent[before:]))
