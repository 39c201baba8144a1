"""Does the model listen? Its error with other clips' actions over its error with the true ones."""

import torch

from forcing import flow
from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.layout import full
from forcing.shapes import Latents
from forcing.stages import Stage
from forcing.stages.consistency import Consistency
from forcing.stages.diffusion import given_clean
from forcing.stages.dmd import DMD

MANY_STEPS = 0.9  # where the outcome is not yet visible in the noised frame
FEW_STEPS = 1.0  # the one level that every plan visits; a few-step student may never meet those just below


def level(stage: Stage) -> float:
    """The noise level at which models of a stage are gauged. Two models are compared at one level only."""
    return FEW_STEPS if isinstance(stage, Consistency | DMD) else MANY_STEPS


def controllability(
    model: Backbone, latents: Latents, cond: Cond, chunk: int | None, at: float, rng: torch.Generator
) -> dict[str, float]:
    """`control`: squared error of the predicted clean frames under shuffled actions / under true ones; 1 is deaf.

    latents [B, F, C, H, W] are held-out clips whose actions are all told. chunk: of an autoregressive model, which
    is given the clean past; None: bidirectional. at: the noise level. The first frame has no action and does not count.
    """
    eps = flow.randn(tuple(latents.shape), rng, latents)
    order = torch.randperm(len(latents), generator=rng)
    other = Cond(cond.static, {name: value[order] for name, value in cond.per_frame.items()})
    true = _error(model, latents, cond, chunk, at, eps)
    return {"control": _error(model, latents, other, chunk, at, eps) / max(true, 1e-12), "error": true}


def error(model: Backbone, latents: Latents, cond: Cond, chunk: int | None, at: float, rng: torch.Generator) -> float:
    """The squared error alone, for models that are told no actions."""
    return _error(model, latents, cond, chunk, at, flow.randn(tuple(latents.shape), rng, latents))


@torch.no_grad()
def _error(model: Backbone, latents: Latents, cond: Cond, chunk: int | None, at: float, eps: Latents) -> float:
    sigma = torch.full(latents.shape[:2], at, device=latents.device)
    x = flow.mix(latents, eps, sigma)
    if chunk is None:
        v = model(x, sigma, cond, full(latents.shape[1]))
    else:
        v = given_clean(model, x, sigma, latents, cond, chunk)
    gap = (flow.to_x0(x, v, sigma) - latents).square()
    return (gap[:, 1:] if gap.shape[1] > 1 else gap).mean().item()
