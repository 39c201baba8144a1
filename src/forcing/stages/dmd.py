"""Asymmetric distribution matching on self rollouts: stage 3 of Causal Forcing++ (arXiv 2605.15141, section 2).

The causal student generates clips from its own past; a bidirectional teacher and a bidirectional critic, which learns
the student's own distribution, say in which direction to move them: grad = E[(critic x0 - teacher x0) dvideo/dtheta].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from forcing import flow
from forcing.guidance import Guided
from forcing.layout import full
from forcing.rollout import Plan, rollout
from forcing.shapes import Latents, Sigma
from forcing.stages import Batch, Loss, Models, Update
from forcing.stages.diffusion import noised, uniform


@dataclass(frozen=True)
class DMD:
    """`plan`: how the student generates; each training rollout ends every chunk at a random level of it.

    guidance: of the teacher, in the one formula of `guidance.py`. critic_updates: critic steps for each student step.
    critic_first: critic steps before the student's first. A critic that still is the base sees nothing but guidance
    between itself and the teacher, and would drive the student towards ever more of it.
    shift, lowest, highest: the noise levels at which the two are compared; a level drawn outside is moved to the bound.
    Low levels say whether a detail is sharp, high ones whether there is enough of each kind of clip. detach: no
    gradient through the cache.
    """

    plan: Plan = Plan((1.0, 0.9375, 0.8333, 0.625))
    chunk: int = 1
    guidance: float = 4.0
    critic_updates: int = 5
    critic_first: int = 0
    shift: float = 5.0
    lowest: float = 0.02
    highest: float = 0.98
    detach: bool = True
    roles: ClassVar[Sequence[str]] = ("student", "critic", "teacher")

    def __post_init__(self) -> None:
        if self.critic_updates < 1 or self.critic_first < 0:
            raise ValueError(
                f"critic_updates must be at least 1 and critic_first at least 0, got {self.critic_updates} and "
                f"{self.critic_first}"
            )
        if not 0 <= self.lowest < self.highest <= 1:
            raise ValueError(
                f"levels are compared between lowest and highest, 0 <= lowest < highest <= 1; got {self.lowest} and "
                f"{self.highest}"
            )

    def updates(self) -> Sequence[Update]:
        # the critic first: by the student's first step it should know something of the student's distribution
        return [
            Update("critic", (self.critic_loss,)),
            Update("student", (self.student_loss,), every=self.critic_updates, start=self.critic_first),
        ]

    def student_loss(self, models: Models, batch: Batch, rng: torch.Generator) -> Loss:
        video = self.generate(models, batch, rng)
        everything = full(video.shape[1])
        with torch.no_grad():
            sigma = self._levels(video, rng)
            x, _ = noised(video, sigma, rng)
            teacher = Guided(models["teacher"], self.guidance, lambda _: batch.uncond)
            real = flow.to_x0(x, teacher(x, sigma, batch.cond, everything), sigma)
            critic = models.get("critic_ema", models["critic"])  # averaged if the recipe asks: a steadier judge
            fake = flow.to_x0(x, critic(x, sigma, batch.cond, everything), sigma)
            towards = direction(video, real, fake)
        return Loss(descend(video, towards), {"direction": towards.abs().mean()})

    def critic_loss(self, models: Models, batch: Batch, rng: torch.Generator) -> Loss:
        """Plain flow matching on the student's clips."""
        with torch.no_grad():
            video = self.generate(models, batch, rng)
            sigma = self._levels(video, rng)
            x, target = noised(video, sigma, rng)
        v = models["critic"](x, sigma, batch.cond, full(video.shape[1]))
        return Loss((v - target).square().mean(), {})

    def generate(self, models: Models, batch: Batch, rng: torch.Generator) -> Latents:
        """A self rollout as long as the batch's clips; gradients reach each chunk's last prediction only."""
        clips, frames, *size = batch.latents.shape
        conds = batch.cond.chunks(frames, self.chunk)
        cache = models["student"].cache(clips, window=frames)
        plan = self.plan.cut(rng)
        shape = (clips, self.chunk, *size)
        return torch.cat(list(rollout(models["student"], conds, shape, plan, cache, rng, detach=self.detach)), 1)

    def _levels(self, video: Latents, rng: torch.Generator) -> Sigma:
        sigma = uniform(len(video), 1, self.shift, rng).clamp(self.lowest, self.highest)
        return sigma.expand(-1, video.shape[1])


def direction(video: Latents, real: Latents, fake: Latents) -> Latents:
    """Where the student's clips should not go: fake - real, in units of each clip's distance to `real`."""
    scale = (video - real).abs().mean((1, 2, 3, 4), keepdim=True)
    return (fake - real) / scale.clamp(min=1e-6)


def descend(video: Latents, towards: Latents) -> torch.Tensor:
    """A loss whose gradient at `video` is `towards` / video.numel()."""
    return 0.5 * (video - (video - towards).detach()).square().mean()
