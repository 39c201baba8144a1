"""A tiny decoder of Wan2.1's latents for live pictures: the network of the public TAEHV weights ("taew2_1").

One file holds it, with its sizes in the shapes of its weights. Each of three stages has memory blocks, which see the
frame before, doubles height and width, and may make several frames of each. The frames it makes before the first that
counts are dropped, so that the first latent gives one frame, as with the VAE.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forcing.codecs import Pixels, weights
from forcing.codecs.stream import Memory, Stream
from forcing.shapes import Latents

STAGES, BLOCKS = 3, 3  # memory blocks in each stage
LIMIT = 3.0  # latents are bent to stay within


class TAEHV:
    """`network`: its layers in order. The codec is a decoder only; its latents are normalised, as the VAE's are."""

    def __init__(self, network: nn.Sequential) -> None:
        self.network = network.eval().requires_grad_(False)
        like = next(network.parameters())
        self.device, self.dtype = like.device, like.dtype
        first, *_, last = (layer for layer in network if isinstance(layer, nn.Conv2d))
        self.channels, self._patch = first.in_channels, math.isqrt(last.out_channels // 3)
        self._growth = math.prod(layer.growth for layer in network if isinstance(layer, Grow))

    @staticmethod
    def load(path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> "TAEHV":
        """The decoder in a .pth or .safetensors file, whose encoder is left out. dtype: None for that of the file.

        ValueError names a file that is missing, damaged or of another network.
        """
        found = {name: value for name, value in weights.read(path).items() if not name.startswith("encoder.")}
        try:
            with torch.device("meta"):
                network = _network(found)
        except Exception as error:  # a name that is missing, or a shape that is none
            raise ValueError(f"{path} holds no TAEHV decoder ({type(error).__name__}: {error})") from error
        weights.fill(nn.ModuleDict({"decoder": network}), found, path, device, dtype)
        return TAEHV(network)

    def decode(self, latents: Latents) -> Pixels:
        """[B, f, C, h, w] -> uint8 [B, F, H, W, 3], a whole clip."""
        return self.decoder()(latents)

    def decoder(self) -> Stream:
        """A stream; any number of them may go on at once."""
        return Stream(self._advance, self.channels, black=0.0)

    def _advance(self, latent: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        x, before, after = latent.to(self.device, self.dtype), iter(memory), []
        for layer in self.network:
            if isinstance(layer, Recall):
                frames = x.unflatten(0, (len(latent), -1))
                past = next(before) if memory else torch.zeros_like(frames[:, :1])
                x = layer(x, torch.cat([past, frames[:, :-1]], 1).flatten(0, 1))
                after.append(frames[:, -1:])
            else:
                x = layer(x)
        made = F.pixel_shuffle(x, self._patch).float().unflatten(0, (len(latent), -1))
        return made[:, 0 if memory else self._growth - 1 :], tuple(after)


class Bend(nn.Module):
    """Keeps values within LIMIT, smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / LIMIT) * LIMIT


class Recall(nn.Module):
    """A residual block that sees the frame before: x and past are [N, C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rest = (layer for _ in range(2) for layer in (nn.ReLU(), _conv(width, width)))
        self.conv = nn.Sequential(_conv(2 * width, width), *rest)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, past], 1)) + x)


class Grow(nn.Module):
    """`growth` frames of each: [N, C, h, w] -> [N growth, C, h, w]."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.growth = growth
        self.conv = nn.Conv2d(width, width * growth, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).unflatten(1, (self.growth, -1)).flatten(0, 1)


def _conv(width: int, out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(width, out, 3, padding=1, bias=bias)


def _network(found: Mapping[str, Tensor]) -> nn.Sequential:
    """The layers for weights of these shapes, numbered as the names say."""

    def outputs(name: str) -> int:
        return len(found[f"decoder.{len(layers)}.{name}"])

    layers: list[nn.Module] = [Bend()]
    width = outputs("weight")
    layers += [_conv(found["decoder.1.weight"].shape[1], width), nn.ReLU()]
    for _ in range(STAGES):
        layers += [*(Recall(width) for _ in range(BLOCKS)), nn.Upsample(scale_factor=2)]
        layers.append(Grow(width, outputs("conv.weight") // width))
        width, before = outputs("weight"), width
        layers.append(_conv(before, width, bias=False))
    layers.append(nn.ReLU())
    out = outputs("weight")
    if out < 3 or out != 3 * math.isqrt(out // 3) ** 2:
        raise ValueError(f"it ends in {out} channels: need 3 for each pixel of a square patch")
    layers.append(_conv(width, out))
    return nn.Sequential(*layers)
