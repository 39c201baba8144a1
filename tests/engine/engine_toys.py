"""Small worlds to stream from, in float64 where torch's default says so."""

from dataclasses import replace

import numpy as np
import torch
from toys import FRAMES, shaken, shrunk, toy_material, toy_world

from forcing.engine.session import Setup, Told
from forcing.recipe import Sampling
from forcing.rollout import Plan
from forcing.world import World

FOUR = (1.0, 0.75, 0.5, 0.25)
PLANS = {"1 step": Plan((1.0,)), "2 steps": Plan((1.0, 0.35), first=FOUR), "4 steps": Plan(FOUR)}


def world(seed: int = 0) -> World:
    data = toy_material()
    recipe = shrunk("ar", data)
    recipe = replace(recipe, backbone=replace(recipe.backbone, layers=3))
    model = recipe.backbone.build()
    shaken(model, seed, std=0.3)
    return World(model.to(torch.get_default_dtype()).eval().requires_grad_(False), data.kit, recipe)


def setup(world: World, plan: str = "2 steps", chunk: int = 1, window: int = 4, sink: int = 0, guidance=1.0, **more):
    return replace(Setup.of(world, Sampling(PLANS[plan], guidance, chunk, window, sink), keep=64), **more)


def told(chunk: int, seed: int = 0, switch: int | None = None, how: str = "blend"):
    """A viewer: another key with every frame, another prompt from frame `switch` on."""
    prompts, keys = ("day", "night"), np.random.default_rng(seed).integers(-1, 3, 1000)

    def listen(frame: int) -> Told:
        prompt = prompts[switch is not None and frame >= switch]
        return Told(prompt, [int(key) for key in keys[frame : frame + chunk]], how)

    return listen


class Changed:
    """A model whose passes go through a function (model, *arguments of a pass)."""

    def __init__(self, model, function) -> None:
        self.model, self.function = model, function

    def __call__(self, *args):
        return self.function(self.model, *args)

    def cache(self, batch: int, *, window: int, sink: int = 0):
        return self.model.cache(batch, window=window, sink=sink)

    def prepare(self, cond):
        return self.model.prepare(cond)

    def embed(self, sigma):
        return self.model.embed(sigma)

    def __getattr__(self, name: str):
        return getattr(self.model, name)


class Recalling:
    """A decoder with a memory: a picture is made of its latent frame and of the one before."""

    def __init__(self, before=None) -> None:
        self.before = before

    def __call__(self, latents) -> np.ndarray:
        levels = []
        for frame in latents[0]:
            levels.append(frame if self.before is None else frame - 2 * self.before)
            self.before = frame
        out = (128 + 20 * torch.stack(levels)[:, :3]).clamp(0, 255).to(torch.uint8)
        return out.permute(0, 2, 3, 1)[None].numpy()

    def fork(self) -> "Recalling":
        return Recalling(self.before)


def pictures(frames: int = 1, seed: int = 0) -> np.ndarray:
    from toys import episode

    return episode(seed, frames, "train").frames


__all__ = ["FRAMES", "PLANS", "Recalling", "pictures", "setup", "told", "toy_world", "world"]
