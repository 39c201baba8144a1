"""A rollout in fewer passes: the clean chunk is settled in the same pass that begins the next one.

`rollout` spends a pass on settling after each chunk. In a causal stack the clean chunk never depends on the noisy one,
and the noisy one needs, layer by layer, just the keys and values that the clean one makes in that same pass: one pass
over both is the same arithmetic (`layout.merged`). An n-step student so takes n passes a chunk instead of n + 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forcing import flow
from forcing.cond import Cond
from forcing.engine.passes import Model, Pass, Work
from forcing.guidance import guide, once, same
from forcing.layout import Cache, Layout, after, merged
from forcing.recipe import Sampling
from forcing.rollout import walk
from forcing.shapes import Latents, Sigma


@dataclass(frozen=True)
class Savings:
    """What is not done twice; each can be left out, to measure what it gives. The results are the same.

    merge: settle in the pass that begins the next chunk. texts: prepare static conditions once. levels: embed noise
    levels once. mute: make nothing but keys and values in the last layer of what is only settled.
    """

    merge: bool = True
    texts: bool = True
    levels: bool = True
    mute: bool = True


ALL = Savings()


class Stream:
    """What `rollout` yields for the same conditions and noise, a chunk at a time; run its work without gradients.

    how: plan, guidance, chunk, window and sink. shape: of a chunk, [clips, chunk, channels, height, width]. past: an
    empty cache, such as a `Ring`. uncond: the other side of guidance. The noise comes from `rng`, which is on the
    model's device.
    """

    def __init__(
        self,
        model: Model,
        how: Sampling,
        shape: tuple[int, ...],
        past: Cache,
        rng: torch.Generator,
        uncond: Callable[[Cond], Cond] = Cond.blank,
        savings: Savings = ALL,
    ) -> None:
        self.model, self.how, self.shape, self.past, self.rng, self.savings = model, how, shape, past, rng, savings
        self.uncond = once(uncond)
        self._waiting: tuple[Latents, Cond] | None = None  # the newest chunk, clean but not settled
        self._told: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None  # static conditions, and made ready
        self._sigmas: dict[tuple[float, ...], Sigma] = {}
        self._levels: dict[tuple[tuple[float, ...], int], Mapping[str, Tensor]] = {}
        self._origin = past.end

    @property
    def waits(self) -> bool:
        """Whether the newest chunk is not settled yet."""
        return self._waiting is not None

    def chunk(self, cond: Cond) -> Work[Latents]:
        """The next clean chunk."""
        cond = self._ready(cond)
        begins = self._waiting is None and self.past.end == self._origin
        plan = replace(self.how.plan, rest=self.how.plan.levels(begins=begins))
        steps = walk(flow.randn(self.shape, self.rng), plan, self.rng, lambda level: self._sigma((level,)))
        x, level = next(steps)
        v, layout = yield from self._first(x, level, cond)
        while True:
            try:
                x, level = steps.send(v)
            except StopIteration as done:
                self._waiting = done.value, cond
                return done.value
            v = yield from self._pass(x, (level,), cond, layout)

    def settle(self) -> Work[None]:
        """Make the newest chunk part of the past now, in a pass of its own.

        For when a chunk has been shown and there is time: the next one then needs a shorter first pass.
        """
        if self._waiting is not None:
            x0, cond = self._waiting
            frames = x0.shape[1]
            layout = after(self.past.past(frames), frames, mute=frames if self.savings.mute else 0)
            yield from self._pass(x0, (0.0,), cond, layout)
            self.past.settle(frames)
            self._waiting = None

    def remember(self, x0: Latents, cond: Cond, at: int | None = None) -> Work[None]:
        """Take clean frames [clips, F <= chunk, ...] as the newest chunk: an image or a video to go on from.

        at: number of the first, if it is not the next one.
        """
        yield from self.settle()
        self._waiting = x0, self._ready(cond)
        self.past.end = self.past.end if at is None else at

    def become(self, other: "Stream") -> None:
        """Stand where another stream of the same world stands, its past and its noise aside."""
        self._waiting, self._told, self._origin = other._waiting, other._told, other._origin

    def forget(self, end: int = 0) -> None:
        """Begin anew, with an empty past; the next frame is number `end`."""
        self._waiting, self._origin = None, end
        self.past.clear(end)

    def _first(self, x: Latents, level: float, cond: Cond) -> Work[tuple[Latents, Layout]]:
        """The first velocity of a chunk, and the layout of its other passes."""
        chunk = self.how.chunk
        if self.savings.merge and self._waiting is not None and self._alike(*self._waiting, cond):
            clean, before = self._waiting
            both = Cond(
                cond.static, {k: torch.cat([before.per_frame[k], cond.per_frame[k]], 1) for k in cond.per_frame}
            )
            layout = merged(self.past.past(chunk), chunk)
            v = yield from self._pass(torch.cat([clean, x], 1), (0.0, level), both, layout)
            self.past.settle(chunk)
            self._waiting = None
            return v, after(self.past.past(chunk), chunk)
        yield from self.settle()  # told something else from here on: the two halves cannot share a pass
        layout = after(self.past.past(chunk), chunk)
        return (yield from self._pass(x, (level,), cond, layout)), layout

    def _alike(self, clean: Latents, before: Cond, cond: Cond) -> bool:
        return clean.shape[1] == self.how.chunk and before.static is cond.static

    def _pass(self, x: Latents, levels: tuple[float, ...], cond: Cond, layout: Layout) -> Work[Latents]:
        """Velocity of all frames that are not mute; `levels` of equal parts of the frames."""
        frames, mute = x.shape[1], layout.mute
        if not self.savings.mute:
            layout = replace(layout, mute=0)
        sigma = self._sigma(levels)[:, :frames]
        if self.how.guidance != 1:
            x, sigma = torch.cat([x, x]), torch.cat([sigma, sigma])
        per_frame = {**cond.per_frame, **(self._embedded(levels, sigma) if self.savings.levels else {})}
        v = yield Pass(x, sigma, Cond(cond.static, per_frame), layout)
        v = v if self.savings.mute else v[:, mute:]
        if self.how.guidance == 1:
            return v
        v_cond, v_uncond = v.chunk(2)
        return guide(v_cond, v_uncond, self.how.guidance)

    def _ready(self, cond: Cond) -> Cond:
        known = cond.static
        if self.how.guidance != 1:
            cond = cond.beside(self.uncond(cond))
        # the same tensors are the same conditions: what was made of them is used again
        if self._told is None or not same(self._told[0], known):
            self._told = known, self.model.prepare(cond).static if self.savings.texts else cond.static
        return Cond(self._told[1], cond.per_frame)

    def _sigma(self, levels: tuple[float, ...]) -> Sigma:
        """Each level for as many frames as a chunk has."""
        if levels not in self._sigmas:
            parts = [torch.full(self.shape[:2], level, device=self.rng.device) for level in levels]
            self._sigmas[levels] = torch.cat(parts, 1)
        return self._sigmas[levels]

    def _embedded(self, levels: tuple[float, ...], sigma: Sigma) -> Mapping[str, Tensor]:
        key = levels, sigma.shape[1]
        if key not in self._levels:
            self._levels[key] = self.model.embed(sigma)
        return self._levels[key]
