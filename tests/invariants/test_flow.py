"""One clock: what the formulas of rectified flow must agree on."""

import pytest
import torch
from toys import normal, rng, uniform

from forcing import flow

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def sample(double):
    """x0, eps and sigma, one noise level per frame."""
    return normal(2, 5, 3, 4, 4, seed=1), normal(2, 5, 3, 4, 4, seed=2), uniform(2, 5, seed=3)


def test_velocity_is_the_derivative_of_mix(sample):
    x0, eps, sigma = sample
    x, v, step = flow.mix(x0, eps, sigma), flow.velocity(x0, eps), 1e-3
    assert torch.allclose((flow.mix(x0, eps, sigma + step) - x) / step, v, rtol=0, atol=1e-9)
    assert torch.equal(flow.mix(x0, eps, torch.zeros(2, 5)), x0) and torch.equal(
        flow.mix(x0, eps, torch.ones(2, 5)), eps
    )


def test_the_true_velocity_leads_back(sample):
    x0, eps, sigma = sample
    x, v, other = flow.mix(x0, eps, sigma), flow.velocity(x0, eps), uniform(2, 5, seed=4)
    assert torch.allclose(flow.to_x0(x, v, sigma), x0, rtol=0, atol=1e-12)
    assert torch.allclose(flow.euler(x, v, sigma, other), flow.mix(x0, eps, other), rtol=0, atol=1e-12)
    assert torch.equal(flow.euler(x, v, sigma, torch.zeros(2, 5)), flow.to_x0(x, v, sigma))


def test_levels_belong_to_their_own_frame(sample):
    x0, eps, sigma = sample
    together = flow.mix(x0, eps, sigma)
    for f in range(5):
        alone = flow.mix(x0[:, f : f + 1], eps[:, f : f + 1], sigma[:, f : f + 1])
        assert torch.equal(together[:, f : f + 1], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_clean_is_clean_whatever_the_velocity_says(dtype):
    x, v = normal(2, 3, 1, 2, 2, seed=1, dtype=dtype), 1e3 * normal(2, 3, 1, 2, 2, seed=2, dtype=dtype)
    clean = flow.to_x0(x, v, torch.zeros(2, 3, dtype=torch.float32))
    assert torch.equal(clean, x) and clean.dtype == dtype


def test_shift_fixes_both_ends_and_rises():
    sigma = torch.linspace(0, 1, 101)
    for factor in (0.5, 1.0, 3.0, 5.0):
        moved = flow.shift(sigma, factor)
        assert moved[0] == 0 and moved[-1] == 1 and (moved.diff() > 0).all()
        assert torch.allclose(flow.shift(moved, 1 / factor), sigma, rtol=0, atol=1e-12)
    assert torch.equal(flow.shift(sigma, 1.0), sigma)
    assert flow.shift(torch.tensor(0.5), 3.0) == 0.75
    with pytest.raises(ValueError, match="positive"):
        flow.shift(sigma, 0.0)


def test_the_published_grid():
    grid = flow.grid(48, 5.0)
    assert len(grid) == 49 and (grid.diff() < 0).all()
    assert torch.allclose(grid[:3], torch.tensor([1, 0.99576, 0.99138]), rtol=0, atol=5e-6)
    assert torch.allclose(grid[-3:], torch.tensor([0.17857, 0.09615, 0]), rtol=0, atol=5e-6)
    assert grid[0] == 1 and grid[-1] == 0
    with pytest.raises(ValueError, match="at least 1"):
        flow.grid(0, 5.0)


def test_the_published_four_step_levels_lie_on_the_grid():
    levels = flow.grid(48, 5.0)[[0, 12, 24, 36]]
    assert torch.allclose(levels, torch.tensor([1, 0.9375, 0.8333, 0.625]), rtol=0, atol=5e-5)


def test_noise_comes_from_its_generator_only():
    torch.manual_seed(0)
    first = flow.randn((2, 3), rng(5))
    torch.manual_seed(1)
    assert torch.equal(first, flow.randn((2, 3), rng(5)))
    assert not torch.equal(first, flow.randn((2, 3), rng(6)))
    assert flow.randn((2,), rng(), torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
