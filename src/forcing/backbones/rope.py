"""Three-axis rotary embedding, computed from the times themselves: positions have no end."""

import torch
from torch import Tensor


def split(dim: int) -> tuple[int, int, int]:
    """Channels of a head given to time, height and width: all even, the remainder to time."""
    side = 2 * (dim // 6)
    return dim - 2 * side, side, side


def angles(times: Tensor, height: int, width: int, dim: int, base: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rotation angles [F * height * width, dim / 2] of every token, frames first."""
    axes, where = [], times.device
    sides = (torch.arange(side, device=where) for side in (height, width))
    for positions, size in zip((times, *sides), split(dim), strict=True):
        frequency = base ** (-torch.arange(0, size, 2, dtype=dtype, device=where) / size)
        axes.append(positions.to(dtype)[:, None] * frequency)
    f, h, w = (len(axis) for axis in axes)
    return torch.cat(
        [
            axes[0][:, None, None].expand(f, h, w, -1),
            axes[1][None, :, None].expand(f, h, w, -1),
            axes[2][None, None, :].expand(f, h, w, -1),
        ],
        -1,
    ).flatten(0, 2)


def turns(angle: Tensor, dtype: torch.dtype) -> Tensor:
    """e^(i angle), complex, in the precision of `dtype` but no less than float32; angles keep their own till then."""
    kind = torch.promote_types(dtype, torch.float32)
    real = angle.to(torch.promote_types(kind, angle.dtype))
    return torch.polar(torch.ones_like(real), real).to(kind.to_complex())


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of x [B, S, heads, dim], taken as complex numbers, by turn [S, dim / 2]."""
    pairs = torch.view_as_complex(x.to(turn.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn[:, None]).flatten(-2).to(x.dtype)
