"""The whole method on a small recorded world: base, AR teacher, causal CD, asymmetric DMD.

Written for `rooms`, and good for any world of that size that `forcing record` made: the numbers that depend on the
world are arguments.
"""

from dataclasses import dataclass, replace
from typing import Literal

from forcing.backbones.tiny import TinyConfig
from forcing.recipe import Gate, Optim, Recipe, Role, Sampling, Schedule
from forcing.rollout import Plan
from forcing.stages.consistency import Consistency
from forcing.stages.diffusion import Bidirectional, DiffusionForcing, TeacherForcing
from forcing.stages.dmd import DMD

FRAMES = 12  # of a training clip, and of the window
SHIFT = 3.0
GUIDANCE = 1.25
FOUR = (
    1.0,
    0.75,
    0.5,
    0.25,
)  # even, and not moved up by SHIFT: the last step then has less left to decide (docs/log.md)
# two steps: a second level where fewer tiles are still undecided than at the evenly spaced 0.75 (docs/log.md)
PLANS = {4: Plan(FOUR), 2: Plan((1.0, 0.35), first=FOUR), 1: Plan((1.0,), first=FOUR)}
RATES = {4: 0.0004, 2: 0.0002, 1: 0.0002}  # of DMD's student: at two and one step 0.0004 went too far (docs/log.md)
Scale = Literal["demo", "full"]


@dataclass(frozen=True)
class Facts:
    """What a recipe must know of a recorded world: latent shape, how many prompts, how many keys."""

    latents: tuple[int, int, int] = (6, 8, 8)
    prompts: int = 3
    keys: int = 4


@dataclass(frozen=True)
class Lengths:
    """Optimizer steps of each stage; DMD's count critic updates.

    critic: of these, how many for each update of the student. average: weight of the past in the student's average,
    less where its updates are so few that an average would hide them.
    """

    base: int
    ar: int
    cd: int
    dmd: int
    critic: int = 5
    average: float = 0.95


LENGTHS = {"demo": Lengths(400, 180, 140, 48, 3, 0.8), "full": Lengths(4500, 600, 600, 400)}


def recipes(facts: Facts | None = None, scale: Scale = "full", chunk: int = 1) -> dict[str, Recipe]:
    """Every recipe, in the order a pipeline runs them. chunk 1 is frame-wise."""
    if scale not in LENGTHS:
        raise ValueError(f"scale {scale!r} is not known; choose from {', '.join(LENGTHS)}")
    if chunk < 1 or FRAMES % chunk:
        raise ValueError(f"chunk must divide {FRAMES} frames, got {chunk}")
    facts, steps = facts or Facts(), LENGTHS[scale]
    many = Sampling(Plan.ode(32, SHIFT), GUIDANCE, chunk, FRAMES)
    base = Recipe(
        name="base",
        stage=Bidirectional(SHIFT),
        backbone=TinyConfig(facts.latents, patch=4, dim=192, text_dim=facts.prompts, action_dim=facts.keys),
        roles={"student": Role(optim=Optim(), ema=0.998)},
        sampling=replace(many, chunk=FRAMES),
        steps=steps.base,
    )
    ar = replace(
        base,
        name="ar",
        stage=TeacherForcing(chunk, SHIFT),
        roles={"student": Role("base", Optim(lr=0.01, adam_lr=1e-3), 0.99)},
        sampling=many,
        steps=steps.ar,
        gate=Gate(control=0.8, quality=2.0),
    )
    cd = replace(
        ar,
        name="cd",
        stage=Consistency(chunk, 48, SHIFT, GUIDANCE),
        # a target that lags 5 steps behind, not 20: what a clean frame is must travel up 48 levels (docs/log.md)
        roles={"student": Role("ar", Optim(lr=0.006, adam_lr=8e-4), 0.8), "teacher": Role("ar")},
        sampling=Sampling(PLANS[2], 1.0, chunk, FRAMES),
        steps=steps.cd,
        schedule=Schedule(warmup=10, decay=0.8),
        gate=Gate(control=0.6, quality=1.0),
    )
    made = {"base": base, "ar": ar, "cd": cd}
    for n, plan in PLANS.items():
        made[f"dmd-{n}step"] = replace(
            cd,
            name=f"dmd-{n}step",
            # compared at high levels: low ones sharpen, and in sharpening favour what is most common (docs/log.md)
            stage=DMD(plan, chunk, GUIDANCE, steps.critic, steps.dmd // 4, shift=SHIFT, lowest=0.8),
            roles={
                "student": Role("cd", Optim(lr=RATES[n], adam_lr=RATES[n] / 10), steps.average),
                "critic": Role("base", Optim(lr=0.004, adam_lr=4e-4), 0.95),
                "teacher": Role("base"),
            },
            sampling=Sampling(plan, 1.0, chunk, FRAMES),
            steps=steps.dmd,
            schedule=Schedule(),
            gate=Gate(control=0.6, quality=1.25),
        )
    made["df"] = replace(ar, name="df", stage=DiffusionForcing(chunk, SHIFT), gate=Gate())
    return made


PIPELINE = ("base", "ar", "cd", "dmd-4step", "dmd-2step", "dmd-1step")
