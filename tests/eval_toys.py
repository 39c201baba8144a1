"""A tiny measure, and worlds with random weights: what the evaluation's tests play with."""

from dataclasses import replace

import numpy as np
from toys import shaken

from forcing.actions.keys import Keys
from forcing.backbones.tiny import TinyConfig
from forcing.codecs.linear import LinearCodec
from forcing.data.shards import Recording
from forcing.eval.measure import Measure
from forcing.kit import SmallKit
from forcing.recipes.rooms import recipes
from forcing.text.names import Names
from forcing.world import World

TINY = Measure(
    "tiny",
    ahead=3,
    told=3,
    starts=3,
    nothing=6,
    train=12,
    frames=16,
    bucket=8,
    many=3,
    few=(2, 1),
    seeds=(0, 1),
    keep=8,
    timed=1,
)


def small_world(recording: Recording, name: str, chunk: int = 1) -> World:
    """A world of what was recorded, with random weights."""
    frames = np.concatenate([episode.frames[::5] for episode in recording.load("train")])
    codec = LinearCodec.fit(frames, multiple=4)
    recipe = recipes(chunk=chunk)[name]
    sizes = {"patch": 4, "dim": 16, "heads": 2, "layers": 1, "text_dim": len(recording.prompts)}
    recipe = replace(recipe, backbone=TinyConfig(codec.config.latents, action_dim=len(recording.actions), **sizes))
    model = shaken(recipe.backbone.build(), len(name)).eval().requires_grad_(False)
    return World(model, SmallKit(codec, Names(tuple(recording.prompts)), Keys(tuple(recording.actions))), recipe)
