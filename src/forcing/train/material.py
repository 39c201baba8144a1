"""What a recipe is trained on: clips of a recorded world, or encoded video."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from forcing.actions.keys import Keys
from forcing.backbone import Backbone
from forcing.backbones import Network
from forcing.backbones.wan import Wan
from forcing.codecs.linear import LinearCodec
from forcing.data import Source
from forcing.data.clips import Clips, Sampler
from forcing.data.latents import LatentSampler, LatentSet
from forcing.data.order import seeded
from forcing.data.shards import Recording
from forcing.kit import SmallKit, WanKit
from forcing.recipe import Recipe
from forcing.stages.diffusion import Bidirectional
from forcing.stages.dmd import DMD
from forcing.text.names import Names
from forcing.train.gauge import controllability, error, level
from forcing.world import World

GAUGE_CLIPS = 64
LIVE_CLIPS = 32  # enough to watch a run by, and every other line of the journal costs it two or three percent
DATA = "data"  # beside the worlds that a product started from: what it was trained on
ENCODED_CLIPS = 4  # these are large
PATCHABLE = 4  # latent grids are padded to a multiple of it, so that patches of 2 and 4 fit


@runtime_checkable
class Material(Protocol):
    """`digest`: identifies what is trained on. `source`: its batches, as a recipe asks for them."""

    @property
    def digest(self) -> str: ...

    def source(self, recipe: Recipe) -> Source: ...

    def watch(self, model: Network, recipe: Recipe) -> Mapping[str, float]:
        """What the journal shows of a model while it is trained, on clips kept from training."""
        ...

    def world(self, model: Network, recipe: Recipe, starts: Mapping[str, str]) -> World:
        """The product."""
        ...


@dataclass(frozen=True)
class Recorded:
    """Clips of a recording, for training and held out. digest: of the recording."""

    codec: LinearCodec
    text: Names
    keys: Keys
    train: Clips
    heldout: Clips
    digest: str

    @property
    def kit(self) -> SmallKit:
        return SmallKit(self.codec, self.text, self.keys)

    def source(self, recipe: Recipe) -> Source:
        return Sampler(self.train, recipe.batch, recipe.seed, recipe.withhold)

    def watch(self, model: Network, recipe: Recipe) -> Mapping[str, float]:
        return gauge(model, recipe, self, clips=LIVE_CLIPS)

    def world(self, model: Network, recipe: Recipe, starts: Mapping[str, str]) -> World:
        return World(model, self.kit, recipe, starts)


@dataclass(frozen=True)
class Encoded:
    """Latents of videos with the embeddings of their captions. pipeline: the folder of their codec and text encoder."""

    latents: LatentSet
    pipeline: Path

    @property
    def digest(self) -> str:
        return self.latents.digest

    def source(self, recipe: Recipe) -> Source:
        if not self.latents.has_latents and not isinstance(recipe.stage, DMD):
            raise ValueError(
                f"{self.latents.path} holds prompts and no videos: only DMD trains on those, not "
                f"{type(recipe.stage).__name__}"
            )
        if recipe.frames != self.latents.shape[0]:
            raise ValueError(
                f"recipe {recipe.name} has clips of {recipe.frames} latent frames, {self.latents.path} of "
                f"{self.latents.shape[0]}"
            )
        return LatentSampler(self.latents, recipe.batch, recipe.seed)

    def watch(self, model: Network, recipe: Recipe) -> Mapping[str, float]:
        """The error of the predicted clean frames; nothing for a set of prompts alone."""
        if not self.latents.has_latents:
            return {}
        where, batch = next(model.parameters()).device, self.latents.fixed(ENCODED_CLIPS)
        rng, found = seeded(recipe.seed, "gauge", device=str(where)), []
        for clip in range(len(batch.latents)):  # a run whose batch is in pieces has no memory for more at once
            one = batch.map(lambda value, i=clip: value[i : i + 1].to(where))
            with torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                found.append(error(model, one.latents, one.cond, _chunk(recipe), level(recipe.stage), rng))
        return {"error": sum(found) / len(found)}

    def world(self, model: Network, recipe: Recipe, starts: Mapping[str, str]) -> World:
        if not isinstance(model, Wan):
            raise TypeError(f"encoded video is for Wan, not for {type(model).__name__}")
        kit = WanKit(self.pipeline, self.latents.size, model.config.text_len)
        return World(model, kit, recipe, {**starts, DATA: self.digest})


def fit_codec(recording: Recording) -> LinearCodec:
    """A codec for the frames of a recording, fitted to every seventh of its training frames."""
    sample = [episode.frames[::7] for episode in recording.stream("train")]
    return LinearCodec.fit(np.concatenate(sample), multiple=PATCHABLE)


def recorded(recording: Recording, codec: LinearCodec, frames: int) -> Recorded:
    """Clips of `frames` frames of a recording."""
    prompts, keys = recording.prompts, recording.actions
    cut = {
        split: Clips(recording.stream(split), codec, prompts, len(keys), frames=frames)
        for split in ("train", "heldout")
    }
    digest = hashlib.sha256(json.dumps(recording.manifest, sort_keys=True).encode()).hexdigest()
    return Recorded(codec, Names(tuple(prompts)), Keys(tuple(keys)), **cut, digest=digest)


def gauge(
    model: Backbone, recipe: Recipe, data: Recorded, *, clips: int | None = None, sigma: float | None = None
) -> dict[str, float]:
    """The controllability gauge of a model on held-out clips: the same clips and noise at every call.

    sigma: the noise level, by default the one for models of the recipe's stage.
    """
    rng = seeded(recipe.seed, "gauge")
    which = torch.randint(len(data.heldout), (clips or GAUGE_CLIPS,), generator=rng).numpy()
    latents, cond = data.heldout.cut(which)
    return controllability(model, latents, cond, _chunk(recipe), sigma or level(recipe.stage), rng)


def _chunk(recipe: Recipe) -> int | None:
    return None if isinstance(recipe.stage, Bidirectional) else recipe.sampling.chunk
