"""`forcing generate --model ...`: clips of Wan, decoded and written while they are made."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from forcing import files, media
from forcing.cli import shot
from forcing.cli.bar import Bar
from forcing.cli.models import DTYPES, kit_of, opened, warn_of_cut, weights_of
from forcing.cli.options import read, shown, size
from forcing.cli.shot import Shot
from forcing.codecs import Codec
from forcing.codecs.taehv import TAEHV
from forcing.recipe import Sampling
from forcing.recipes import wan
from forcing.rollout import Plan
from forcing.text.umt5 import NEGATIVE
from forcing.train.compute import place
from forcing.world import World

_PLACES = ("model", "pipeline", "live")
_SOURCES = (*_PLACES, "recipe", "weights", "dtype")  # what says which networks made a clip
FRAMES = 81
CONTEXT = 33  # pictures of a video that are gone on from, if it has so many
MOST_STEPS = 1000

Append = tyro.conf.UseAppendAction


@dataclass(frozen=True)
class Options:
    """Generate clips with Wan and, beside each, a JSON file from which --from makes it again.

    Several --prompt make several clips. --image and --video are where they go on from; --at 3s "..." changes the prompt
    on the way. --model is a pipeline's folder, a world that forcing train made, a transformer's folder, or a file of
    weights (.safetensors or .pt).
    """

    model: Annotated[Path | None, shown("PATH")] = None  # the network
    prompt: Append[Annotated[tuple[str, ...], shown("PROMPT")]] = ()
    at: Append[Annotated[tuple[tuple[str, str], ...], shown("WHEN PROMPT")]] = ()  # picture, or seconds such as 3s
    negative: Annotated[str | None, shown("PROMPT")] = None  # what guidance is led away from; default: Wan's own
    image: Annotated[Path | None, shown("FILE")] = None  # the first picture
    video: Annotated[Path | None, shown("FILE")] = None  # or the clip whose end is gone on from
    context: int = CONTEXT  # pictures of it that are, at most
    fit: Literal["crop", "pad"] = "crop"  # how image or video is brought to the size, its proportions kept
    size: Annotated[str | None, shown("WIDTHxHEIGHT")] = None  # default: what the model was made for
    frames: Annotated[int | None, shown("N")] = None  # pictures, those of the start included; default 81
    seconds: Annotated[float | None, shown("N")] = None  # or how long
    fps: float = wan.FPS  # pictures a second
    steps: Annotated[int | None, shown("N")] = None  # for each chunk; students are made for 1, 2 or 4
    chunk: Annotated[int | None, shown("N")] = None  # latent frames generated together
    guidance: Annotated[float | None, shown("N")] = None  # 1 is none
    solver: Annotated[Literal["euler", "unipc"] | None, shown("euler|unipc")] = None  # of many-step models
    window: Annotated[int | None, shown("N")] = None  # latent frames that are looked back at, the chunk included
    sink: Annotated[int | None, shown("N")] = None  # of these, first ones that are never forgotten
    seed: int = 0  # of the noise
    out: Annotated[Path | None, shown("FILE")] = None  # .mp4, .gif or .png (a sheet); default: a new name in clips/
    pipeline: Annotated[Path | None, shown("DIR")] = None  # VAE and text encoder, if --model is without
    recipe: Annotated[str | None, shown("NAME")] = None  # what made the weights, if they do not say: wan, wan-ar, ...
    weights: Annotated[str | None, shown("NAME")] = None  # which network of a .pt file, such as generator_ema
    live: Annotated[Path | None, shown("FILE")] = None  # weights of a tiny decoder (TAEHV), in place of the VAE's
    device: str = "auto"  # cpu, cuda or cuda:N
    dtype: Annotated[str | None, shown("NAME")] = None  # of weights; default: as stored, on a GPU bfloat16
    again: Annotated[Path | None, shown("FILE.json", name="from")] = None  # make the clip of this JSON file again


_ANEW = ("again", "model", "pipeline", "out", "device")  # what may be said with --from


def asked(args: Sequence[str]) -> bool:
    """Whether the arguments of `forcing generate` are about Wan."""
    if any(arg.partition("=")[0] == "--model" for arg in args):
        return True
    given = [arg for flag, arg in itertools.pairwise(args) if flag == "--from"]
    given += [arg.partition("=")[2] for arg in args if arg.startswith("--from=")]
    return any(shot.is_one(Path(path)) for path in given)


def alone(args: Sequence[str], others: Collection[str]) -> list[str]:
    """Of the arguments, options that there are here and not among the others' fields."""
    ours = {f.name for f in fields(Options)}.difference(others)
    flags = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
    return [flag for flag in flags if flag[2:].replace("-", "_") in ours]


