"""Classifier-free guidance: one formula, and a backbone that applies it to itself."""

from collections.abc import Callable

import torch

from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.layout import Cache, Layout
from forcing.shapes import Latents, Sigma


def guide(v_cond: Latents, v_uncond: Latents, scale: float) -> Latents:
    """uncond + scale (cond - uncond): 1 is the conditional model, 0 the unconditional one."""
    return v_uncond + scale * (v_cond - v_uncond)


class Guided:
    """A backbone whose velocity is guided. It doubles the batch; at scale 1 it is the plain model, at its price."""

    def __init__(self, model: Backbone, scale: float, uncond: Callable[[Cond], Cond] = Cond.blank) -> None:
        self.model, self.scale, self.uncond = model, scale, uncond

    def __call__(self, x: Latents, sigma: Sigma, cond: Cond, layout: Layout) -> Latents:
        if self.scale == 1:
            return self.model(x, sigma, cond, layout)
        both = self.model(torch.cat([x, x]), torch.cat([sigma, sigma]), cond.beside(self.uncond(cond)), layout)
        v_cond, v_uncond = both.chunk(2)
        return guide(v_cond, v_uncond, self.scale)

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return self.model.cache(batch if self.scale == 1 else 2 * batch, window=window, sink=sink)
