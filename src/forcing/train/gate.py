"""After each stage: did it make control or quality worse than it may?"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from forcing.data.order import seeded
from forcing.eval.distribution import Features, frechet
from forcing.recipe import Gate, Sampling
from forcing.train.gauge import level
from forcing.train.material import Recorded, gauge
from forcing.world import World

CLIPS = 128
BRIEF = 8  # sampling steps that are enough to compare two many-step models


class GateClosed(RuntimeError):
    """A stage made the model worse than its recipe allows."""


@dataclass(frozen=True)
class Verdict:
    """Measured on held-out clips: the product beside the world that its student started from."""

    control: float
    control_before: float
    quality: float
    quality_before: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def judge(world: World, before: World, data: Recorded) -> Verdict:
    """Controllability gauge, and frame-pair Frechet distance of clips begun from nothing with no actions told.

    A causal `before` is sampled with the plan of `world`: a few-step student must beat what it started from at its
    own number of steps. Many-step plans are thinned, for both alike. Both are gauged at one noise level, that of
    `before`: the gate asks how much is kept of what it heard there.
    """
    own = _brief(world.recipe.sampling)
    other = replace(own, guidance=before.recipe.sampling.guidance) if before.causal else _brief(before.recipe.sampling)
    sigma = level(before.recipe.stage)
    control = [gauge(each.model, each.recipe, data, sigma=sigma)["control"] for each in (world, before)]
    quality = [_distance(each, how, data) for each, how in ((world, own), (before, other))]
    return Verdict(control[0], control[1], quality[0], quality[1])


def check(name: str, start: str, gate: Gate, verdict: Verdict) -> None:
    """GateClosed, with what was measured and what is allowed, if the verdict fails the recipe's gate."""
    # a deaf model's gauge is 1, so what may shrink is what exceeds it
    if gate.control is not None and not verdict.control - 1 >= gate.control * (verdict.control_before - 1):
        raise GateClosed(
            f"{name} listens less than it may: controllability gauge {verdict.control:.2f}, where 1 is deaf; it must "
            f"keep {gate.control:.0%} of what {start} has above that ({verdict.control_before:.2f}). Train it longer "
            "or at a lower learning rate."
        )
    if gate.quality is not None and not verdict.quality <= gate.quality * verdict.quality_before:
        raise GateClosed(
            f"{name} looks worse than it may: Frechet distance {verdict.quality:.2f}, at most {gate.quality} x that of "
            f"{start} at the same steps ({verdict.quality_before:.2f}) is allowed. "
            "Train it longer, or look at its samples."
        )


def _brief(how: Sampling) -> Sampling:
    levels = how.plan.rest
    return replace(how, plan=replace(how.plan, rest=levels[:: max(1, len(levels) // BRIEF)]))


def _distance(world: World, how: Sampling, data: Recorded) -> float:
    frames = data.heldout.frames
    which = torch.randint(len(data.heldout), (2 * CLIPS,), generator=seeded(0, "gate")).numpy()
    latents, cond = data.heldout.cut(which)
    real = data.codec.decode(latents)
    told = cond.map(lambda value: value[:CLIPS])
    free = replace(told, per_frame={name: torch.zeros_like(value) for name, value in told.per_frame.items()})
    chunks = world.stream(free.chunks(frames, how.chunk), CLIPS, seeded(0, "gate", "noise"), sampling=how)
    made = data.codec.decode(torch.cat(list(chunks), 1))
    features = Features.fit(real)
    return frechet(features.of(np.asarray(made)), features.of(real))