def run(args: Sequence[str], console: Console) -> int:
    """Generate, and say where the clips are."""
    options, before = read(Options, args, "generate"), None
    if options.again is not None:
        options, before = _again(options, options.again)
    if options.model is None:
        raise ValueError("which model? --model PATH: a pipeline's folder, a trained world, or a file of weights")
    world, decoder = _world(options, options.model)
    marks = _marks(options, options.model, world)
    if before is not None:
        _check_marks(marks, before)
    shots = _shots(options, world) if before is None else [before.shot]
    for each in shots:
        each.check(world)
    source = {name: value for name in _SOURCES if (value := getattr(options, name)) is not None}
    source |= {"model": options.model.resolve(), "pipeline": kit_of(world).pipeline.resolve(), **marks}
    _heard(shots, world)
    with _paths(options, shots, ".mp4" if before is None else Path(before.file).suffix) as paths:
        for path in paths:
            media.check(path, fps=shots[0].fps, scale=1)
            files.probe(path)
        for each, path in zip(shots, paths, strict=True):
            _make(each, world, decoder, path, console)
            shot.write(shot.beside(path), each, world, source, path.name)
            console.print(f"wrote {path}; the same again: forcing generate --from {shot.beside(path)}")
    return 0


def _heard(shots: Sequence[Shot], world: World) -> None:
    """Have every prompt encoded before the clock starts, and the text encoder gone from memory."""
    for each in shots:
        world.text.encode([each.prompt, *(prompt for _, prompt in each.switches)])
        if each.sampling.guidance != 1:
            world.text.null(1)
    text = kit_of(world).text
    warn_of_cut(text.cut, text.length)
    text.release()


def _marks(options: Options, model: Path, world: World) -> dict[str, str]:
    """What identifies the networks that make a clip."""
    kit = kit_of(world)
    marks = {"transformer": files.mark(weights_of(model)), "VAE": kit.codec.digest, "text encoder": kit.text.digest}
    return marks if options.live is None else marks | {"decoder": files.mark([options.live])}


def _check_marks(marks: Mapping[str, str], before: shot.Sidecar) -> None:
    other = [name for name, mark in marks.items() if before.source.get(name) != mark]
    if other:
        raise ValueError(
            f"{before.path} was made with other networks ({', '.join(other)} differ): say by --model and --pipeline "
            "where those are"
        )


def _world(options: Options, model: Path) -> tuple[World, Codec | TAEHV]:
    device = place(options.device)
    if options.dtype is not None and options.dtype not in DTYPES:
        raise ValueError(f"dtype is {options.dtype!r}: choose from {', '.join(DTYPES)}")
    on_gpu = torch.bfloat16 if device != "cpu" else None  # float32 has no fast kernels there
    dtype = DTYPES[options.dtype] if options.dtype else on_gpu
    world = opened(
        model,
        pipeline=options.pipeline,
        recipe=options.recipe,
        device=device,
        dtype=dtype,
        weights=options.weights,
    )
    if options.negative is not None:
        world.kit = replace(kit_of(world), negative=options.negative)
    return world, world.codec if options.live is None else TAEHV.load(options.live, device=device, dtype=dtype)


def _shots(options: Options, world: World) -> list[Shot]:
    if not options.prompt:
        raise ValueError('what should be seen? --prompt "..." (once for each clip; --prompt "" for no prompt)')
    if options.image is not None and options.video is not None:
        raise ValueError("--image and --video exclude each other: a clip goes on from one of them")
    frame = world.kit.frame if options.size is None else size(options.size)
    frames, start = _frames(options), None
    if options.image is not None:
        start = shot.image(options.image, options.fit)
    if options.video is not None:
        start = shot.video(options.video, options.fit, options.fps, options.context, world.codec.stride[0])
    one = Shot(
        options.prompt[0],
        frames,
        options.fps,
        frame,
        options.seed,
        _sampling(options, world, shot.count_latents(world.codec, frames)),
        NEGATIVE if options.negative is None else options.negative,
        switches=tuple((_moment(when, options.fps), prompt) for when, prompt in options.at),
        start=start,
    )
    return [replace(one, prompt=prompt) for prompt in options.prompt]


def _frames(options: Options) -> int:
    if options.frames is not None and options.seconds is not None:
        raise ValueError("--frames and --seconds exclude each other: both say how long")
    if not 0 < options.fps <= 240:
        raise ValueError(f"fps is {options.fps}: it must be above 0 and at most 240")
    if options.seconds is None:
        return FRAMES if options.frames is None else options.frames
    if not 0 < options.seconds < shot.MOST_FRAMES / options.fps:
        raise ValueError(f"seconds is {options.seconds}: it must be above 0 and below {shot.MOST_FRAMES / options.fps}")
    return max(1, round(options.seconds * options.fps))


