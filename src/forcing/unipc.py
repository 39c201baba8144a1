"""UniPC (arXiv 2302.04867): a multistep solver that corrects each point by the prediction made at the next.

Order 2, B(h) = e^h - 1, on predictions of clean latents, as Wan2.1 is sampled. The half log signal-to-noise ratio,
log((1 - sigma) / sigma), is the solver's own time; it never leaves this file.
"""

import math
from dataclasses import dataclass

from forcing.shapes import Latents

ORDER = 2
_PURE = 1 - 2e-4  # the ratio has no logarithm at sigma = 1: taken here instead, where Wan's own grid begins


@dataclass(frozen=True)
class _Point:
    x: Latents
    x0: Latents
    sigma: float


class UniPC:
    """One chunk's walk along the ODE: call `step` at each level in turn."""

    def __init__(self) -> None:
        self._points: list[_Point] = []  # the newest last
        self._order = 0  # of the newest step

    def step(self, x: Latents, v: Latents, sigma: float, sigma_next: float) -> Latents:
        """Latents at `sigma_next`, above 0, given `v` at `sigma`. (The step to 0 is the prediction itself.)"""
        x0 = (x - sigma * v).to(x.dtype)
        if self._points:
            x = _moved(self._points, sigma, self._order, x0)
        self._points = [*self._points, _Point(x, x0, sigma)][-ORDER:]
        self._order = len(self._points)
        return _moved(self._points, sigma_next, self._order, None)


def _moved(points: list[_Point], sigma: float, order: int, x0: Latents | None) -> Latents:
    """From the newest point to `sigma`; x0, the prediction there, makes it the corrector."""
    here = points[-1]
    h = _ratio(sigma) - _ratio(here.sigma)
    whole = math.expm1(-h)
    x = sigma / here.sigma * here.x - (1 - sigma) * whole * here.x0
    bend = 0.0 if x0 is None else 0.5 * (x0 - here.x0)
    if order == ORDER:
        before = points[-2]
        r = (_ratio(before.sigma) - _ratio(here.sigma)) / h
        past = (before.x0 - here.x0) / r
        if x0 is None:
            bend = 0.5 * past
        else:
            first = (whole / -h - 1) / whole
            second = 2 * (first * whole / -h - 0.5) / whole
            rho = (first - second) / (1 - r)
            bend = rho * past + (first - rho) * (x0 - here.x0)
    return (x - (1 - sigma) * whole * bend).to(here.x.dtype)


def _ratio(sigma: float) -> float:
    sigma = min(sigma, _PURE)
    return math.log((1 - sigma) / sigma)
