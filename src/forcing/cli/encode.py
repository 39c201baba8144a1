"""`forcing encode`: videos with captions, prompts, or a published LMDB into latents to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from forcing.backbones.wan import WanConfig
from forcing.cli.bar import Bar
from forcing.cli.models import check_place, warn_of_cut
from forcing.cli.options import check_size, read, shown, size
from forcing.codecs.wan_vae import WanVAE
from forcing.data import lmdb
from forcing.data.encode import Models, Summary, encode
from forcing.data.latents import MANIFEST, LatentSet
from forcing.data.parts import PROBLEMS
from forcing.data.videos import Cut
from forcing.text.umt5 import UMT5
from forcing.train.compute import place

TOLD = 10  # problems shown


@dataclass(frozen=True)
class Options:
    """Encode videos and captions once, so that training needs neither the videos nor the encoders.

    The source is a folder of videos with captions.csv (columns file and caption), a JSONL file with these keys, or a
    .txt beside each video; or a .txt with a prompt in each line, for DMD, which needs no videos; or the folder of an
    LMDB of latents, or of its shards, as Self-Forcing and Causal Forcing publish them. Run the same command again to
    go on.
    """

    source: tyro.conf.Positional[Path]
    model: Path  # folder of a Wan pipeline, with its vae, text_encoder and tokenizer
    out: Path  # folder of the latents
    size: str = "832x480"  # width x height in pixels
    frames: int = 81  # of a clip: 1 + 4 n
    fps: float = 16.0  # frames a second of a clip; the frames nearest in time are taken
    fit: Literal["crop", "pad"] = "crop"  # another aspect: keep the middle, or add black
    stride: Annotated[int | None, shown("FRAMES")] = None  # from one clip's start to the next; default: --frames
    clips: Annotated[int | None, shown("N")] = None  # most clips of one video
    captions: Annotated[Path | None, shown("FILE")] = None  # CSV or JSONL, instead of the one in the source
    holdout: float = 0.02  # share of the videos, or of the prompts, kept for evaluation
    workers: Annotated[int | None, shown("N")] = None  # processes; default one for each GPU. On a CPU each has one core
    device: str = "auto"  # cpu, cuda (all there are) or cuda:N
    replace: bool = False  # what is in --out and was made with other options, or of other videos
    lmdb: Annotated[Path | None, shown("DIR")] = None  # also write the training clips as an LMDB like the published


def run(args: Sequence[str], console: Console) -> int:
    """Encode what is not encoded yet; 1 if nothing could be."""
    options = read(Options, args, "encode")
    devices = _devices(options.device, options.workers)
    cut = Cut(size(options.size), options.frames, options.fps, options.fit, options.stride, options.clips)
    if options.lmdb is not None:
        if options.source.suffix.lower() == ".txt":
            raise ValueError(f"{options.source} holds prompts alone: there are no latents to write to {options.lmdb}")
        lmdb.check(options.lmdb)
    check_place(options.model)
    if (options.model / "transformer").is_dir():  # the one that is to be trained; patches are alike in all releases
        check_size(cut.size, _codec(options.model, "cpu").stride, WanConfig().patch)
    # (pyright does not take a cached_property for a property)
    text = UMT5(options.model, device=devices[0])
    models = Models(partial(_codec, options.model), text, devices)  # pyright: ignore[reportArgumentType]
    with Bar(f"encoding {options.source.name}", "done", console) as bar:
        summary = encode(
            options.source,
            options.out,
            cut,
            models,
            table=options.captions,
            holdout=options.holdout,
            replace=options.replace,
            progress=bar.show,
        )
    warn_of_cut(text.cut, text.length)
    _tell(summary, options.out, console)
    if not summary.clips:
        left = f"; {options.out} is as it was" if (options.out / MANIFEST).exists() else ""
        console.print(f"nothing in {options.source} could be encoded{left}")
        return 1
    made = LatentSet.open(options.out, verify=False)
    console.print(describe(made))
    if options.lmdb is not None:
        lmdb.write(options.lmdb, made.clips("train"))
        console.print(f"{options.lmdb}: the same as an LMDB, without what is held out")
    return 0


def describe(made: LatentSet) -> str:
    """What was encoded, and where, in a few words."""
    height, width = made.size
    frames, channels, high, wide = made.shape
    weight = sum(row["bytes"] for row in (*made.manifest["shards"], *made.manifest["texts"])) / 1e6
    what = f"clips of {made.manifest['frames']} frames, {width}x{height}" if made.has_latents else "prompts for clips"
    return (
        f"{made.path}: {len(made)} {what} at {made.manifest['fps']:g} fps ({len(made.split('heldout'))} held out, "
        f"{weight:.1f} MB), latents {frames}x{channels}x{high}x{wide}, {len(made.manifest['captions'])} captions"
    )


def _tell(summary: Summary, out: Path, console: Console) -> None:
    kept = summary.clips or not (out / MANIFEST).exists()  # else it still tells of the set that is there
    told = summary.problems[: TOLD if kept else None]
    for file, reason in told:
        console.print(f"skipped {file}: {reason}")
    if len(summary.problems) > len(told):
        console.print(f"and {len(summary.problems) - len(told)} more: see {out / PROBLEMS}")


def _codec(folder: Path, device: str) -> WanVAE:
    return WanVAE.load(folder, device=device)


def _devices(name: str, workers: int | None) -> tuple[str, ...]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    there = gpus if gpus and name in ("auto", "cuda") else [place(name)]
    count = len(there) if workers is None else workers
    if count < 1:
        raise ValueError(f"workers is {count}: it must be at least 1")
    return tuple(there[index % len(there)] for index in range(count))
