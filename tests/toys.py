"""Small things to test with: random networks, backbones made of a formula, a toy recording, shrunken recipes.

As a script, `python toys.py FOLDER NAME STEPS SAVE SECONDS` trains a recipe slowly: a process that can be killed.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from forcing.backbones.tiny import Tiny, TinyConfig
from forcing.cond import Cond
from forcing.data.shards import Episode, Recording
from forcing.layout import Cache, Layout
from forcing.recipe import Gate, Recipe
from forcing.recipes.rooms import Facts, recipes
from forcing.rollout import Plan
from forcing.stages.diffusion import Bidirectional
from forcing.stages.dmd import DMD
from forcing.train.material import Recorded, fit_codec, recorded
from forcing.train.run import train
from forcing.world import World

SIZE = (3, 4, 8)  # of a latent frame of `wild`
TEXT, ACTION = 3, 4


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype or torch.get_default_dtype())


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    return torch.rand(shape, generator=rng(seed), dtype=torch.float64).to(dtype or torch.get_default_dtype())


@torch.no_grad()
def shaken(model: Tiny, seed: int = 0, std: float = 0.3) -> Tiny:
    """All parameters random: an untrained network says nothing, so that anything would equal anything."""
    generator = rng(seed)
    for parameter in model.parameters():
        parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def wild(seed: int = 0, dtype: torch.dtype | None = None, **changes) -> Tiny:
    """A tiny network that listens to everything it is told."""
    sizes = {"patch": 2, "dim": 24, "heads": 2, "layers": 3, "mlp": 2, "text_dim": TEXT, "action_dim": ACTION}
    config = TinyConfig(SIZE, **{**sizes, "predict": "velocity", **changes})
    return shaken(config.build().to(dtype or torch.get_default_dtype()), seed)


def told(clips: int, frames: int, seed: int = 0, dtype: torch.dtype | None = None) -> Cond:
    """Random conditions for `wild`."""
    return Cond(
        {"text": normal(clips, TEXT, seed=seed + 1, dtype=dtype)},
        {"action": normal(clips, frames, ACTION, seed=seed + 2, dtype=dtype)},
    )


@dataclass(frozen=True)
class Call:
    """What a backbone was asked."""

    x: Tensor
    sigma: Tensor
    cond: Cond
    layout: Layout
    grad: bool


class Spy:
    """A backbone that notes what it is asked."""

    def __init__(self, model) -> None:
        self.model, self.calls = model, []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond, layout: Layout) -> Tensor:
        self.calls.append(Call(x.detach().clone(), sigma.clone(), cond, layout, torch.is_grad_enabled()))
        return self.model(x, sigma, cond, layout)

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return self.model.cache(batch, window=window, sink=sink)

    def prepare(self, cond: Cond) -> Cond:
        return self.model.prepare(cond)

    def embed(self, sigma: Tensor) -> dict[str, Tensor]:
        return self.model.embed(sigma)

    def levels(self) -> list[list[float]]:
        """The first clip's noise levels, call by call."""
        return [[round(level, 4) for level in call.sigma[0].tolist()] for call in self.calls]


class Formula:
    """A backbone whose velocity is a function of (x, sigma, cond); frames do not see each other."""

    def __init__(self, velocity: Callable[[Tensor, Tensor, Cond], Tensor]) -> None:
        self.velocity = velocity

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond, layout: Layout) -> Tensor:
        if layout.past is not None:
            mark = x[:, :, 0, 0, :1, None]
            layout.past.extend(0, mark, mark)
        return self.velocity(x, sigma, cond)

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return Cache(1, window=window, sink=sink)


# ---- a toy world: 16 x 16 pixels, 2 x 2 tiles of a palette of 5; the first tile tells the action that led there

