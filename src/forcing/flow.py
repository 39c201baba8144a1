"""Rectified flow on one clock: sigma in [0, 1], float32, one noise level per frame.

Conventions (docs/math.md): x = (1 - sigma) x0 + sigma eps; the network predicts v = dx/dsigma = eps - x0, so that
x0 = x - sigma v. sigma = 1 is pure noise. Nobody but a backbone's own time embedding knows any other unit of time.
"""

import torch
from torch import Tensor

from forcing.shapes import Float, Latents, Sigma


def mix(x0: Latents, eps: Latents, sigma: Sigma) -> Latents:
    """The noised latents (1 - sigma) x0 + sigma eps, in the dtype of `x0`."""
    s = _beside(sigma)
    return ((1 - s) * x0 + s * eps).to(x0.dtype)


def velocity(x0: Latents, eps: Latents) -> Latents:
    """What the network should predict: eps - x0."""
    return eps - x0


def to_x0(x: Latents, v: Latents, sigma: Sigma) -> Latents:
    """The clean latents that velocity `v` at `x` points to. At sigma = 0 this is `x`, whatever `v` says."""
    return (x - _beside(sigma) * v).to(x.dtype)


def euler(x: Latents, v: Latents, sigma: Sigma, sigma_next: Sigma) -> Latents:
    """One Euler step of the probability-flow ODE from `sigma` to `sigma_next`."""
    return (x + _beside(sigma_next - sigma) * v).to(x.dtype)


def shift(sigma: Float[Tensor, "..."], factor: float) -> Float[Tensor, "..."]:
    """Move noise levels towards 1: factor sigma / (1 + (factor - 1) sigma). Fixes 0 and 1; factor 1 changes nothing."""
    if factor <= 0:
        raise ValueError(f"shift must be positive, got {factor}")
    return factor * sigma / (1 + (factor - 1) * sigma)


def grid(steps: int, factor: float) -> Float[Tensor, " n"]:
    """`steps + 1` shifted levels from 1 down to 0, evenly spaced before the shift."""
    if steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {steps}")
    return shift(torch.linspace(1, 0, steps + 1), factor)


def bell(sigma: Float[Tensor, "..."], factor: float) -> Float[Tensor, "..."]:
    """Weights that Wan's training loss gives to noise levels: most at 0.5, none at pure noise, 1 on average.

    exp(-2 (sigma - 0.5)^2), less its least value over a grid of 1000 levels shifted by `factor`, over its mean there.
    """
    levels = grid(1000, factor)[:-1].to(sigma)
    weights = torch.exp(-2 * (levels - 0.5).square())
    least = weights.min()
    return (torch.exp(-2 * (sigma - 0.5).square()) - least) / (weights - least).mean()


def randn(shape: tuple[int, ...], rng: torch.Generator, like: Tensor | None = None) -> Tensor:
    """Standard normal noise from `rng`, placed and typed like `like`."""
    noise = torch.randn(shape, generator=rng, device=rng.device)
    return noise if like is None else noise.to(like)


def _beside(sigma: Sigma) -> Float[Tensor, "b f 1 1 1"]:
    return sigma[:, :, None, None, None]