def _moment(when: str, fps: float) -> int:
    """A picture's number from "48" or "3s"."""
    found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)s", when.strip())
    if not found:
        raise ValueError(f"--at {when!r}: say a picture's number, such as 48, or seconds, such as 3s or 1.5s")
    return int(found[1]) if found[1] else round(float(found[2]) * fps)


def _sampling(options: Options, world: World, latents: int) -> Sampling:
    own = world.recipe.sampling
    most = max(latents, world.recipe.frames)
    if options.chunk is not None and not 1 <= options.chunk <= most:
        raise ValueError(f"chunk is {options.chunk}: it must be from 1 to {most} latent frames")
    chunk = latents if not world.causal else own.chunk if options.chunk is None else options.chunk
    odd = [name for name in ("chunk", "window", "sink") if getattr(options, name) is not None]
    if not world.causal and odd:
        raise ValueError(
            f"{world.recipe.name} is bidirectional and makes its clip at once: --{odd[0]} is for causal models"
        )
    sink = own.sink if options.sink is None else options.sink
    window = max(
        own.window if options.window is None else options.window, chunk + sink if options.window is None else 0
    )
    guidance = own.guidance if options.guidance is None else options.guidance
    return Sampling(_plan(options, own.plan), guidance, chunk, latents if not world.causal else window, sink)


def _plan(options: Options, own: Plan) -> Plan:
    steps = options.steps
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps is {steps}: it must be a whole number from 1 to {MOST_STEPS}")
    if own.fresh:
        if options.solver is not None:
            raise ValueError("--solver is for models of many steps; a few-step student renoises between its levels")
        return own if steps is None else wan.PLANS.get(steps) or Plan(wan.levels(steps))
    return Plan.ode(steps or len(own.rest), wan.SHIFT, options.solver or own.solver)


@contextmanager
def _paths(options: Options, shots: Sequence[Shot], suffix: str) -> Iterator[list[Path]]:
    """Where the clips go. A name of our choice is taken at once, by its JSON file: others may be choosing, too."""
    if options.out is not None:
        one = options.out
        yield [one] if len(shots) == 1 else [one.with_stem(f"{one.stem}-{n}") for n in range(1, len(shots) + 1)]
        return
    paths: list[Path] = []
    try:
        for each in shots:
            words = re.sub(r"[^\w]+", "-", each.prompt.lower()).strip("-")[:60].rstrip("-") or "no-prompt"
            stems = (f"{words}-{each.seed}{f'-take{n}' if n > 1 else ''}{suffix}" for n in itertools.count(1))
            paths.append(next(path for path in map(Path("clips").joinpath, stems) if _taken(path)))
        yield paths
    finally:
        for path in paths:
            if shot.beside(path).stat().st_size == 0:  # not made after all
                shot.beside(path).unlink()


def _taken(path: Path) -> bool:
    """Whether this name was free, and now is ours."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        shot.beside(path).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _make(wanted: Shot, world: World, decoder: Codec | TAEHV, path: Path, console: Console) -> None:
    start = None if wanted.start is None else wanted.start.pictures(wanted.fps, wanted.size)
    given = 0 if start is None else len(start)
    began, first, done = time.monotonic(), 0.0, 0
    with Bar("generating", "frames", console) as bar, media.writer(path, fps=wanted.fps) as out:
        for pictures in wanted.stream(world, start, decoder.decoder()):
            out.add(pictures)
            done += len(pictures)
            now = time.monotonic() - began
            if done > given:  # what a clip begins with is not generated
                first = first or now
            bar.show(done, wanted.frames, f"{done / now:.1f} frames/s, the first after {first:.1f} s")
    took = time.monotonic() - began
    console.print(
        f"{world.recipe.name}: {done} frames of {wanted.size[1]}x{wanted.size[0]} in {took:.1f} s "
        f"({done / took:.1f} frames/s, the first after {1000 * first:.0f} ms)"
    )


def _again(options: Options, path: Path) -> tuple[Options, shot.Sidecar]:
    extra = [f.name for f in fields(Options) if f.name not in _ANEW and getattr(options, f.name) != f.default]
    if extra:
        raise ValueError(
            f"--from makes the clip again as it was: --{', --'.join(extra)} cannot be given with it "
            "(--model, --pipeline, --out and --device can)"
        )
    before = shot.read(path)
    said = {name: value for name, value in before.source.items() if name in _SOURCES}
    said |= {name: Path(said[name]) for name in _PLACES if name in said}
    given = {name: value for name in _ANEW if (value := getattr(options, name)) is not None}
    return replace(options, **(said | given), negative=before.shot.negative), before
