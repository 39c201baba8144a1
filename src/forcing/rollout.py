"""The only way from noise to clean, `walk`, and the only plain generation loop around it.

Training, evaluation and sampling run `rollout`; the engine walks the same steps in fewer passes, and is compared with
it.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch

from forcing import flow
from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.layout import Cache, Layout, after
from forcing.shapes import Latents, Sigma
from forcing.unipc import UniPC


@dataclass(frozen=True)
class Plan:
    """Which noise levels to visit in each chunk, from 1 downwards; the step from the last one is to clean.

    rest: levels of every chunk. first: levels of a chunk that nothing precedes, if they differ (one- and two-step
    students need more there). fresh: renoise with new noise after each prediction (consistency sampling); otherwise
    move along the ODE by `solver`.
    """

    rest: tuple[float, ...]
    first: tuple[float, ...] | None = None
    fresh: bool = True
    solver: Literal["euler", "unipc"] = "euler"

    def __post_init__(self) -> None:
        for levels in (self.rest, self.first):
            if levels is None:
                continue
            ordered = all(a > b for a, b in pairwise(levels))
            if not levels or not ordered or levels[0] != 1 or levels[-1] <= 0:
                raise ValueError(f"levels must fall strictly from 1 and stay above 0, got {levels}")
        if self.solver not in ("euler", "unipc"):
            raise ValueError(f"solver {self.solver!r} is not known; choose 'euler' or 'unipc'")

    def levels(self, *, begins: bool) -> tuple[float, ...]:
        """The levels of a chunk; `begins` says that nothing precedes it."""
        return self.first if begins and self.first is not None else self.rest

    def cut(self, rng: torch.Generator) -> "Plan":
        """Self forcing's random exit: a plan that ends after a random number of its levels."""

        def head(levels: tuple[float, ...]) -> tuple[float, ...]:
            return levels[: 1 + int(torch.randint(len(levels), (), generator=rng, device=rng.device))]

        rest = head(self.rest)
        return replace(self, rest=rest, first=None if self.first is None else head(self.first))

    @staticmethod
    def ode(steps: int, shift: float, solver: Literal["euler", "unipc"] = "euler") -> "Plan":
        """`steps` steps along the ODE on the shifted grid: how many-step models are sampled."""
        return Plan(tuple(flow.grid(steps, shift)[:-1].tolist()), fresh=False, solver=solver)


def rollout(
    model: Backbone,
    conds: Iterable[Cond],
    shape: tuple[int, ...],
    plan: Plan,
    cache: Cache,
    rng: torch.Generator,
    *,
    detach: bool = True,
) -> Iterator[Latents]:
    """Yield one clean chunk [B, chunk, C, H, W] = `shape` per condition, each seeing those before it.

    Conditions are pulled one at a time, when their chunk is about to be denoised: a user may be on the other end.
    With gradients enabled, they flow into the last prediction of each chunk, and into earlier chunks through the
    cache only if `detach` is off.
    """
    for cond in conds:
        layout = after(cache.past(shape[1]), shape[1])
        levels = plan.levels(begins=cache.end == 0)
        x0 = denoise(model, flow.randn(shape, rng), cond, layout, replace(plan, rest=levels), rng)
        yield x0  # ship the frames first, then settle them into the past
        if detach:
            with torch.no_grad():
                remember(model, x0.detach(), cond, cache)
        else:
            remember(model, x0, cond, cache)


def denoise(model: Backbone, noise: Latents, cond: Cond, layout: Layout, plan: Plan, rng: torch.Generator) -> Latents:
    """Walk one chunk from pure noise through `plan.rest` to clean. Only the last prediction carries a gradient."""

    def at(level: float) -> Sigma:
        return torch.full(noise.shape[:2], level, device=noise.device)

    steps, grad = walk(noise, plan, rng, at), torch.is_grad_enabled()
    x, level = next(steps)
    while True:
        with torch.set_grad_enabled(grad and level == plan.rest[-1]):
            try:
                x, level = steps.send(model(x, at(level), cond, layout))
            except StopIteration as done:
                return done.value


def walk(
    noise: Latents, plan: Plan, rng: torch.Generator, at: Callable[[float], Sigma]
) -> Generator[tuple[Latents, float], Latents, Latents]:
    """The steps of one chunk from pure noise through `plan.rest` to clean, whoever makes the predictions.

    Yields latents and their noise level, is sent the velocity there, and returns the clean latents. at: a level as the
    sigma of every frame.
    """
    x, unipc = noise, UniPC()
    for level, after_it in pairwise(plan.rest):
        v = yield x, level
        if plan.fresh:
            x = flow.mix(flow.to_x0(x, v, at(level)), flow.randn(tuple(x.shape), rng, x), at(after_it))
        elif plan.solver == "unipc":
            x = unipc.step(x, v, level, after_it)
        else:
            x = flow.euler(x, v, at(level), at(after_it))
    last = plan.rest[-1]
    v = yield x, last
    return flow.to_x0(x, v, at(last))  # whatever the solver, its step to 0 ends at what is predicted


def remember(model: Backbone, x0: Latents, cond: Cond, cache: Cache) -> None:
    """Write clean frames into the past: a forward pass at sigma 0. Also how an image or a video is continued."""
    frames = x0.shape[1]
    layout = after(cache.past(frames), frames)
    model(x0, torch.zeros(x0.shape[:2], device=x0.device), cond, layout)
    cache.settle(frames)
