"""A complete Wan pipeline and a few videos, tiny and random: every command can be tried with them, without a download.

Nothing that it generates looks like anything; sizes apart, all is as in the released models.
"""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import nn

from forcing import files, media
from forcing.backbones.wan import WanConfig
from forcing.convert import save_wan
from forcing.text.umt5 import NEGATIVE, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WIDTH, LENGTH = 32, 512  # of an embedding, and the tokens of a prompt
SIZE, FRAMES, FPS = (64, 96), 25, 16.0  # of a clip: (height, width) in pixels
MOST_SEED = 2**63 - 1

_PARTS = {
    "scheduler": ("diffusers", "UniPCMultistepScheduler"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLWan"),
}
_SPECIAL = ("<pad>", "</s>", "<unk>")  # in the order of UMT5's ids
_RADIUS = 10  # of what moves, in pixels
_SHAPES = ("ball", "square")
_COLOURS = {"red": (225, 40, 35), "yellow": (240, 215, 50), "white": (245, 245, 245), "purple": (150, 50, 170)}
_GROUNDS = {"blue": (60, 110, 220), "green": (50, 150, 70), "grey": (120, 120, 120)}
_WAYS = {"to the right": (0, 1), "to the left": (0, -1), "up": (-1, 0), "down": (1, 0)}  # (down, right)

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class Scene:
    """What moves in a clip, and where to."""

    colour: str
    shape: str
    way: str
    ground: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} moves {self.way} over {self.ground}"


SCENES = tuple(Scene(*each) for each in product(_COLOURS, _SHAPES, _WAYS, _GROUNDS))


def fixture(folder: Path, *, seed: int = 0) -> Path:
    """A diffusers WanPipeline as the folder `folder`, of random weights, under 1.5 MB: the same for the same `seed`.

    The VAE has the released one's strides, channels and statistics; text embeddings are [512, WIDTH]. ValueError where
    `folder` holds something already, or where diffusers or transformers are missing.
    """
    _check_seed(seed)
    with new(folder) as draft:
        try:
            with quiet():
                _save(draft, torch.Generator().manual_seed(seed))
        except ModuleNotFoundError as missing:
            needs = 'pip install "forcing[wan]"'
            raise ValueError(f"a Wan pipeline needs the packages diffusers and transformers: {needs}") from missing
    return folder


def videos(folder: Path, *, count: int = 6, seed: int = 0) -> Path:
    """The folder `folder` with `count` MP4 clips of something that moves, and captions.csv (columns file, caption).

    Clips are FRAMES frames of SIZE. Also prompts.txt, a prompt a line, and start.png, a first frame for the first of
    them. ValueError where `folder` holds something already, or where the package av is missing.
    """
    _check_seed(seed)
    if not 1 <= count <= len(SCENES):
        raise ValueError(f"count is {count}: there are from 1 to {len(SCENES)} different clips")
    rng = np.random.default_rng(seed)
    order = [SCENES[i] for i in rng.permutation(len(SCENES))]
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("file", "caption"))
    with new(folder) as draft:
        for i, scene in enumerate(order[:count]):
            media.save(draft / f"{i}.mp4", _film(scene, rng), fps=FPS)
            rows.writerow((f"{i}.mp4", scene.caption))
        files.write(draft / "captions.csv", table.getvalue())
        files.write(draft / "prompts.txt", "".join(f"{scene.caption}\n" for scene in order[-3:]))
        files.write(draft / "start.png", media.png(_film(order[-3], rng)[0]))
    return folder


@contextmanager
def new(folder: Path) -> Iterator[Path]:
    """Where to write what is to be the folder `folder`, whole or not at all; ValueError where something is in it."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and is not replaced: give the name of a new folder")
    with files.whole(folder) as draft:
        draft.mkdir()
        yield draft


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed is {seed}: it must be from 0 to {MOST_SEED}")


def _save(folder: Path, rng: torch.Generator) -> None:
    import diffusers
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    text = UMT5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    _drawn(lambda: UMT5EncoderModel(text), rng).save_pretrained(folder / "text_encoder")
    _drawn(lambda: AutoencoderKLWan(base_dim=3), rng).save_pretrained(folder / "vae")
    wan = WanConfig(dim=48, ffn_dim=96, freq_dim=32, text_dim=WIDTH, text_len=LENGTH, num_heads=2, num_layers=2)
    save_wan(_drawn(wan.build, rng), folder / "transformer", to="diffusers")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "WanPipeline", "_diffusers_version": diffusers.__version__, **_PARTS}
    files.write_json(folder / "model_index.json", index)


@torch.no_grad()
def _drawn(build: Callable[[], _Model], rng: torch.Generator) -> _Model:
    """A network whose every parameter comes from `rng`, scaled so that what it puts out is of order 1."""
    with torch.random.fork_rng(devices=[]):  # building one draws from the global stream, and what it draws is not kept
        model = build().eval()
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=rng)
        if name.endswith("bias"):
            parameter.copy_(0.1 * drawn)
        elif "norm" in name:
            parameter.copy_(1 + 0.1 * drawn)
        else:
            parameter.copy_(drawn / prod(parameter.shape[1:]) ** 0.5)
    return model


def _tokenizer() -> "PreTrainedTokenizerFast":
    """A unigram model as UMT5's: words of the captions, and every character of theirs, of ASCII and of NEGATIVE."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({f"▁{word}" for scene in SCENES for word in scene.caption.split()})
    characters = sorted({*map(chr, range(ord("!"), ord("~") + 1)), *NEGATIVE, "▁"})
    pieces = [*((each, 0.0) for each in _SPECIAL), *((each, -4.0) for each in words)]
    pieces += [(each, -8.0) for each in characters]
    model = Tokenizer(models.Unigram(pieces, unk_id=_SPECIAL.index("<unk>"), byte_fallback=False))
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    model.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", _SPECIAL.index("</s>"))])
    pad, eos, unk = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token=pad, eos_token=eos, unk_token=unk, model_max_length=LENGTH
    )


def _film(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """uint8 [FRAMES, *SIZE, 3]: from one side to the other, on a straight line, over a gradient."""
    way, size = np.array(_WAYS[scene.way]), np.array(SIZE)
    low, high = np.full(2, _RADIUS), size - 1 - _RADIUS
    aside = rng.integers(low, high + 1)
    first, last = (np.where(way == 0, aside, np.where(way * side > 0, high, low)) for side in (-1, 1))
    centre = first + np.linspace(0, 1, FRAMES)[:, None] * (last - first)
    apart = np.moveaxis(np.indices(SIZE), 0, -1) - centre[:, None, None]
    far = np.linalg.norm(apart, axis=-1) if scene.shape == "ball" else np.abs(apart).max(-1)
    ground = np.linspace(0.5, 1, SIZE[0])[:, None, None] * _GROUNDS[scene.ground] * np.ones((1, SIZE[1], 1))
    return np.where((far <= _RADIUS)[..., None], _COLOURS[scene.colour], ground).round().astype(np.uint8)
