"""Three-axis rotary embedding, computed from the times themselves: positions have no end."""

import torch
from torch import Tensor


def split(dim: int) -> tuple[int, int, int]:
    """Channels of a head given to time, height and width: all even, the remainder to time."""
    side = 2 * (dim // 6)
    return dim - 2 * side, side, side


def angles(times: Tensor, height: int, width: int, dim: int, base: float) -> Tensor:
    """Rotation angles [F * height * width, dim / 2] of every token, frames first, float32."""
    axes = []
    for positions, size in zip((times, torch.arange(height), torch.arange(width)), split(dim), strict=True):
        frequency = base ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        axes.append(positions.float()[:, None] * frequency)
    f, h, w = (len(axis) for axis in axes)
    return torch.cat(
        [
            axes[0][:, None, None].expand(f, h, w, -1),
            axes[1][None, :, None].expand(f, h, w, -1),
            axes[2][None, None, :].expand(f, h, w, -1),
        ],
        -1,
    ).flatten(0, 2)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of x [B, S, heads, dim] by angle [S, dim / 2]."""
    cos, sin = angle.cos()[:, None].to(x.dtype), angle.sin()[:, None].to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
