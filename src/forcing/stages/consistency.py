"""Causal consistency distillation: stage 2 of Causal Forcing++ (arXiv 2605.15141, section 3).

The student should say the same at both ends of one teacher ODE step, given the clean past:
min E || G(x_t, past, t) - G_ema(x_t', past, t') ||^2, with x_t real frames noised, and x_t' one guided Euler step of
the AR teacher away. No trajectories are stored. Differences from the public code are in docs/decisions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from forcing import flow
from forcing.guidance import Guided
from forcing.shapes import Latents, Sigma
from forcing.stages import Batch, Loss, Models, Update
from forcing.stages.diffusion import check, given_clean


@dataclass(frozen=True)
class Consistency:
    """`steps`, `shift`: the teacher's grid; every interval is drawn, the last one, to clean, included.

    One interval for all frames of a clip, another for each clip. `guidance`: of the teacher's step; the student is
    guidance-free.
    """

    chunk: int = 1
    steps: int = 48
    shift: float = 5.0
    guidance: float = 3.0
    roles: ClassVar[Sequence[str]] = ("student", "teacher", "student_ema")

    def __post_init__(self) -> None:
        check(chunk=self.chunk, shift=self.shift)
        if self.steps < 1:
            raise ValueError(f"steps, of the teacher's grid, must be at least 1, got {self.steps}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 0 (1 changes nothing), got {self.guidance}")

    def updates(self) -> Sequence[Update]:
        return [Update("student", (self.loss,))]

    def loss(self, models: Models, batch: Batch, rng: torch.Generator) -> Loss:
        clips, frames = batch.latents.shape[:2]
        grid = flow.grid(self.steps, self.shift).to(rng.device)
        i = torch.randint(self.steps, (clips, 1), generator=rng, device=rng.device).expand(-1, frames)
        sigma, sigma_next = grid[i], grid[i + 1]
        x = flow.mix(batch.latents, flow.randn(tuple(batch.latents.shape), rng, batch.latents), sigma)
        with torch.no_grad():
            teacher = Guided(models["teacher"], self.guidance, lambda _: batch.uncond.twice())
            v = given_clean(teacher, x, sigma, batch.latents, batch.cond, self.chunk)
            x_next = flow.euler(x, v, sigma, sigma_next)
            target = self._clean(models, "student_ema", x_next, sigma_next, batch)
        gap = (self._clean(models, "student", x, sigma, batch) - target).square().mean((1, 2, 3, 4))
        last = gap.detach()[i[:, 0] == self.steps - 1]
        return Loss(gap.mean(), {"terminal_pair": last.mean()} if len(last) else {})

    def _clean(self, models: Models, role: str, x: Latents, sigma: Sigma, batch: Batch) -> Latents:
        v = given_clean(models[role], x, sigma, batch.latents, batch.cond, self.chunk)
        return flow.to_x0(x, v, sigma)
