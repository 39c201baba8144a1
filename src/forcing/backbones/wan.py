"""Wan2.1's video transformer, under one contract for every attention pattern.

Parameters carry the names of the released weights, which the bidirectional base and every causal product share: what
makes a model causal is the layout that it is called with. Sizes and sub-modules are those of Wan2.1 T2V.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from forcing.backbones.attention import attend
from forcing.backbones.rope import angles, rotate, turns
from forcing.cond import Cond
from forcing.layout import Abreast, Cache, Layout

EPS = 1e-6
ROPE_BASE = 10000.0
TEXTS = "text in layers"  # the condition that `Wan.prepare` makes of "text"
SIGMA, SIGMAS = "sigma embedded", "sigma projected"  # those of each frame that `Wan.embed` makes of noise levels
_FLOAT32 = ("time_embedding.", "time_projection.", "modulation", "norm")


@dataclass(frozen=True)
class WanConfig:
    """Sizes of a `Wan`, under their original names; the defaults are those of the 1.3B model.

    freq_dim: of the sinusoid of sigma. text_len: embeddings that a text is padded to. in_channels: of latents, in and
    out. patch: (frames, height, width), with 1 frame. checkpoint: recompute blocks in backward.
    """

    dim: int = 1536
    ffn_dim: int = 8960
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    num_heads: int = 12
    num_layers: int = 30
    in_channels: int = 16
    patch: Sequence[int] = (1, 2, 2)
    checkpoint: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(self.patch))  # JSON has lists
        sizes = ("dim", "ffn_dim", "freq_dim", "text_dim", "text_len", "num_heads", "num_layers", "in_channels")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.num_heads or self.dim // self.num_heads % 2:
            raise ValueError(
                f"dim {self.dim} does not divide into {self.num_heads} heads of an even number of channels"
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, got {self.freq_dim}")
        if len(self.patch) != 3 or self.patch[0] != 1 or min(self.patch) < 1:
            raise ValueError(f"patch must be (1, height, width): frames are never merged; got {self.patch}")

    def build(self) -> "Wan":
        return Wan(self)


T2V_1_3B = WanConfig()
T2V_14B = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)


class Wan(nn.Module):
    """x [B, F, C, H, W], sigma [B, F], "text" [B, L <= text_len, text_dim] and a layout -> velocity [B, F, C, H, W].

    H and W may be any multiples of the patch. Modulation, norms and the embedding of sigma are computed in float32 or
    better, whatever the weights are stored in.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = PatchEmbedding(config)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.head = Head(config)
        self._initialise()

    @staticmethod
    def keeps_float32(name: str) -> bool:
        """Whether a parameter stays float32 where the others are stored in less: all that modulates or normalises."""
        return any(part in name for part in _FLOAT32)

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        """An empty past. `batch` is part of the contract; this backbone takes the size from its first input."""
        del batch
        return Cache(self.config.num_layers, window=window, sink=sink)

    def prepare(self, cond: Cond) -> Cond:
        """What stays as long as the conditions do, computed once: keys and values of the text, in each layer."""
        (batch, *_), *_ = (value.shape for value in cond.static.values())
        return replace(cond, static={TEXTS: self._texts(cond, batch)})

    def embed(self, sigma: Tensor) -> Mapping[str, Tensor]:
        """What noise levels [B, F] become, as conditions of each frame: made once for the few that a plan visits.

        Embedded for the head [B, F, dim], and projected for the blocks [B, F, 6, dim].
        """
        with torch.autocast(sigma.device.type, enabled=False):
            kind = self.time_embedding.get_parameter("0.weight").dtype
            e = self.time_embedding(_sinusoid(1000 * sigma.double(), self.config.freq_dim).to(kind))
            return {SIGMA: _precise(e), SIGMAS: _precise(self.time_projection(e)).unflatten(-1, (6, -1))}

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond, layout: Layout | Abreast) -> Tensor:
        _, p, q = self.config.patch
        height, width = x.shape[-2:]
        if height % p or width % q or x.shape[2] != self.config.in_channels:
            raise ValueError(
                f"latents are {list(x.shape[2:])} (channels, height, width): need {self.config.in_channels} channels "
                f"and sides that are multiples of {p} and {q}"
            )
        # latents of neighbouring noise levels differ by less than bfloat16 tells apart
        with torch.autocast(x.device.type, enabled=False):
            tokens = self.patch_embedding(x)
        texts = cond.static[TEXTS] if TEXTS in cond.static else self._texts(cond, len(x))
        told = cond.per_frame if SIGMAS in cond.per_frame else self.embed(sigma)
        e, modulation = told[SIGMA][:, layout.mute :], told[SIGMAS]
        grid = height // p, width // q
        times, dim = layout.on(x.device), self.config.dim // self.config.num_heads
        turn = turns(angles(times, *grid, dim, ROPE_BASE), tokens.dtype)
        for block, text in zip(self.blocks, texts.unbind(1), strict=True):
            mute = layout.mute if block is self.blocks[-1] else 0
            if self.config.checkpoint and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, modulation, text, turn, layout, mute, use_reentrant=False)
            else:
                tokens = block(tokens, modulation, text, turn, layout, mute)
        with torch.autocast(x.device.type, enabled=False):
            out = self.head(tokens, e)
        return rearrange(out, "b f (h w) (p q c) -> b f c (h p) (w q)", h=grid[0], p=p, q=q).to(x.dtype)

    def _texts(self, cond: Cond, batch: int) -> Tensor:
        """Keys and values of the text in each layer, [B, layers, 2, L, dim]."""
        if "text" not in cond.static:
            raise ValueError(f"Wan needs the condition 'text' [B, L, {self.config.text_dim}]; got {cond.names()}")
        text, most = cond.static["text"], self.config.text_len
        if text.ndim != 3 or len(text) != batch or text.shape[2] != self.config.text_dim or text.shape[1] > most:
            raise ValueError(
                f"text is {list(text.shape)}: for {batch} clips it must be [{batch}, at most {most}, "
                f"{self.config.text_dim}]"
            )
        padded = F.pad(text, (0, 0, 0, most - text.shape[1]))
        embedded = self.text_embedding(padded.to(self.text_embedding.get_parameter("0.weight").dtype))
        return torch.stack([block.cross_attn.told(embedded) for block in self.blocks if isinstance(block, Block)], 1)

    @torch.no_grad()
    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for layer in (*self.text_embedding, *self.time_embedding):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("modulation"):
                nn.init.normal_(parameter, std=self.config.dim**-0.5)
        nn.init.zeros_(self.head.head.weight)  # the untrained network predicts nothing


