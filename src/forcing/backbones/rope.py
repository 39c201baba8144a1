"""Three-axis rotary embedding, computed from the times themselves: positions have no end."""

import torch
from torch import Tensor


def split(dim: int) -> tuple[int, int, int]:
    """Channels of a head given to time, height and width: all even, the remainder to time."""
    side = 2 * (dim // 6)
    return dim - 2 * side, side, side


def angles(times: Tensor, height: int, width: int, dim: int, base: float) -> Tensor:
    """Rotation angles [..., F * height * width, dim / 2] of every token at times [..., F], frames first.

    In float64: a stream that has run for a day is at angles whose float32 has no digits left behind the point.
    """
    axes, where = [], times.device
    sides = (torch.arange(side, device=where) for side in (height, width))
    for positions, size in zip((times, *sides), split(dim), strict=True):
        frequency = base ** (-torch.arange(0, size, 2, dtype=torch.float64, device=where) / size)
        axes.append(positions.double()[..., None] * frequency)
    time, row, column = axes
    grid = (*times.shape, height, width, -1)
    return torch.cat(
        [time[..., None, None, :].expand(grid), row[:, None].expand(grid), column.expand(grid)], -1
    ).flatten(-4, -2)


def turns(angle: Tensor, dtype: torch.dtype) -> Tensor:
    """e^(i angle), complex, in the precision of `dtype` but no less than float32; angles keep their own till then."""
    kind = torch.promote_types(dtype, torch.float32)
    real = angle.to(torch.promote_types(kind, angle.dtype))
    return torch.polar(torch.ones_like(real), real).to(kind.to_complex())


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of x [B, S, heads, dim], taken as complex numbers, by turn [(B,) S, dim / 2]."""
    pairs = torch.view_as_complex(x.to(turn.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn[..., None, :]).flatten(-2).to(x.dtype)
