"""`forcing generate`: clips from prompts and keys, written while they are made."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console

from forcing import files, flow, media
from forcing.cli import script, take
from forcing.cli.bar import Bar
from forcing.cli.home import STUDENTS
from forcing.cli.options import read, shown
from forcing.cli.setting import known, shipped, shipped_base
from forcing.cli.take import Take
from forcing.envs.gym import ROOMS
from forcing.kit import SmallKit
from forcing.recipe import Recipe, Sampling, parse
from forcing.recipes import rooms
from forcing.rollout import Plan
from forcing.world import World

FRAMES = 64
FAVOURITES = (*STUDENTS, "base")
MOST_STEPS = 1000

Append = tyro.conf.UseAppendAction


@dataclass(frozen=True)
class Options:
    """Generate clips and, beside them, a JSON file from which --from makes them again.

    Several --prompt make several clips. Keys are told by --actions or --policy; without them, the world imagines
    where it goes (--free). With --model PATH the clips are Wan's, and other options apply: --model PATH --help.
    """

    world: Annotated[Path | None, shown("DIR")] = None  # a world's folder; default: one that is shipped
    run: Annotated[Path | None, shown("DIR")] = None  # or the run folder that it was trained in
    recipe: Annotated[str | None, shown("NAME")] = None  # which world of the run, or of the shipped ones
    prompt: Append[Annotated[tuple[str, ...], shown("PROMPT")]] = ()  # "" for none; default: the world's first
    at: Append[Annotated[tuple[tuple[str, str], ...], shown("FRAME PROMPT")]] = ()  # from this frame on, another prompt
    actions: Annotated[str | None, shown("SCRIPT")] = None  # keys, such as "forward*3,left", repeated to the end
    policy: Annotated[Literal["random"] | None, shown("random")] = None  # random keys, each held for a while
    free: bool = False  # no keys
    frames: Annotated[int | None, shown("N")] = None  # default: one for each key of the script and one more, or 64
    steps: Annotated[int | None, shown("N")] = None  # a frame, at an N-step student's levels; default: the recipe's
    seed: int = 0  # of the noise and of random keys
    start: Append[Annotated[tuple[Path, ...], shown("IMAGE")]] = ()  # the first frame, to go on from
    out: Annotated[Path | None, shown("FILE")] = None  # .mp4, .gif or .png (a sheet); default: a new name in clips/
    fps: Annotated[float | None, shown("N")] = None  # frames a second in the file (8)
    scale: Annotated[int | None, shown("N")] = None  # pixels a side in the file for each of the world (6)
    show_keys: bool = False  # draw the keys in a strip below
    again: Annotated[Path | None, shown("FILE.json", name="from")] = None  # make the clips of this JSON file again


@dataclass(frozen=True)
class Look:
    """How clips are written: what does not change what the world shows."""

    fps: float = 8.0
    scale: int = 6
    show_keys: bool = False
    suffix: str = ".mp4"


def run(args: Sequence[str], console: Console) -> int:
    """Generate, and say where the clips are."""
    from forcing.cli import film

    if film.asked(args):
        return film.run(args, console)
    if others := film.alone(args, [f.name for f in fields(Options)]):
        raise ValueError(f"{others[0]} is for clips of Wan: give --model PATH, too")
    options = read(Options, args, "generate")
    if options.again is not None:
        world, home, wanted, look = _again(options, options.again)
    else:
        home = _home(options)
        world, look = World.load(home), _look(options, Look())
        wanted = _take(options, world, home)
    _kit(world, home)
    wanted.check(world)
    for prompt in [*wanted.prompts, *(prompt for _, prompt in wanted.switches)]:
        world.cond([prompt], None, 1)
    if look.show_keys and wanted.actions is None:
        raise ValueError("--show-keys without keys: tell some by --actions or --policy random")
    single = _out(options, world, wanted, look)
    paths = _numbered(single, len(wanted.prompts))
    for path in paths:
        media.check(path, fps=look.fps, scale=look.scale)
    files.probe(single)
    _make(wanted, world, paths, look, console)
    beside = single.with_name(single.name + ".json")
    take.write(beside, wanted, world, home, asdict(look) | {"files": [path.name for path in paths]})
    console.print(f"wrote {', '.join(map(str, paths))}; the same again: forcing generate --from {beside}")
    return 0


def _take(options: Options, world: World, home: Path) -> Take:
    told = [name for name in ("actions", "policy", "free") if getattr(options, name) not in (None, False)]
    if len(told) > 1:
        raise ValueError(
            f"--{' and --'.join(told)} exclude each other: keys come from a script, at random, or not at all"
        )
    kit, how = _kit(world, home), _sampling(world, home, options.steps)
    start = tuple(take.pack(take.first_frame(path, world.kit.frame)) for path in options.start)
    prompts = tuple(prompt or None for prompt in options.prompt or kit.text.prompts[:1])
    blind = max(1, len(start))  # nothing is known of the keys that led to these
    pressed = script.read(options.actions, world.keys) if options.actions is not None else None
    frames = options.frames
    if frames is None:
        frames = _frames(world, blind + len(pressed) if pressed else FRAMES, how.chunk)
    actions, open_to_keys = None, max(0, frames - blind)
    if pressed:
        actions = ((-1,) * blind + script.lasting(pressed, open_to_keys),) * len(prompts)
    elif options.policy:
        walks = (script.wander(world.keys, open_to_keys, options.seed, clip) for clip in range(len(prompts)))
        actions = tuple((-1,) * blind + walk for walk in walks)
    switches = tuple((_number(frame), prompt or None) for frame, prompt in options.at)
    return Take(prompts, frames, options.seed, how, switches, actions, start)


def _number(frame: str) -> int:
    if not re.fullmatch(r"-?\d+", frame):
        raise ValueError(f'--at {frame!r}: say the number of a frame and a prompt, such as --at 24 "lava crossing"')
    return int(frame)


def _kit(world: World, home: Path) -> SmallKit:
    if not isinstance(world.kit, SmallKit):
        raise ValueError(f"{home} is a world of Wan's: forcing generate --model {home}")  # noqa: TRY004 (the user's)
    return world.kit


def _frames(world: World, wanted: int, chunk: int) -> int:
    return -(-wanted // chunk) * chunk if world.causal else chunk


def _sampling(world: World, home: Path, steps: int | None) -> Sampling:
    # A distilled world visits the levels of the N-step student; a teacher does best on an even grid (docs/log.md).
    own = world.recipe.sampling
    if steps is None:
        return own
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps is {steps}: it must be a whole number from 1 to {MOST_STEPS}")
    plan = _student(home, steps) if own.plan.fresh else own.plan if steps == len(own.plan.rest) else None
    plan = plan or _even(world.recipe, steps)
    return replace(own, plan=replace(plan, first=plan.first if world.causal else None, fresh=own.plan.fresh))


def _student(home: Path, steps: int) -> Plan | None:
    # The plan of the N-step student trained beside this world (RUN/NAME/world, or shipped as NAME), or of its recipe.
    name = f"dmd-{steps}step"
    for place in (home.parent.parent / name / "world", home.parent / name):
        if (place / "world.json").is_file():
            return World.load(place).recipe.sampling.plan
    return rooms.PLANS.get(steps)


def _even(recipe: Recipe, steps: int) -> Plan:
    # No student takes so many steps. A frame that nothing precedes takes as many as students do, if that is more.
    few = recipe.sampling.plan if recipe.sampling.plan.fresh else rooms.PLANS[max(rooms.PLANS)]
    first = few.levels(begins=True)
    rest = tuple(flow.grid(steps, recipe.stage.shift)[:-1].tolist())
    return Plan(rest, first if len(first) > steps else None)


def _look(options: Options, before: Look) -> Look:
    given = {name: value for name in ("fps", "scale") if (value := getattr(options, name)) is not None}
    return replace(before, **given, show_keys=options.show_keys or before.show_keys)


def _again(options: Options, path: Path) -> tuple[World, Path, Take, Look]:
    kept = ("again", "world", "out", "fps", "scale", "show_keys")
    extra = [f.name for f in fields(Options) if f.name not in kept and getattr(options, f.name) != f.default]
    if extra:
        raise ValueError(
            f"--from makes the clip again as it was: --{', --'.join(extra)} cannot be given with it "
            "(--world, --out, --fps, --scale and --show-keys can)"
        )
    wanted, look, made_by = take.read(path)
    home = options.world or Path(made_by["path"])
    world = World.load(home)
    if take.weights(home) != made_by["weights"]:
        raise ValueError(f"{home} is not the world that made {path}: its weights differ; give the right one by --world")
    names = look.pop("files")
    try:
        before = parse(Look, {"kind": "Look"} | look)
        media.check(Path(names[0]), fps=before.fps, scale=before.scale)
    except (TypeError, ValueError) as damage:
        raise ValueError(f"{path} says nothing sensible of how the clip looked ({damage})") from damage
    return world, home, wanted, _look(options, replace(before, suffix=Path(names[0]).suffix))


def _home(options: Options) -> Path:
    if options.world is not None:
        if options.run is not None or options.recipe is not None:
            raise ValueError("--world is one world's folder: --run and --recipe cannot be given with it")
        return options.world
    if options.run is not None:
        found = {path.parent.parent.name: path.parent for path in sorted(options.run.glob("*/world/world.json"))}
        where = str(options.run)
        about = known(options.run)
        if found and about is not None and about.recording == ROOMS:
            found = shipped_base() | found  # what the run started from
    else:
        found, where = shipped(), "this installation"
    if not found:
        raise ValueError(f"{where} holds no trained worlds: give --world DIR or --run DIR (forcing demo trains some)")
    name = options.recipe or next((name for name in FAVOURITES if name in found), next(iter(found)))
    if name not in found:
        raise ValueError(f"{where} holds no world of recipe {name!r}; it has {', '.join(found)}")
    return found[name]


def _out(options: Options, world: World, wanted: Take, look: Look) -> Path:
    if options.out is not None:
        return options.out
    folder = (options.run or Path()) / "clips"
    prompt = re.sub(r"[^a-z0-9]+", "-", (wanted.prompts[0] or "no prompt").lower()).strip("-")
    stem = f"{world.recipe.name}-{prompt}-{wanted.seed}"
    for n in itertools.count(1):
        path = folder / f"{stem}{f'-take{n}' if n > 1 else ''}{look.suffix}"
        if not any(each.exists() for each in (path, path.with_name(path.name + ".json"), *_numbered(path, 2))):
            return path
    raise AssertionError


def _numbered(path: Path, count: int) -> list[Path]:
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{n}") for n in range(1, count + 1)]


def _make(wanted: Take, world: World, paths: Sequence[Path], look: Look, console: Console) -> None:
    began, first, done = time.monotonic(), 0.0, 0
    with Bar("generating", "frames", console) as bar, ExitStack() as closing:
        scale = 1 if look.show_keys else look.scale
        writers = [closing.enter_context(media.writer(path, fps=look.fps, scale=scale)) for path in paths]
        for frames in wanted.stream(world):
            for clip, out in enumerate(writers):
                out.add(_drawn(frames[clip], wanted, clip, done, look, world.keys.names))
            done += frames.shape[1]
            now = time.monotonic() - began
            first = first or now
            bar.show(done, wanted.frames, f"{done / now:.1f} frames/s")
    took = time.monotonic() - began
    clips = f"{len(paths)} clips of " if len(paths) > 1 else ""
    rate = f"{len(paths) * done / took:.1f} frames/s"
    console.print(
        f"{world.recipe.name}: {clips}{done} frames in {took:.1f} s ({rate}, the first after {1000 * first:.0f} ms)"
    )


def _drawn(frames: np.ndarray, wanted: Take, clip: int, first: int, look: Look, names: Sequence[str]) -> np.ndarray:
    if not look.show_keys or wanted.actions is None:
        return frames
    led = wanted.actions[clip][first : first + len(frames)]
    large = media.enlarge(frames, look.scale)
    pressed = [names[key] if key >= 0 else None for key in led]
    return np.stack([media.with_key(frame, key) for frame, key in zip(large, pressed, strict=True)])