class PatchEmbedding(nn.Conv3d):
    """A convolution whose patches do not overlap, as the matrix product that it is: [B, F, C, H, W] -> [B, F, N, D]."""

    def __init__(self, config: WanConfig) -> None:
        _, p, q = config.patch
        super().__init__(config.in_channels, config.dim, (1, p, q), stride=(1, p, q))

    def forward(self, input: Tensor) -> Tensor:
        _, p, q = self.kernel_size
        patches = rearrange(input, "b f c (h p) (w q) -> b f (h w) (c p q)", p=p, q=q)
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class Block(nn.Module):
    """x [B, F, N, D], N tokens a frame; modulation [B, F, 6, D]; text [B, 2, L, D]; turn [(B,) F * N, head / 2].

    Of the first `mute` frames only keys and values are made.
    """

    def __init__(self, config: WanConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, layer)
        self.norm3 = LayerNorm(config.dim, eps=EPS)
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim))

    def forward(
        self, x: Tensor, modulation: Tensor, text: Tensor, turn: Tensor, layout: Layout | Abreast, mute: int = 0
    ) -> Tensor:
        told = (self.modulation.to(modulation.dtype) + modulation)[:, :, :, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = told.unbind(2)
        seen = self.self_attn(_modulated(x, shift1, scale1), turn, layout, mute)
        if mute:
            x, gate1, shift2, scale2, gate2 = (each[:, mute:] for each in (x, gate1, shift2, scale2, gate2))
        if not x.shape[1]:
            return x
        x = _gated(x, gate1, seen)
        x = x + self.cross_attn(self.norm3(x), text)
        return _gated(x, gate2, self.ffn(_modulated(x, shift2, scale2)))


class Attention(nn.Module):
    """Projections with normalised queries and keys: over the full width, before it is split into heads."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(config.dim, eps=EPS) for _ in range(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(Attention):
    def __init__(self, config: WanConfig, layer: int) -> None:
        super().__init__(config)
        self.layer = layer

    def forward(self, x: Tensor, turn: Tensor, layout: Layout | Abreast, mute: int) -> Tensor:
        _, frames, tokens, _ = x.shape
        x, first = x.flatten(1, 2), mute * tokens
        q = rotate(self.split(self.norm_q(self.q(x[:, first:]))), turn[..., first:, :])
        k = rotate(self.split(self.norm_k(self.k(x))), turn)
        seen = attend(q, k, self.split(self.v(x)), layout, self.layer)
        return self.o(seen.flatten(2)).unflatten(1, (frames - mute, tokens))


class CrossAttention(Attention):
    """To all of the text, its padding included: the released weights were trained so."""

    def told(self, text: Tensor) -> Tensor:
        """Keys and values [B, 2, L, D] of a text [B, L, D]."""
        return torch.stack([self.norm_k(self.k(text)), self.v(text)], 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        frames, x = x.shape[1], x.flatten(1, 2)
        q, k, v = (self.split(part).transpose(1, 2) for part in (self.norm_q(self.q(x)), *text.unbind(1)))
        seen = F.scaled_dot_product_attention(q, k, v)
        return self.o(seen.transpose(1, 2).flatten(2)).unflatten(1, (frames, -1))


class Head(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.dim, math.prod(config.patch) * config.in_channels)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        told = (self.modulation.to(e.dtype) + e[:, :, None])[:, :, :, None]
        return self.head(_modulated(x, *told.unbind(2)))


class LayerNorm(nn.LayerNorm):
    """In float32 or better, whatever comes in."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _precise(self.weight), _precise(self.bias)
        return F.layer_norm(_precise(input), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class RMSNorm(nn.RMSNorm):
    """In float32 or better, whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(_precise(x), self.normalized_shape, _precise(self.weight), self.eps).to(x.dtype)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(_precise(x), x.shape[-1:], eps=EPS), 1 + scale).to(x.dtype)


def _gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    return torch.addcmul(_precise(x), gate, _precise(change)).to(x.dtype)


def _sinusoid(time: Tensor, dim: int) -> Tensor:
    """[B, F] float64 -> [B, F, dim]: cosines, then sines."""
    half = dim // 2
    frequency = ROPE_BASE ** -(torch.arange(half, dtype=time.dtype, device=time.device) / half)
    angle = time[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)
