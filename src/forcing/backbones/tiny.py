"""A small DiT that trains on a laptop and obeys the same contract as the big ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from forcing.backbones.attention import attend
from forcing.backbones.rope import angles, rotate, turns
from forcing.cond import Cond
from forcing.layout import Abreast, Cache, Layout

SIGMAS = "sigma embedded"  # the condition of each frame that `Tiny.embed` makes of noise levels


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of a `Tiny`.

    latents: (channels, height, width) of one latent frame. text_dim, action_dim: widths of the conditions "text"
    [B, text_dim] and "action" [B, F, action_dim]; 0 = the model is not told it. predict: what the last layer puts
    out. "x0" suits patch vectors wider than `dim`: a velocity would have to carry their noise through a bottleneck.
    """

    latents: tuple[int, int, int]
    patch: int = 2
    dim: int = 128
    heads: int = 4
    layers: int = 6
    mlp: int = 4
    text_dim: int = 0
    action_dim: int = 0
    rope_base: float = 100.0
    predict: Literal["x0", "velocity"] = "x0"
    sigma_floor: float = 0.05  # the smallest sigma that (x - x0) is divided by
    checkpoint: bool = False  # recompute blocks in backward

    def __post_init__(self) -> None:
        _, height, width = self.latents
        if height % self.patch or width % self.patch:
            raise ValueError(f"latents of {height}x{width} do not divide into patches of {self.patch}")
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim {self.dim} must be a multiple of twice the heads ({self.heads})")

    def build(self) -> "Tiny":
        return Tiny(self)


class Tiny(nn.Module):
    """x [B, F, C, H, W], sigma [B, F], conditions and a layout -> velocity [B, F, C, H, W]."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.latents
        self.grid = (height // config.patch, width // config.patch)
        wide = channels * config.patch**2
        self.patch_in = nn.Linear(wide, config.dim)
        self.place = nn.Parameter(torch.zeros(self.grid[0] * self.grid[1], config.dim))
        self.time = nn.Sequential(nn.Linear(config.dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))
        self.text = nn.Linear(config.text_dim, config.dim, bias=False) if config.text_dim else None
        self.action = nn.Linear(config.action_dim, config.dim, bias=False) if config.action_dim else None
        blocks = [Block(config, layer) for layer in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.head_modulation = nn.Linear(config.dim, 2 * config.dim)
        self.head = nn.Linear(config.dim, wide)
        nn.init.normal_(self.place, std=0.02)
        # zero-initialised outputs: the untrained network predicts nothing, and every block starts as the identity
        for layer in (self.head, self.head_modulation, *(block.modulation for block in blocks)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        """An empty past. `batch` is part of the contract; this backbone takes the size from its first input."""
        del batch
        return Cache(self.config.layers, window=window, sink=sink)

    def prepare(self, cond: Cond) -> Cond:
        """What stays the same as long as the conditions do: here, too little to keep."""
        return cond

    def embed(self, sigma: Tensor) -> Mapping[str, Tensor]:
        """What noise levels [B, F] become, as conditions of each frame: made once for the few that a plan visits."""
        return {SIGMAS: self.time(_sinusoid(1000 * sigma, self.config.dim).to(self.place.dtype))}

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond, layout: Layout | Abreast) -> Tensor:
        p, (h, w) = self.config.patch, self.grid
        tokens = rearrange(x, "b f c (h p) (w q) -> b (f h w) (c p q)", p=p, q=p)
        tokens = rearrange(self.patch_in(tokens), "b (f n) d -> b f n d", n=h * w) + self.place
        told = F.silu(self._told(sigma, cond))[:, :, None]
        times, dim = layout.on(x.device), self.config.dim // self.config.heads
        turn = turns(angles(times, h, w, dim, self.config.rope_base), x.dtype)
        for block in self.blocks:
            mute = layout.mute if block is self.blocks[-1] else 0
            if self.config.checkpoint and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, told, turn, layout, mute, use_reentrant=False)
            else:
                tokens = block(tokens, told, turn, layout, mute)
        x, sigma, told = (each[:, layout.mute :] for each in (x, sigma, told))
        out = self.head(_modulate(tokens, *self.head_modulation(told).chunk(2, -1)))
        out = rearrange(out, "b f (h w) (c p q) -> b f c (h p) (w q)", h=h, w=w, p=p, q=p)
        if self.config.predict == "velocity":
            return out
        return (x - out) / sigma.clamp(min=self.config.sigma_floor)[:, :, None, None, None].to(x.dtype)

    def _told(self, sigma: Tensor, cond: Cond) -> Tensor:
        """What modulates each frame [B, F, dim]: its noise level, its action, and the clip's text."""
        told = (cond.per_frame if SIGMAS in cond.per_frame else self.embed(sigma))[SIGMAS]
        if self.text is not None:
            told = told + self.text(cond.static["text"])[:, None]
        if self.action is not None:
            told = told + self.action(cond.per_frame["action"])
        return told


class Block(nn.Module):
    def __init__(self, config: TinyConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.modulation = nn.Linear(config.dim, 6 * config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.norm_q, self.norm_k = (nn.RMSNorm(config.dim // config.heads, eps=1e-6) for _ in range(2))
        self.out = nn.Linear(config.dim, config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.mlp * config.dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp * config.dim, config.dim),
        )

    def forward(self, x: Tensor, told: Tensor, turn: Tensor, layout: Layout | Abreast, mute: int = 0) -> Tensor:
        """x [B, F, N, D] of N tokens a frame, told [B, F, 1, D], turn [(B,) F * N, head / 2] complex.

        Of the first `mute` frames only keys and values are made.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(told).chunk(6, -1)
        qkv = self.qkv(_modulate(x, shift1, scale1))
        q, k, v = rearrange(qkv, "b f n (t h d) -> t b (f n) h d", t=3, h=self.heads)
        if mute:
            x, gate1, shift2, scale2, gate2 = (each[:, mute:] for each in (x, gate1, shift2, scale2, gate2))
        first = mute * x.shape[2]
        q, k = rotate(self.norm_q(q[:, first:]), turn[..., first:, :]), rotate(self.norm_k(k), turn)
        seen = attend(q, k, v, layout, self.layer)
        if not x.shape[1]:
            return x
        x = torch.addcmul(x, gate1, self.out(rearrange(seen, "b (f n) h d -> b f n (h d)", f=x.shape[1])))
        return torch.addcmul(x, gate2, self.mlp(_modulate(x, shift2, scale2)))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


def _sinusoid(time: Tensor, dim: int) -> Tensor:
    """[B, F] -> [B, F, dim] in float32 (float64 times stay float64)."""
    half = dim // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=time.dtype, device=time.device) / half)
    angle = time[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)
