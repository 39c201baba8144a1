"""One recipe, from its starting worlds to its product: resumable at any moment, by running it again."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from forcing.actions.keys import Keys
from forcing.backbone import Backbone
from forcing.codecs.linear import LinearCodec
from forcing.data.clips import Clips, Sampler
from forcing.data.order import seeded
from forcing.data.shards import Recording
from forcing.recipe import Recipe
from forcing.stages.diffusion import Bidirectional
from forcing.text.names import Names
from forcing.train import checkpoint
from forcing.train.gauge import controllability, level
from forcing.train.log import Interrupt, Journal, Meter
from forcing.train.loop import Metrics, fit
from forcing.train.state import State
from forcing.world import World

GAUGE_CLIPS = 64
LIVE_CLIPS = 32  # enough to watch a run by, and every other line of the journal costs it two or three percent
PATCHABLE = 4  # latent grids are padded to a multiple of it, so that patches of 2 and 4 fit


class Interrupted(RuntimeError):
    """The run was asked to stop. Everything up to here is saved; the same command continues."""


@dataclass(frozen=True)
class Material:
    """What a recipe is trained on: training clips, held-out clips for the gauge, and how to speak of them.

    digest: of the recording that the clips are of.
    """

    codec: LinearCodec
    text: Names
    keys: Keys
    train: Clips
    heldout: Clips
    digest: str


def fit_codec(recording: Recording) -> LinearCodec:
    """A codec for the frames of a recording, fitted to every seventh of its training frames."""
    sample = [episode.frames[::7] for episode in recording.stream("train")]
    return LinearCodec.fit(np.concatenate(sample), multiple=PATCHABLE)


def material(recording: Recording, codec: LinearCodec, frames: int) -> Material:
    """Clips of `frames` frames of a recording."""
    prompts, keys = recording.prompts, recording.actions
    cut = {
        split: Clips(recording.stream(split), codec, prompts, len(keys), frames=frames)
        for split in ("train", "heldout")
    }
    digest = hashlib.sha256(json.dumps(recording.manifest, sort_keys=True).encode()).hexdigest()
    return Material(codec, Names(tuple(prompts)), Keys(tuple(keys)), **cut, digest=digest)


def train(recipe: Recipe, folder: Path, starts: Mapping[str, World], data: Material, console: Console) -> World:
    """Train `recipe` in `folder`, from where it stopped. Returns the product, also saved as `folder`/world."""
    state = _begin(recipe, starts)
    origin = dict(state.sources)
    state.sources["recording"] = data.digest
    path = checkpoint.latest(folder / "checkpoints")
    if path is not None:
        checkpoint.load(state, path, recipe)
        console.print(f"{recipe.name}: continuing from step {state.step} of {recipe.steps}", highlight=False)
    journal = Journal(folder / "metrics.jsonl", state.step)
    sampler = Sampler(data.train, recipe.batch, recipe.seed, recipe.withhold)
    with Interrupt() as interrupt, Meter(recipe.name, recipe.steps, state.step, console) as meter:
        after = _after_step(recipe, folder, data, journal, meter, interrupt)
        fit(
            recipe.stage,
            state,
            sampler,
            steps=recipe.steps,
            seed=recipe.seed,
            clip=recipe.clip,
            schedule=recipe.schedule,
            after_step=after,
        )
    if state.step < recipe.steps:
        raise Interrupted(
            f"{interrupt.asked}: {recipe.name} stopped at step {state.step} of {recipe.steps}, all of it saved in "
            f"{folder}; run the same command to continue"
        )
    world = World(state.product().eval().requires_grad_(False), data.codec, data.text, data.keys, recipe, origin)
    world.save(folder / "world")
    return world


def gauge(
    model: Backbone, recipe: Recipe, data: Material, *, clips: int | None = None, sigma: float | None = None
) -> dict[str, float]:
    """The controllability gauge of a model on held-out clips: the same clips and noise at every call.

    sigma: the noise level, by default the one for models of the recipe's stage.
    """
    rng = seeded(recipe.seed, "gauge")
    which = torch.randint(len(data.heldout), (clips or GAUGE_CLIPS,), generator=rng).numpy()
    latents, cond = data.heldout.cut(which)
    chunk = None if isinstance(recipe.stage, Bidirectional) else recipe.sampling.chunk
    return controllability(model, latents, cond, chunk, sigma or level(recipe.stage), rng)


def _begin(recipe: Recipe, starts: Mapping[str, World]) -> State:
    models = {}
    for role, how in recipe.roles.items():
        if how.start is not None:
            model = starts[how.start].recipe.backbone.build()
            model.load_state_dict(starts[how.start].model.state_dict())
        else:
            with torch.random.fork_rng(devices=[]):  # layers initialise themselves from the global generator
                torch.manual_seed(recipe.seed)
                model = recipe.backbone.build()
        models[role] = model
    optims = {role: how.optim for role, how in recipe.roles.items() if how.optim is not None}
    state = State.begin(models, optims, {role: how.ema for role, how in recipe.roles.items() if how.ema is not None})
    state.sources = {how.start: starts[how.start].digest for how in recipe.roles.values() if how.start is not None}
    return state


def _after_step(
    recipe: Recipe, folder: Path, data: Material, journal: Journal, meter: Meter, interrupt: Interrupt
) -> Callable[[State, Metrics], bool]:
    def after(state: State, metrics: Metrics) -> bool:
        done = state.step == recipe.steps
        state.recent |= {name: value.item() for name, value in metrics.items()}
        if state.step % recipe.log == 0 or done:
            values, state.recent = state.recent, {}
            if state.step // recipe.log % 2 or done:  # the first line too: a short run should show where it is going
                seen = gauge(state.product(), recipe, data, clips=LIVE_CLIPS)
                values |= {f"gauge/{name}": value for name, value in seen.items()}
            journal.write(state.step, values)
            meter.show(
                state.step, "  ".join(f"{name} {value:.3g}" for name, value in values.items() if "norm" not in name)
            )
        stop = interrupt.asked is not None  # read once: what is asked from here on waits for the next step
        if state.step % recipe.save == 0 or done or stop:
            checkpoint.save(state, recipe, folder / "checkpoints", recipe.keep)
        return not stop

    return after
