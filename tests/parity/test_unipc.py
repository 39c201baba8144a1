"""Our UniPC against diffusers', on our own grid."""

from itertools import pairwise

import pytest
import torch

from forcing import flow
from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.layout import Cache, full
from forcing.rollout import Plan, denoise
from forcing.unipc import UniPC

PURE = 1 - 2e-4  # where the library's own grid begins


def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.tanh(1.3 * x) * (1 + sigma) - 0.2 * x


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50])
def test_every_step_is_the_library_s(steps):
    diffusers = pytest.importorskip("diffusers")
    oracle = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    oracle.set_timesteps(steps)
    grid = flow.grid(steps, 5.0).double()
    grid[0] = PURE
    oracle.sigmas, oracle.timesteps = grid.clone(), torch.arange(steps, 0, -1)
    theirs = ours = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver, levels = UniPC(), grid.tolist()
    for i, level in enumerate(levels[:-1]):
        theirs = oracle.step(velocity(theirs, level), oracle.timesteps[i], theirs).prev_sample
        v = velocity(ours, level)
        last = i == steps - 1
        ours = ours - level * v if last else solver.step(ours, v, level, levels[i + 1])
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


class Bent:
    """A curved ODE with a known end: every x0 it points to is the data point, seen through its noise level."""

    def __call__(self, x, sigma, cond, layout):
        return velocity(x, float(sigma.flatten()[0]))

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return Cache(1, window=window, sink=sink)


def test_fewer_steps_than_euler_for_the_same_error():
    assert isinstance(Bent(), Backbone)
    noise = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def end(steps: int, solver: str) -> torch.Tensor:
        return denoise(Bent(), noise, Cond(), full(2), Plan.ode(steps, 5.0, solver), torch.Generator())

    true = end(4000, "euler")
    errors = {solver: (end(20, solver) - true).abs().mean().item() for solver in ("euler", "unipc")}
    assert errors["unipc"] < 0.3 * errors["euler"]
    assert (end(80, "unipc") - true).abs().mean().item() < 0.2 * errors["unipc"]


def test_the_first_step_from_pure_noise_is_that_from_nearly_pure_noise():
    # where the library's grid begins at 0.9998, ours begins at 1
    x = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for top in (1.0, PURE):
        solver, levels, at = UniPC(), [top, *flow.grid(10, 5.0)[1:-1].double().tolist()], x
        for level, following in pairwise(levels):
            at = solver.step(at, velocity(at, level), level, following)
        ends.append(at)
    torch.testing.assert_close(*ends, atol=2e-3, rtol=2e-3)
