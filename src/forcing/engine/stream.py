"""A rollout in fewer passes: the clean chunk is settled in the same pass that begins the next one.

`rollout` spends a pass on settling after each chunk. In a causal stack the clean chunk never depends on the noisy one,
and the noisy one needs, layer by layer, just the keys and values that the clean one makes in that same pass: one pass
over both is the same arithmetic (`layout.merged`). An n-step student so takes n passes a chunk instead of n + 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from forcing import flow
from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.layout import Cache, Layout, after, merged
from forcing.recipe import Sampling
from forcing.ring import Ring
from forcing.rollout import denoise
from forcing.shapes import Latents, Sigma


class Stream:
    """What `rollout` yields for the same conditions and noise, a chunk at a time; call it without gradients.

    how: plan, chunk, window and sink; guidance is the model's own matter. size: (clips, channels, height, width).
    layers: of the model. prepare: what the model can compute of conditions that stay (`Wan.prepare`). The noise comes
    from `rng`, which is on the model's device.
    """

    def __init__(
        self,
        model: Backbone,
        how: Sampling,
        size: tuple[int, int, int, int],
        layers: int,
        rng: torch.Generator,
        prepare: Callable[[Cond], Cond] | None = None,
    ) -> None:
        self.model, self.how, self.rng, self.prepare = model, how, rng, prepare
        clips, *picture = size
        self.shape = (clips, how.chunk, *picture)
        self.ring = Ring(layers, window=how.window, sink=how.sink, chunk=how.chunk)
        self._waiting: tuple[Latents, Cond] | None = None  # the newest chunk, clean but not settled
        self._told: tuple[Mapping[str, Tensor], Cond] | None = None  # the newest static conditions, and made ready
        self._sigmas: dict[float, Tensor] = {}

    def next(self, cond: Cond) -> Latents:
        """The next clean chunk [clips, chunk, channels, height, width]."""
        cond = self._ready(cond)
        begins = self._waiting is None and self.ring.end == 0
        plan = replace(self.how.plan, rest=self.how.plan.levels(begins=begins))
        noise = flow.randn(self.shape, self.rng)
        v, layout = self._begun(noise, cond, plan.rest[0])
        x0 = denoise(_Started(self.model, v), noise, cond, layout, plan, self.rng)
        self._waiting = x0, cond
        return x0

    def settle(self) -> None:
        """Make the newest chunk part of the past now, in a pass of its own.

        To be called when a chunk has been shown and there is time: the next one then needs a shorter first pass.
        """
        if self._waiting is not None:
            (x0, cond), self._waiting = self._waiting, None
            self._write(x0, cond)

    def remember(self, x0: Latents, cond: Cond) -> None:
        """Make clean frames [clips, F <= chunk, ...] part of the past: an image or a video to go on from."""
        self.settle()
        self._write(x0, self._ready(cond))

    def _write(self, x0: Latents, cond: Cond) -> None:
        frames = x0.shape[1]
        self.model(x0, self._sigma(0.0)[:, :frames], cond, after(self.ring.past(frames), frames))
        self.ring.settle(frames)

    def _begun(self, x: Latents, cond: Cond, level: float) -> tuple[Latents, Layout]:
        """The first velocity of a chunk, and the layout of its other passes."""
        chunk = self.how.chunk
        if self._waiting is not None and self._waiting[1].static is cond.static:
            (clean, before), self._waiting = self._waiting, None
            both = Cond(
                cond.static, {k: torch.cat([before.per_frame[k], cond.per_frame[k]], 1) for k in cond.per_frame}
            )
            sigma = torch.cat([self._sigma(0.0), self._sigma(level)], 1)
            v = self.model(torch.cat([clean, x], 1), sigma, both, merged(self.ring.past(chunk), chunk))[:, chunk:]
            self.ring.settle(chunk)
            return v, after(self.ring.past(chunk), chunk)
        self.settle()  # told something else from here on: the two halves cannot share a pass
        layout = after(self.ring.past(chunk), chunk)
        return self.model(x, self._sigma(level), cond, layout), layout

    def _ready(self, cond: Cond) -> Cond:
        # the same tensors are the same conditions: what was made of them is used again
        if self._told is None or not _same(self._told[0], cond.static):
            made = cond if self.prepare is None else self.prepare(cond)
            self._told = cond.static, made
        return Cond(self._told[1].static, cond.per_frame)

    def _sigma(self, level: float) -> Tensor:
        if level not in self._sigmas:
            self._sigmas[level] = torch.full(self.shape[:2], level, device=self.rng.device)
        return self._sigmas[level]


class _Started:
    """A model whose first pass has been made."""

    def __init__(self, model: Backbone, v: Latents) -> None:
        self.model, self._v = model, [v]

    def __call__(self, x: Latents, sigma: Sigma, cond: Cond, layout: Layout) -> Latents:
        return self._v.pop() if self._v else self.model(x, sigma, cond, layout)

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return self.model.cache(batch, window=window, sink=sink)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)
