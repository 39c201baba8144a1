"""Wan2.1's VAE: diffusers' AutoencoderKLWan behind our codec, decoding also as a stream."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcing.codecs import Pixels, weights
from forcing.codecs.stream import Memory, Stream
from forcing.shapes import Latents

KIND = "AutoencoderKLWan"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class WanVAE:
    """`vae`: an AutoencoderKLWan. Latents are normalised: each channel has mean 0 and deviation 1 over many videos."""

    def __init__(self, vae: Any) -> None:
        """ValueError for a VAE that is not built like Wan2.1's, of whatever size."""
        _check(vae.config)
        self.vae = vae.eval().requires_grad_(False)
        like = next(vae.parameters())
        self.device, self.dtype = like.device, like.dtype
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None]
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        causal = type(vae.post_quant_conv)  # each of these may remember frames
        self._places = sum(isinstance(module, causal) for module in vae.decoder.modules())

    @staticmethod
    def load(folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> "WanVAE":
        """The VAE in `folder`: a pipeline's as diffusers saves it, or its folder vae. dtype: None for that of the file.

        ValueError names what is missing, damaged or not Wan2.1's.
        """
        folder = folder / "vae" if (folder / "vae").is_dir() else folder
        path = folder / WEIGHTS
        vae = _built(folder / CONFIG)
        weights.fill(vae, weights.read(path), path, device, dtype)
        return WanVAE(vae)

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames, height and width in pixels that a latent covers; the first covers one frame."""
        config = self.vae.config
        return config.scale_factor_temporal, config.scale_factor_spatial, config.scale_factor_spatial

    @cached_property
    def digest(self) -> str:
        """Identifies the VAE, stored and loaded in float32 or bfloat16 alike."""
        config = {name: value for name, value in self.vae.config.items() if not name.startswith("_")}
        mark = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, value in sorted(self.vae.state_dict().items()):
            mark.update(name.encode() + value.bfloat16().cpu().contiguous().view(torch.int16).numpy().tobytes())
        return mark.hexdigest()[:16]

    def size(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of a latent frame. ValueError if the stride does not divide the sides."""
        _, high, wide = self.stride
        if height < 1 or width < 1 or height % high or width % wide:
            raise ValueError(
                f"frames are {height} x {width} pixels: the height must be a multiple of {high}, the width of {wide}"
            )
        return self.vae.config.z_dim, height // high, width // wide

    def frames(self, latents: int) -> int:
        """How many pixel frames so many latents cover."""
        return 1 + self.stride[0] * (latents - 1) if latents else 0

    @torch.no_grad()
    def encode(self, video: Pixels) -> Latents:
        """uint8 [B, F, H, W, 3] -> float32 [B, f, C, h, w] on the VAE's device, the mean of the posterior.

        F is 1 more than a multiple of the stride in time; H and W are as in `size`.
        """
        if video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != 3 or 0 in video.shape:
            raise ValueError(f"clips are uint8 [B, F, H, W, 3], not {video.dtype} {list(video.shape)}")
        self.size(*video.shape[2:4])
        time, odd = self.stride[0], (video.shape[1] - 1) % self.stride[0]
        if odd:
            below = video.shape[1] - odd
            raise ValueError(f"{video.shape[1]} frames are not 1 + {time} n: give {below} or {below + time}")
        return torch.cat([self._encoded(clip) for clip in video])  # one by one, for memory

    def decode(self, latents: Latents) -> Pixels:
        """[B, f, C, h, w] -> uint8 [B, F, H, W, 3], a whole clip."""
        return self.decoder()(latents)

    def decoder(self) -> Stream:
        """A stream; any number of them may go on at once."""
        return Stream(self._advance, self.vae.config.z_dim, black=-1.0)

    def _encoded(self, clip: Pixels) -> Tensor:
        levels = torch.from_numpy(np.array(clip)).to(self.device).permute(3, 0, 1, 2)[None]
        mean = self.vae.encode((levels.float() / 127.5 - 1).to(self.dtype)).latent_dist.mode()
        return (mean.float().transpose(1, 2) - self._mean) / self._std

    def _advance(self, latent: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        x = latent.to(self.device, torch.float32) * self._std + self._mean
        cache = list(memory) or [None] * self._places
        x = self.vae.post_quant_conv(x.to(self.dtype)[:, :, None])
        x = self.vae.decoder(x, feat_cache=cache, feat_idx=[0], first_chunk=not memory)
        return x.float().transpose(1, 2), tuple(cache)


def _built(path: Path) -> Any:
    """The VAE that a config.json describes, on the meta device."""
    try:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    except ModuleNotFoundError as missing:
        raise ValueError('Wan\'s VAE needs the package diffusers: pip install "forcing[wan]"') from missing
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give a pipeline's folder as diffusers saves it, or its folder vae")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("_class_name")
    except (ValueError, AttributeError) as damage:
        raise ValueError(f"{path} is damaged: not the JSON of a configuration ({damage})") from damage
    if kind != KIND:
        raise ValueError(f"{path} describes {kind!r}; Wan's VAE is {KIND!r}")
    try:
        with torch.device("meta"):
            vae: Any = AutoencoderKLWan.from_config(config)
        _check(vae.config)
    except Exception as error:  # whatever odd values lead the library to
        raise ValueError(f"{path} does not describe Wan2.1's VAE ({type(error).__name__}: {error})") from error
    return vae


def _check(config: Any) -> None:
    if config.patch_size not in (None, 1) or (config.in_channels, config.out_channels) != (3, 3):
        raise ValueError("it takes patches or other channels than RGB, as Wan2.2's does; only Wan2.1's is supported")
    told = (config.scale_factor_temporal, config.scale_factor_spatial)
    layers = (2 ** sum(config.temperal_downsample), 2 ** (len(config.dim_mult) - 1))
    if told != layers:
        raise ValueError(f"it claims strides of {told} in time and space, and has layers for {layers}")
    if {len(config.latents_mean), len(config.latents_std)} != {config.z_dim} or min(config.latents_std) <= 0:
        raise ValueError(f"latents_mean and latents_std must have {config.z_dim} values, the latter above 0")
