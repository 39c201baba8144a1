"""Wan with random weights: as fast as with trained ones, and there is nothing to download."""

import torch

from forcing.backbones.wan import T2V_1_3B, T2V_14B, Wan, WanConfig
from forcing.data.order import seeded
from forcing.kit import RandomKit
from forcing.recipe import Recipe
from forcing.world import World

STD = 0.02
SIZES = {
    "tiny": WanConfig(dim=64, ffn_dim=128, freq_dim=32, text_dim=32, text_len=16, num_heads=4, num_layers=2),
    "20M": WanConfig(dim=256, ffn_dim=1536, num_heads=4, num_layers=14),
    "1.3B": T2V_1_3B,
    "14B": T2V_14B,
}


def random_wan(config: WanConfig, *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Wan:
    """Every parameter is drawn from a normal distribution of deviation STD, one at a time, on the device."""
    rng = seeded(seed, "weights", device=device)
    with torch.device("meta"):
        model = config.build()
    for name, parameter in list(model.named_parameters()):
        kind = torch.float32 if Wan.keeps_float32(name) else dtype
        value = torch.randn(parameter.shape, generator=rng, device=device).mul_(STD).to(kind)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value))
    return model


def random_world(
    recipe: Recipe, frame: tuple[int, int], *, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> World:
    """A world for frames of (height, width) pixels, as if it were the product of `recipe`."""
    config = recipe.backbone
    if not isinstance(config, WanConfig):
        raise TypeError(f"{recipe.name} is no recipe of Wan's: its network is {type(config).__name__}")
    model = random_wan(config, seed=seed, device=device, dtype=dtype).eval().requires_grad_(False)
    return World(model, RandomKit(frame, (config.text_len, config.text_dim), seed, device, dtype), recipe)
