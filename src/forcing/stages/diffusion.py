"""Diffusion by flow matching: the bidirectional base, and the autoregressive teacher.

`TeacherForcing` is stage 1 of Causal Forcing++ (arXiv 2605.15141, section 2): every noisy chunk sees the clean chunks
before it. `DiffusionForcing` is the baseline that sees noisy ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from forcing import flow
from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.layout import causal, full, teacher_forced
from forcing.shapes import Latents, Sigma
from forcing.stages import Batch, Loss, Models, Update

Weight = Literal["flat", "bell"]


@dataclass(frozen=True)
class Bidirectional:
    """Stage 0: all frames denoised together, one noise level a clip. `shift`: of the uniform training levels.

    weight: of noise levels in the loss, flat or Wan's bell (`flow.bell`).
    """

    shift: float = 5.0
    weight: Weight = "flat"
    roles: ClassVar[Sequence[str]] = ("student",)

    def __post_init__(self) -> None:
        check(shift=self.shift, weight=self.weight)

    def updates(self) -> Sequence[Update]:
        return [Update("student", (self.loss,))]

    def loss(self, models: Models, batch: Batch, rng: torch.Generator) -> Loss:
        frames = batch.latents.shape[1]
        sigma = uniform(len(batch.latents), 1, self.shift, rng).expand(-1, frames)
        x, target = noised(batch.latents, sigma, rng)
        v = models["student"](x, sigma, batch.cond, full(frames))
        return Loss(weighted(v, target, sigma, self.weight, self.shift), {})


@dataclass(frozen=True)
class TeacherForcing:
    """Stage 1: an independent noise level for each chunk, given the clean chunks before it."""

    chunk: int = 1
    shift: float = 5.0
    weight: Weight = "flat"
    roles: ClassVar[Sequence[str]] = ("student",)

    def __post_init__(self) -> None:
        check(chunk=self.chunk, shift=self.shift, weight=self.weight)

    def updates(self) -> Sequence[Update]:
        return [Update("student", (self.loss,))]

    def loss(self, models: Models, batch: Batch, rng: torch.Generator) -> Loss:
        sigma = chunkwise(batch.latents, self.chunk, self.shift, rng)
        x, target = noised(batch.latents, sigma, rng)
        v = given_clean(models["student"], x, sigma, batch.latents, batch.cond, self.chunk)
        return Loss(weighted(v, target, sigma, self.weight, self.shift), {})


@dataclass(frozen=True)
class DiffusionForcing:
    """The baseline to stage 1: the chunks before are as noisy as they come, in training but not in use."""

    chunk: int = 1
    shift: float = 5.0
    weight: Weight = "flat"
    roles: ClassVar[Sequence[str]] = ("student",)

    def __post_init__(self) -> None:
        check(chunk=self.chunk, shift=self.shift, weight=self.weight)

    def updates(self) -> Sequence[Update]:
        return [Update("student", (self.loss,))]

    def loss(self, models: Models, batch: Batch, rng: torch.Generator) -> Loss:
        sigma = chunkwise(batch.latents, self.chunk, self.shift, rng)
        x, target = noised(batch.latents, sigma, rng)
        v = models["student"](x, sigma, batch.cond, causal(batch.latents.shape[1], self.chunk))
        return Loss(weighted(v, target, sigma, self.weight, self.shift), {})


def check(*, chunk: int = 1, shift: float = 1.0, weight: str = "flat") -> None:
    """ValueError for a chunk, a shift or a weight that no stage can train with."""
    if weight not in get_args(Weight):
        raise ValueError(f"weight {weight!r} is not known; choose from {', '.join(get_args(Weight))}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 frame, got {chunk}")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be a positive number (1 changes nothing), got {shift}")


def weighted(v: Latents, target: Latents, sigma: Sigma, weight: Weight, shift: float) -> torch.Tensor:
    """The squared error of a velocity; each frame's counts by its noise level."""
    gap = (v - target).square()
    return gap.mean() if weight == "flat" else (gap.mean((2, 3, 4)) * flow.bell(sigma, shift)).mean()


def given_clean(model: Backbone, x: Latents, sigma: Sigma, clean: Latents, cond: Cond, chunk: int) -> Latents:
    """Velocity at every noisy frame given the clean frames before its chunk, in one pass over [clean; noisy]."""
    frames = x.shape[1]
    both, levels = torch.cat([clean, x], 1), torch.cat([torch.zeros_like(sigma), sigma], 1)
    return model(both, levels, cond.twice(), teacher_forced(frames, chunk))[:, frames:]


def uniform(clips: int, levels: int, shift: float, rng: torch.Generator) -> Sigma:
    """`levels` noise levels a clip, uniform before the shift, float32."""
    return flow.shift(torch.rand(clips, levels, generator=rng, device=rng.device), shift)


def chunkwise(latents: Latents, chunk: int, shift: float, rng: torch.Generator) -> Sigma:
    """An independent noise level for each chunk, shared by its frames."""
    clips, frames = latents.shape[:2]
    if frames % chunk:
        raise ValueError(f"{frames} frames do not divide into chunks of {chunk}")
    return uniform(clips, frames // chunk, shift, rng).repeat_interleave(chunk, 1)


def noised(x0: Latents, sigma: Sigma, rng: torch.Generator) -> tuple[Latents, Latents]:
    """Latents at `sigma`, and the velocity there."""
    eps = flow.randn(tuple(x0.shape), rng, x0)
    return flow.mix(x0, eps, sigma), flow.velocity(x0, eps)
