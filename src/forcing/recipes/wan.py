"""Causal Forcing++ on Wan2.1: frame-wise or in chunks, with the published hyper-parameters and our corrections.

Published (arXiv 2605.15141 and its code): AdamW at 2e-6 with betas (0, 0.999) and weight decay 0.01, a constant rate,
gradients clipped at 10, a batch of 64, shift 5 everywhere, guidance 3 in the teacher's step of CD, an average of weight
0.99, five critic updates at 4e-7 for each of the student, comparisons between 0.02 and 0.98. Ours (docs/decisions):
sigma is float32 and never rounded; CD trains the last interval, too; DMD's guidance is 4 because the published 3 is
added to 1 there; no gradient through the cache; the critic learns the velocity itself, and before the student moves.
"""

from dataclasses import dataclass, replace

from forcing import flow
from forcing.backbones.wan import T2V_1_3B, WanConfig
from forcing.recipe import Optim, Recipe, Role, Sampling, Schedule
from forcing.rollout import Plan
from forcing.stages.consistency import Consistency
from forcing.stages.diffusion import Bidirectional, TeacherForcing
from forcing.stages.dmd import DMD

SHIFT = 5.0
SIZE = (480, 832)  # height and width that the released models know best
FPS = 16.0
RELEASED, TEACHER = "wan", "wan-teacher"  # what users bring: the base, and the larger one that DMD asks
CONSTANT = Schedule(warmup=0, decay=0.0, floor=1.0)


def levels(steps: int) -> tuple[float, ...]:
    """An even grid of `steps` levels, shifted."""
    return tuple(flow.grid(steps, SHIFT)[:-1].tolist())


# one- and two-step students take four for what nothing precedes
PLANS = {4: Plan(levels(4)), 2: Plan(levels(2), first=levels(4)), 1: Plan(levels(1), first=levels(4))}


@dataclass(frozen=True)
class Facts:
    """What a recipe must know: the student's network, and latent frames of a training clip (21 are 81 in pixels)."""

    backbone: WanConfig = T2V_1_3B
    frames: int = 21


def recipes(facts: Facts | None = None, chunk: int = 1) -> dict[str, Recipe]:
    """Every recipe, in order. chunk 1 is frame-wise; the published chunk-wise models have 3."""
    facts = facts or Facts()
    if chunk < 1 or facts.frames % chunk:
        raise ValueError(f"chunk must divide clips of {facts.frames} latent frames, got {chunk}")
    slow = Optim("adamw", lr=2e-6, adam_lr=2e-6, betas=(0.0, 0.999), weight_decay=0.01)
    many = Sampling(Plan.ode(50, SHIFT, "unipc"), 3.0, chunk, facts.frames)
    base = Recipe(
        name="wan-base",
        stage=Bidirectional(SHIFT, "bell"),
        backbone=replace(facts.backbone, checkpoint=True),
        roles={"student": Role(RELEASED, slow)},
        sampling=replace(many, guidance=5.0, chunk=facts.frames),
        steps=1000,
        batch=64,
        frames=facts.frames,
        clip=10.0,
        schedule=CONSTANT,
        precision="bfloat16",
        save=250,
    )
    ar = replace(base, name="wan-ar", stage=TeacherForcing(chunk, SHIFT, "bell"), sampling=many, steps=5000)
    cd = replace(
        ar,
        name="wan-cd",
        stage=Consistency(chunk, 48, SHIFT, 3.0),
        roles={"student": Role("wan-ar", slow, 0.99), "teacher": Role("wan-ar")},
        sampling=Sampling(PLANS[4], 1.0, chunk, facts.frames),
    )
    made = {"wan-base": base, "wan-ar": ar, "wan-cd": cd}
    for n, plan in PLANS.items():
        made[f"wan-dmd-{n}step"] = replace(
            cd,
            name=f"wan-dmd-{n}step",
            stage=DMD(plan, chunk, 4.0, 5, shift=SHIFT, lowest=0.02, highest=0.98),
            roles={
                "student": Role("wan-cd", slow, 0.99),
                "critic": Role(RELEASED, replace(slow, lr=4e-7, adam_lr=4e-7)),
                "teacher": Role(TEACHER),
            },
            sampling=Sampling(plan, 1.0, chunk, facts.frames),
            steps=1000,
        )
    return made


def released(facts: Facts) -> Recipe:
    """How the released base is sampled; it is brought, not trained."""
    return replace(recipes(facts)["wan-base"], name=RELEASED)