PROMPTS, KEYS = ("day", "night"), ("left", "right", "wait")
FRAMES = 4  # of a training clip
PALETTE = np.random.default_rng(7).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def episode(index: int, length: int, split: str) -> Episode:
    """Its first tile is tile 0 at the start and tile 1 + action after an action."""
    draw = np.random.default_rng([1, index])
    actions = np.append(draw.integers(0, len(KEYS), length - 1), -1)
    tiles = draw.integers(0, len(PALETTE), (length, 2, 2))
    tiles[:, 0, 0] = np.concatenate([[0], 1 + actions[:-1]])
    frames = PALETTE[tiles].swapaxes(2, 3).reshape(length, 16, 16, 3)
    ends = np.arange(length) == length - 1
    rewards = np.zeros(length, np.float32)
    return Episode(index, PROMPTS[index % 2], index, split, np.ascontiguousarray(frames), actions, rewards, ends)


class ToyRecording(Recording):
    """A recording that is never on disk."""

    def stream(self, split: str | None = None) -> Iterator[Episode]:
        train = [episode(i, 12, "train") for i in range(6)]
        heldout = [episode(i, 12, "heldout") for i in range(100, 103)]
        yield from {"train": train, "heldout": heldout, None: train + heldout}[split]


def recording() -> ToyRecording:
    facts = {"actions": [{"name": key} for key in KEYS], "worlds": [{"prompt": prompt} for prompt in PROMPTS]}
    return ToyRecording(Path("toy"), {**facts, "shape": [16, 16, 3]})


def toy_material(frames: int = FRAMES) -> Recorded:
    return recorded(recording(), fit_codec(recording()), frames)


def shrunk(name: str, data: Recorded, chunk: int = 1, **changes) -> Recipe:
    """The recipe `name`, small enough to train in a second."""
    facts = Facts(data.codec.config.latents, len(PROMPTS), len(KEYS))
    recipe = recipes(facts, chunk=chunk)[name]
    small = {"patch": 2, "dim": 16, "heads": 2, "layers": 1, "text_dim": facts.prompts, "action_dim": facts.keys}
    whole = isinstance(recipe.stage, Bidirectional)
    plan = Plan.ode(2, 3.0) if not recipe.sampling.plan.fresh else recipe.sampling.plan
    sampling = replace(recipe.sampling, plan=plan, chunk=FRAMES if whole else chunk, window=FRAMES)
    if isinstance(recipe.stage, DMD):
        recipe = replace(recipe, stage=replace(recipe.stage, critic_updates=2, critic_first=0))
    sizes = {"steps": 6, "batch": 4, "frames": FRAMES, "log": 1, "save": 100, "gate": Gate()}
    return replace(recipe, backbone=TinyConfig(facts.latents, **small), sampling=sampling, **{**sizes, **changes})


def toy_world(data: Recorded, name: str = "base", seed: int = 0) -> World:
    """An untrained world with random weights."""
    recipe = shrunk(name, data)
    model = shaken(recipe.backbone.build(), seed).eval().requires_grad_(False)
    return World(model, data.kit, recipe)


def starts(data: Recorded) -> MappingProxyType[str, World]:
    """Something to start every recipe from."""
    return MappingProxyType({name: toy_world(data, name, seed) for seed, name in enumerate(("base", "ar", "cd"))})


def silent() -> Console:
    """A console to read back: `silent().file.getvalue()`."""
    return Console(file=io.StringIO(), width=200)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below `folder`; safetensors write their metadata in any order, so theirs is sorted."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _sorted(data) if name.endswith(".safetensors") else data for name, data in files.items()}


def _sorted(data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]


def _slow_training(folder: Path, name: str, steps: int, save: int, seconds: float) -> None:
    from forcing.data.clips import Sampler

    at = Sampler.batch_at

    def late(self, step, update):
        time.sleep(seconds)
        return at(self, step, update)

    Sampler.batch_at = late
    data = toy_material()
    train(shrunk(name, data, steps=steps, save=save), folder, starts(data), data, silent())


if __name__ == "__main__":
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    torch.set_num_threads(1)
    _slow_training(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
