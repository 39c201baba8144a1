"""What turns pixels, prompts and keys into tensors and back: everything of a world but its network."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from forcing.actions.keys import Keys
from forcing.codecs.linear import LinearCodec
from forcing.codecs.wan_vae import WanVAE
from forcing.text.names import Names
from forcing.text.umt5 import NEGATIVE, UMT5

CODEC = "codec.safetensors"


@dataclass(frozen=True)
class SmallKit:
    """A linear tile codec, prompts that are names, and keys: small enough to be kept with each world."""

    codec: LinearCodec
    text: Names
    keys: Keys

    @property
    def frame(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.codec.config.frame

    def document(self) -> dict[str, Any]:
        """What world.json says of it."""
        return {"prompts": list(self.text.prompts), "keys": list(self.keys.names)}

    def save(self, folder: Path) -> None:
        """Write its own files."""
        self.codec.save(folder / CODEC)

    @staticmethod
    def load(document: Mapping[str, Any], folder: Path) -> "SmallKit":
        codec = LinearCodec.load(folder / CODEC)
        return SmallKit(codec, Names(tuple(document["prompts"])), Keys(tuple(document["keys"])))


@dataclass(frozen=True)
class WanKit:
    """Wan's VAE and text encoder, in a pipeline's folder that many worlds share; loaded when first asked for.

    pipeline: a folder in diffusers' layout, with vae, text_encoder and tokenizer. frame: (height, width) in pixels that
    the world was made for. text_len: embeddings that the network
    takes. dtype: of the text encoder. negative: what guidance is led away from.
    """

    pipeline: Path
    frame: tuple[int, int]
    text_len: int = 512
    device: str = "cpu"
    dtype: torch.dtype | None = None
    negative: str = NEGATIVE

    @property
    def keys(self) -> Keys:
        return Keys(())

    @property
    def codec(self) -> WanVAE:
        return self._codec

    @property
    def text(self) -> UMT5:
        return self._text

    @cached_property
    def _codec(self) -> WanVAE:
        return WanVAE.load(self.pipeline, device=self.device)  # as stored: half precision shows in pictures

    @cached_property
    def _text(self) -> UMT5:
        return UMT5(self.pipeline, negative=self.negative, length=self.text_len, device=self.device, dtype=self.dtype)

    def document(self) -> dict[str, Any]:
        return {"pipeline": str(self.pipeline.resolve()), "frame": list(self.frame)}

    def save(self, folder: Path) -> None:
        """Nothing: it stays where it is."""
        del folder


Kit = SmallKit | WanKit
