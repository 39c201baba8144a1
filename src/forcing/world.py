"""A world: a model with its codec, prompts and keys, as one folder on disk."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from forcing import files
from forcing.actions.keys import Keys
from forcing.backbone import Backbone
from forcing.backbones import Network
from forcing.codecs.linear import LinearCodec
from forcing.cond import Cond
from forcing.guidance import Guided
from forcing.recipe import Recipe, Sampling, dump, parse
from forcing.rollout import remember, rollout
from forcing.shapes import Latents
from forcing.text.names import Names

FORMAT = 1
FILES = ("world.json", "model.safetensors", "codec.safetensors")


@dataclass
class World:
    """`recipe`: what made the model, with how it is sampled. `causal`: it generates chunk by chunk."""

    model: Network
    codec: LinearCodec
    text: Names
    keys: Keys
    recipe: Recipe
    starts: Mapping[str, str] = field(default_factory=dict)  # recipe name -> digest of the world it started from

    @property
    def digest(self) -> str:
        """Identifies the weights, whatever precision they were stored in up to half."""
        mark = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            mark.update(name.encode() + value.to(torch.float16).contiguous().numpy().tobytes())
        return mark.hexdigest()

    @property
    def causal(self) -> bool:
        return self.recipe.causal

    def save(self, path: Path, extra: dict[str, Any] | None = None, dtype: torch.dtype | None = None) -> None:
        """Write the folder `path`, whole or not at all. `dtype`: store the weights so (they load as float32)."""
        weights = {name: value.to(dtype or value.dtype).contiguous() for name, value in self.model.state_dict().items()}
        document = {"format": FORMAT, "prompts": list(self.text.prompts), "keys": list(self.keys.names)}
        document |= {
            "recipe": dump(self.recipe),
            **({"starts": dict(self.starts)} if self.starts else {}),
            **(extra or {}),
        }
        with files.whole(path) as draft:
            draft.mkdir()
            save_file(weights, draft / "model.safetensors")
            self.codec.save(draft / "codec.safetensors")
            files.write_json(draft / "world.json", document)
            files.remove(path)

    @staticmethod
    def load(path: Path) -> "World":
        """The world in folder `path`, ready to generate. ValueError names what is missing or damaged."""
        missing = [name for name in FILES if not (path / name).is_file()]
        if missing:
            raise ValueError(
                f"{path} is not a world: {', '.join(missing)} missing (a world folder holds {', '.join(FILES)})"
            )
        try:
            document = json.loads((path / "world.json").read_text())
            version = document.get("format")
        except (ValueError, AttributeError) as damage:
            raise ValueError(f"the world in {path} is damaged: world.json is not readable ({damage})") from damage
        if version != FORMAT:
            raise ValueError(f"{path} has format {version}, this version reads {FORMAT}")
        try:
            return _assembled(document, path)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as damage:
            raise ValueError(f"the world in {path} is damaged ({type(damage).__name__}: {damage})") from damage

    def cond(self, prompts: Sequence[str | None], actions: Sequence[Sequence[str | int]] | None, frames: int) -> Cond:
        """Conditions of `frames` frames for each prompt (None: no prompt).

        actions: of each clip, the action that leads to each frame, -1 where none is told; None tells none at all
        (the free regime).
        """
        text = torch.zeros(len(prompts), len(self.text.prompts))
        for i, prompt in enumerate(prompts):
            if prompt is not None:
                text[i] = self.text.encode([prompt])[0]
        if actions is None:
            return Cond({"text": text}, {"action": torch.zeros(len(prompts), frames, self.keys.width)})
        told = torch.stack([self.keys.encode(list(each)) for each in actions])
        if told.shape[:2] != (len(prompts), frames):
            raise ValueError(f"need one action a frame: {len(prompts)} clips of {frames}, got {tuple(told.shape[:2])}")
        return Cond({"text": text}, {"action": told})

    def stream(
        self,
        conds: Iterable[Cond],
        clips: int,
        rng: torch.Generator,
        *,
        sampling: Sampling | None = None,
        start: tuple[Latents, Cond] | None = None,
    ) -> Iterator[Latents]:
        """Chunks of latents, one for each of `conds` (one chunk's conditions each), as they are made.

        start: clean latents [clips, F, C, h, w] to continue (F a multiple of the chunk), and their conditions.
        """
        how = sampling or self.recipe.sampling
        model: Backbone = Guided(self.model, how.guidance)
        cache = model.cache(clips, window=how.window, sink=how.sink)
        chunks = rollout(model, conds, (clips, how.chunk, *self.codec.config.latents), how.plan, cache, rng)
        with torch.no_grad():  # never around a `yield`: it would leak to the caller between chunks
            if start is not None:
                latents, told = start
                frames = latents.shape[1]
                for piece, at in zip(told.chunks(frames, how.chunk), range(0, frames, how.chunk), strict=True):
                    remember(model, latents[:, at : at + how.chunk], piece, cache)
        while True:
            with torch.no_grad():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk


def _assembled(document: dict[str, Any], path: Path) -> World:
    recipe = parse(Recipe, document["recipe"])
    model = recipe.backbone.build()
    weights = {name: value.float() for name, value in load_file(path / "model.safetensors").items()}
    shapes = ({name: value.shape for name, value in each.items()} for each in (weights, model.state_dict()))
    odd = sorted({name for name, _ in set.symmetric_difference(*(set(each.items()) for each in shapes))})
    if odd:
        named = f"{', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}"
        raise ValueError(f"{len(odd)} weights are missing, too many or of another shape: {named}")
    model.load_state_dict(weights, strict=True)
    codec = LinearCodec.load(path / "codec.safetensors")
    text, keys = Names(tuple(document["prompts"])), Keys(tuple(document["keys"]))
    return World(model.eval().requires_grad_(False), codec, text, keys, recipe, document.get("starts", {}))
