"""Classifier-free guidance: one formula, and a backbone that applies it to itself."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

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


def once(uncond: Callable[[Cond], Cond]) -> Callable[[Cond], Cond]:
    """The same, asked again only where static conditions or shapes change: no guidance depends on more."""
    known: tuple[Mapping[str, Tensor], list[torch.Size], Cond] | None = None

    def asked(cond: Cond) -> Cond:
        nonlocal known
        shapes = [value.shape for value in cond.per_frame.values()]
        if known is None or not same(known[0], cond.static) or known[1] != shapes:
            known = cond.static, shapes, uncond(cond)
        return known[2]

    return asked


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether these are the very same tensors."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)
