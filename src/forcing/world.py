"""A world: a model with its codec, prompts and keys, as one folder on disk."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from forcing import files
from forcing.actions.keys import Keys
from forcing.backbone import Backbone
from forcing.backbones import Network
from forcing.backbones.wan import WanConfig
from forcing.codecs import Codec
from forcing.cond import Cond
from forcing.convert import load_wan
from forcing.guidance import Guided, once
from forcing.kit import CODEC, Kit, SmallKit, WanKit
from forcing.recipe import Recipe, Sampling, dump, parse
from forcing.rollout import remember, rollout
from forcing.shapes import Latents
from forcing.text import Text

FORMAT = 1
FILES = ("world.json", "model.safetensors", CODEC)  # of a small world; a large one names the folder of its codec


@dataclass
class World:
    """`recipe`: what made the model, with how it is sampled. `causal`: it generates chunk by chunk."""

    model: Network
    kit: Kit
    recipe: Recipe
    starts: Mapping[str, str] = field(default_factory=dict)  # recipe name -> digest of the world it started from

    @property
    def codec(self) -> Codec:
        return self.kit.codec

    @property
    def text(self) -> Text:
        return self.kit.text

    @property
    def keys(self) -> Keys:
        return self.kit.keys

    @property
    def latents(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent frame of the size that the world was made for."""
        return self.codec.size(*self.kit.frame)

    @property
    def digest(self) -> str:
        """Identifies the weights, whatever precision they were stored in up to half."""
        mark = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            mark.update(name.encode() + value.to("cpu", torch.float16).contiguous().numpy().tobytes())
        return mark.hexdigest()

    @property
    def causal(self) -> bool:
        return self.recipe.causal

    def save(self, path: Path, extra: dict[str, Any] | None = None, dtype: torch.dtype | None = None) -> None:
        """Write the folder `path`, whole or not at all. `dtype`: store the weights so (they load as float32)."""
        weights = {name: value.to(dtype or value.dtype).contiguous() for name, value in self.model.state_dict().items()}
        document = {
            "format": FORMAT,
            **self.kit.document(),
            "recipe": dump(self.recipe),
            **({"starts": dict(self.starts)} if self.starts else {}),
            **(extra or {}),
        }
        with files.whole(path) as draft:
            draft.mkdir()
            save_file(weights, draft / "model.safetensors")
            self.kit.save(draft)
            files.write_json(draft / "world.json", document)
            files.remove(path)

    @staticmethod
    def load(path: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> "World":
        """The world in folder `path`, ready to generate. ValueError names what is missing or damaged.

        dtype: of the large networks' weights (default: as stored); small worlds compute in float32.
        """
        try:
            document = json.loads((path / "world.json").read_text()) if (path / "world.json").is_file() else {}
            version, large = document.get("format"), "pipeline" in document
        except (ValueError, AttributeError) as damage:
            raise ValueError(f"the world in {path} is damaged: world.json is not readable ({damage})") from damage
        missing = [name for name in FILES if not (path / name).is_file() and not (large and name == CODEC)]
        if missing:
            raise ValueError(
                f"{path} is not a world: {', '.join(missing)} missing (a world folder holds {', '.join(FILES)})"
            )
        if version != FORMAT:
            raise ValueError(f"{path} has format {version}, this version reads {FORMAT}")
        try:
            return _large(document, path, device, dtype) if large else _small(document, path, device)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as damage:
            raise ValueError(f"the world in {path} is damaged ({type(damage).__name__}: {damage})") from damage

    def cond(self, prompts: Sequence[str | None], actions: Sequence[Sequence[str | int]] | None, frames: int) -> Cond:
        """Conditions of `frames` frames for each prompt (None: no prompt).

        actions: of each clip, the action that leads to each frame, -1 where none is told; None tells none at all
        (the free regime). A world without keys is told none.
        """
        return Cond({"text": self.text.encode(prompts)}, self.pressed(len(prompts), actions, frames))

    def pressed(self, clips: int, actions: Sequence[Sequence[str | int]] | None, frames: int) -> Mapping[str, Tensor]:
        """The conditions of each frame alone, as `cond` has them."""
        if not self.keys.width:
            return {}
        if actions is None:
            return {"action": torch.zeros(clips, frames, self.keys.width)}
        told = torch.stack([self.keys.encode(list(each)) for each in actions])
        if told.shape[:2] != (clips, frames):
            raise ValueError(f"need one action a frame: {clips} clips of {frames}, got {tuple(told.shape[:2])}")
        return {"action": told}

    def uncond(self, cond: Cond) -> Cond:
        """The other side of guidance: no action, and whatever the text encoder says when nothing is asked for."""
        text = cond.static["text"]
        return replace(cond.blank(), static={"text": self.text.null(len(text)).to(text)})

    def stream(
        self,
        conds: Iterable[Cond],
        clips: int,
        rng: torch.Generator,
        *,
        sampling: Sampling | None = None,
        start: tuple[Latents, Cond] | None = None,
        latents: tuple[int, int, int] | None = None,
    ) -> Iterator[Latents]:
        """Chunks of latents, one for each of `conds` (one chunk's conditions each), as they are made.

        start: clean latents [clips, F, C, h, w] to continue, and their conditions. Where F is no multiple of the chunk,
        the first ones, as an image before a chunk-wise clip, are a shorter chunk of their own.
        latents: (channels, height, width), where the codec leaves a choice; default: what the world was made for.
        `rng` is of the device that the model is on; what is yielded is there, too.
        """
        how = sampling or self.recipe.sampling
        model: Backbone = Guided(self.model, how.guidance, once(self.uncond))
        cache = model.cache(clips, window=how.window, sink=how.sink)
        shape = (clips, how.chunk, *(latents or self.latents))
        chunks = rollout(model, _placed(conds, rng.device), shape, how.plan, cache, rng)
        with torch.no_grad():  # never around a `yield`: it would leak to the caller between chunks
            if start is not None:
                clean, told = (start[0].to(rng.device), start[1].map(lambda value: value.to(rng.device)))
                for first, stop in pieces(clean.shape[1], how.chunk):
                    remember(model, clean[:, first:stop], told.frames(first, stop), cache)
        while True:
            with torch.no_grad():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk


def _placed(conds: Iterable[Cond], device: torch.device) -> Iterator[Cond]:
    """Conditions on the device; what stays the same from chunk to chunk is brought there once."""
    last: Cond | None = None
    here: Mapping[str, Tensor] = {}
    for cond in conds:
        if last is None or any(value is not last.static.get(name) for name, value in cond.static.items()):
            here = {name: value.to(device) for name, value in cond.static.items()}
        last = cond
        yield Cond(here, {name: value.to(device) for name, value in cond.per_frame.items()})


def pieces(frames: int, chunk: int) -> list[tuple[int, int]]:
    """Where given frames are cut into chunks (first, stop); the first may be shorter."""
    stops = list(range(frames % chunk or chunk, frames + 1, chunk))
    return list(zip([0, *stops], stops, strict=False))


def _small(document: dict[str, Any], path: Path, device: str) -> World:
    recipe = parse(Recipe, document["recipe"])
    model = recipe.backbone.build()
    weights = {name: value.float() for name, value in load_file(path / "model.safetensors").items()}
    shapes = ({name: value.shape for name, value in each.items()} for each in (weights, model.state_dict()))
    odd = sorted({name for name, _ in set.symmetric_difference(*(set(each.items()) for each in shapes))})
    if odd:
        named = f"{', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}"
        raise ValueError(f"{len(odd)} weights are missing, too many or of another shape: {named}")
    model.load_state_dict(weights, strict=True)
    model = model.to(device).eval().requires_grad_(False)
    return World(model, SmallKit.load(document, path), recipe, document.get("starts", {}))


def _large(document: dict[str, Any], path: Path, device: str, dtype: torch.dtype | None) -> World:
    recipe = parse(Recipe, document["recipe"])
    if not isinstance(recipe.backbone, WanConfig):
        raise TypeError(f"a pipeline belongs to Wan, not to {type(recipe.backbone).__name__}")
    model = load_wan(path / "model.safetensors", recipe.backbone, device=device, dtype=dtype)
    height, width = document["frame"]
    kit = WanKit(Path(document["pipeline"]), (height, width), recipe.backbone.text_len, device, dtype)
    return World(model, kit, recipe, document.get("starts", {}))
