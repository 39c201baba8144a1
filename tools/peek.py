"""A quick look at a recipe while it trains: Frechet distance, motion and validity of clips begun from nothing.

    python tools/peek.py runs/rooms ar 16 2 1          # ODE steps of a many-step model
    python tools/peek.py runs/rooms cd 2 1             # the few-step plans of a student
    python tools/peek.py runs/rooms cd 2 1 --told      # with the held-out clips' keys

128 clips of a training clip's length, prompts of held-out clips, noise of one seed, guidance 1. For the verdict on a
finished run use `forcing eval`.
"""

import argparse
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from forcing.data.clips import Clips
from forcing.data.order import seeded
from forcing.data.shards import Recording
from forcing.envs import rooms
from forcing.eval.distribution import Features, frechet, motion
from forcing.recipe import Sampling
from forcing.recipes.rooms import PLANS
from forcing.rollout import Plan
from forcing.train.checkpoint import latest
from forcing.world import World

CLIPS, VALID = 128, 0.1


def newest(run: Path, name: str) -> tuple[World, int]:
    """The product so far: weights of the newest checkpoint in the shell of a finished or starting world."""
    path = latest(run / name / "checkpoints")
    if path is None:
        world = World.load(run / name / "world")
        return world, world.recipe.steps
    step = json.loads((path / "state.json").read_text())["step"]
    shell = next(p for p in (run / name / "world", run / "ar" / "world", run / "base" / "world") if p.exists())
    weights = load_file(path / "models.safetensors")
    role = "student_ema/" if any(key.startswith("student_ema/") for key in weights) else "student/"
    world = World.load(shell)
    world.model.load_state_dict({key.removeprefix(role): v for key, v in weights.items() if key.startswith(role)})
    return world, step


def look(run: Path, name: str, steps: list[int], told: bool) -> None:
    world, step = newest(run, name)
    many, frames = name in ("base", "ar", "df"), world.recipe.frames
    episodes = itertools.islice(Recording.open(run / "recording", verify=False).stream("heldout"), 150)
    held = Clips(episodes, world.codec, world.text.prompts, world.keys.width, frames=frames)
    which = torch.randint(len(held), (3 * CLIPS,), generator=seeded(0, "peek")).numpy()
    latents, cond = held.cut(which)
    real = world.codec.decode(latents)
    features = Features.fit(real)
    cond = cond.map(lambda value: value[:CLIPS])
    if not told:
        cond = replace(cond, per_frame={key: torch.zeros_like(value) for key, value in cond.per_frame.items()})
    for n in steps:
        plan = Plan.ode(n, world.recipe.stage.shift) if many else PLANS[n]
        chunk = frames if name == "base" else world.recipe.sampling.chunk
        sampling = Sampling(plan, 1.0, chunk, frames)
        chunks = world.stream(cond.chunks(frames, chunk), CLIPS, seeded(1, 0), sampling=sampling)
        made = world.codec.decode(torch.cat(list(chunks), 1))
        distance = frechet(features.of(made), features.of(real))
        valid = (rooms.classify(made)[1] < VALID).mean()
        sys.stdout.write(
            f"{name} at step {step}, {n} steps: distance {distance:.2f}, motion {motion(made) / motion(real):.2f} "
            f"of real, validity {valid:.3f}\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("steps", type=int, nargs="+")
    parser.add_argument("--told", action="store_true")
    given = parser.parse_args()
    look(given.run, given.name, given.steps, given.told)
