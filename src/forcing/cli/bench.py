"""`forcing bench stream`: what streaming a world costs here, and what each saving of the engine gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from forcing import files
from forcing.backbones.wan import WanConfig
from forcing.cli.bar import Bar
from forcing.cli.generate import FAVOURITES
from forcing.cli.models import DTYPES
from forcing.cli.options import check_size, read, shown, size
from forcing.cli.setting import shipped
from forcing.engine.bench import service, speed
from forcing.engine.bench.drawn import SIZES, random_world
from forcing.engine.bench.trial import UNSEEN, Trial, peak
from forcing.engine.graphs import compiled, on_cuda
from forcing.engine.schedule import Policy
from forcing.engine.session import Setup
from forcing.eval.machine import machine
from forcing.kit import STRIDE
from forcing.recipe import Sampling
from forcing.recipes import rooms, wan
from forcing.rollout import Plan
from forcing.train.compute import place
from forcing.world import World

WINDOW = 9  # of a Wan of random weights
FRAMES = {"tiny": (64, 96), "20M": (256, 320)}  # (height, width) in pixels; of the others wan.SIZE
PRODUCT = "wan-dmd-4step"  # the recipe that random weights stand for
MOST = 1000
SPEED = "steps chunk passes ratio GFLOP share"
LATENCY = "steps policy fps first action between"
SESSIONS = "steps sessions batch ratio evenness frames/s"
TABLES = (  # title, part of the results, columns
    ("latent frames a second over the plain loop's; arithmetic, and its share of the limit here", "speed", SPEED),
    ("frames a second without the saving that a column names, over the whole engine's", "speed", "steps chunk without"),
    ("ms a latent frame: plain loop, engine, engine without the saving named{note}", "speed", "steps chunk ms"),
    ("ms to a first frame, from hearing keys to their picture, and between chunks{note}", "latency", LATENCY),
    ("sessions at once, without pictures: latent frames a second over those of one", "sessions", SESSIONS),
    ("one session, minute by minute: ms between chunks{note}", "minutes", "chunks p50 p95 p99 MB"),
)


@dataclass(frozen=True)
class Options:
    """Measure how fast a world streams: the engine beside the plain rollout loop, latency, several viewers, memory.

    Everything is measured in one run, taking turns, so that ratios mean something on any machine; absolute times mean
    something on a GPU. Wan is measured with random weights, which are as fast as trained ones.
    """

    what: tyro.conf.Positional[Literal["stream"]]  # what to measure
    world: Annotated[Path | None, shown("DIR")] = None  # a world's folder; default: one that is shipped
    wan: Annotated[Literal["tiny", "20M", "1.3B", "14B"] | None, shown("tiny|20M|1.3B|14B")] = None  # or a random Wan
    size: Annotated[str | None, shown("WxH")] = None  # in pixels; default: the world's, of --wan 20M 320x256
    steps: tuple[int, ...] = (1, 2, 4)  # for each chunk
    chunk: tuple[int, ...] = (1, 3)  # latent frames generated together; the first one for all but speed
    window: Annotated[int | None, shown("N")] = None  # latent frames; default: the world's, of --wan 9
    sink: Annotated[int | None, shown("N")] = None  # of these, first ones that are never forgotten
    sessions: tuple[int, ...] = (1, 4)  # viewers at once
    batch: int = 4  # sessions that may share a pass
    policy: Policy = "auto"  # when chunks are settled, with several viewers and in the soak
    fps: Annotated[float | None, shown("N")] = None  # where latency is measured; default: half of what can be done
    rounds: int = 5  # in each of which everything has its turn
    frames: int = 6  # latent frames of a turn
    decode: bool = True  # leave out pictures; a random Wan's are made by a tiny decoder
    graphs: bool = False  # replay recorded passes (GPU)
    compile: bool = False  # also with blocks that torch.compile has made; on a CPU that needs a C++ compiler
    device: str = "auto"  # cpu, cuda or cuda:N
    dtype: Annotated[str | None, shown("NAME")] = None  # of Wan's weights; default: as stored, on a GPU bfloat16
    threads: Annotated[int | None, shown("N")] = None  # of a CPU
    seed: int = 0  # of weights, noise and keys
    soak: float = 0.0  # seconds of one session at the end, to see whether it lasts
    out: Annotated[Path | None, shown("FILE.json")] = None  # all of it as JSON


def run(args: Sequence[str], console: Console) -> int:
    """Measure, show and keep."""
    options = read(Options, args, "bench")
    trial, device = Trial(options.rounds, options.frames, options.seed), place(options.device)
    _check(options, device)
    if options.out is not None:
        files.probe(options.out)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    world, name, frame = _random(options, device) if options.wan else _kept(options, device)
    setups = [
        Setup.of(world, _sampling(options, world, steps, chunk), frame)
        for steps in dict.fromkeys(options.steps)
        for chunk in dict.fromkeys(options.chunk)
    ]
    about = _about(options, name, setups[0], frame)
    console.print(", ".join(f"{name} {about[name]}" for name in ("world", "parameters", "frame", "dtype", "device")))
    results = _measured(options, setups, trial, console)
    if options.out is not None:
        files.write_json(options.out, about | results)
    _show(results, device, console)
    if options.out is not None:
        console.print(f"wrote {options.out}")
    return 0


def _check(options: Options, device: str) -> None:
    """ValueError for what cannot be, before anything is loaded."""
    several = {name: getattr(options, name) for name in ("steps", "chunk", "sessions")}
    for name, values in (
        several | {"batch": (options.batch,), "threads": (1 if options.threads is None else options.threads,)}
    ).items():
        wrong = [value for value in values if not 1 <= value <= MOST]
        if wrong or not values:
            raise ValueError(f"{name} is {wrong[0] if wrong else 'empty'}: it must be from 1 to {MOST}")
    if options.fps is not None and not 0 < options.fps < math.inf:
        raise ValueError(f"fps is {options.fps}: it must be above 0")
    if not 0 <= options.soak < math.inf:
        raise ValueError(f"soak is {options.soak}: give seconds, or 0 for none")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise ValueError(f"dtype is {options.dtype!r}: choose from {', '.join(DTYPES)}")
    if options.world is not None and options.wan is not None:
        raise ValueError("--world and --wan exclude each other: a world is measured, or random weights are")
    if options.graphs and device == "cpu":
        raise ValueError("--graphs replays passes that a GPU has recorded, and this is a CPU")


def _random(options: Options, device: str) -> tuple[World, str, tuple[int, int]]:
    """A Wan of random weights, what to call it, and (height, width) of its pictures."""
    name = options.wan or "tiny"
    recipe = wan.recipes(wan.Facts(SIZES[name]))[PRODUCT]
    frame = size(options.size) if options.size else FRAMES.get(name, wan.SIZE)
    check_size(frame, STRIDE, SIZES[name].patch)
    dtype = DTYPES[options.dtype] if options.dtype else torch.float32 if device == "cpu" else torch.bfloat16
    world = random_world(recipe, frame, seed=options.seed, device=device, dtype=dtype)
    world.recipe = replace(recipe, sampling=replace(recipe.sampling, window=WINDOW))
    return world, f"Wan {name} with random weights", frame


def _kept(options: Options, device: str) -> tuple[World, str, tuple[int, int]]:
    """The same of a world in a folder."""
    found = shipped()
    home = options.world or next((found[name] for name in FAVOURITES if name in found), None)
    if home is None:
        raise ValueError("no world is shipped with this installation: give --world DIR, or --wan SIZE")
    fast = None if device == "cpu" else torch.bfloat16
    world = World.load(home, device=device, dtype=DTYPES[options.dtype] if options.dtype else fast)
    frame = size(options.size) if options.size else world.kit.frame
    config = world.recipe.backbone
    if isinstance(config, WanConfig):
        check_size(frame, world.codec.stride, config.patch)
    elif options.dtype not in (None, "float32"):
        raise ValueError(f"dtype is {options.dtype!r}: {home} is a small world, and computes in float32")
    return world, f"{home if options.world else f'shipped {home.name}'}", frame


def _sampling(options: Options, world: World, steps: int, chunk: int) -> Sampling:
    """As the world's, in so many steps: at the levels of the N-step student, where there is one."""
    own = world.recipe.sampling
    plans = wan.PLANS if isinstance(world.recipe.backbone, WanConfig) else rooms.PLANS
    plan = own.plan if len(own.plan.rest) == steps else plans.get(steps) or Plan(wan.levels(steps))
    window = own.window if options.window is None else options.window
    return replace(own, plan=plan, chunk=chunk, window=window, sink=own.sink if options.sink is None else options.sink)


def _about(options: Options, name: str, setup: Setup, frame: tuple[int, int]) -> dict[str, Any]:
    model, cuda = setup.world.model, setup.device.type == "cuda"
    said = {name: value for name, value in asdict(options).items() if name != "out"}
    return {
        "world": name,
        "device": torch.cuda.get_device_name(setup.device) if cuda else "CPU",
        "machine": machine(),
        "dtype": str(speed.dtype_of(setup)).removeprefix("torch."),
        "parameters": sum(each.numel() for each in model.parameters()),
        "frame": f"{frame[1]}x{frame[0]}",
        "latents": list(setup.size),
        "window": setup.how.window,
        "sink": setup.how.sink,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in said.items()},
    }


def _measured(options: Options, setups: Sequence[Setup], trial: Trial, console: Console) -> dict[str, Any]:
    """Every part, one after another; within each, everything takes turns."""
    device, decode = setups[0].device, options.decode
    recorder, world = on_cuda() if options.graphs else None, setups[0].world
    swift = replace(world, model=compiled(world.model)) if options.compile else None
    more = speed.More(decode, recorder, swift)
    first = [each if decode else replace(each, decoder=lambda: UNSEEN) for each in setups]
    first = [each for each in first if each.how.chunk == options.chunk[0]]
    turns = len(setups) * speed.turns(trial, more)
    turns += options.rounds * len(first) * (len({1, *options.sessions}) + len(service.POLICIES))
    results: dict[str, Any] = {"peak MB": {}}

    def part(name: str, measure: Callable[[], object]) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        results[name] = measure()
        results["peak MB"][name] = peak(device)

    with Bar("measuring", "turns", console) as bar:
        made = itertools.count(1)
        trial = replace(trial, tick=lambda whose: bar.show(next(made), turns, whose))
        part("speed", lambda: [speed.speed(each, trial, more) for each in setups])
        paced = [(each, options.fps or _half(each, results["speed"])) for each in first]
        part("latency", lambda: service.latency(paced, trial, recorder))
        shared = partial(service.sharing, batch=options.batch, policy=options.policy, recorder=recorder)
        part("sessions", lambda: [row for each in first for row in shared(each, options.sessions, trial)])
    if options.soak:
        with Bar("soaking", "seconds", console) as bar:
            whole = math.ceil(options.soak)

            def tell(seconds: float) -> None:
                bar.show(min(whole, int(seconds)), whole)

            part("soak", lambda: service.soak(first[0], options.soak, trial, policy=options.policy, tell=tell))
    return results


def _half(setup: Setup, rows: Sequence[Mapping[str, Any]]) -> float:
    """Pictures a second that would keep the plain loop and the decoder busy for half of the time."""
    own = (len(setup.how.plan.rest), setup.how.chunk)
    ms = next(row["ms"] for row in rows if (row["steps"], row["chunk"]) == own)
    decoding = max(0.0, ms.get(speed.DECODED, 0.0) - ms[speed.ENGINE])
    return 1000 * setup.world.codec.stride[0] / (2 * (ms[speed.PLAIN] + decoding))


def _show(results: Mapping[str, Any], device: str, console: Console) -> None:
    """Tables for people."""
    note = " (this machine's, for orientation)" if device == "cpu" else ""
    soaked = results.get("soak", {"minutes": [], "drift": None})
    for title, part, columns in TABLES:
        rows = [_flat({name: row[name] for name in columns.split()}) for row in {**results, **soaked}[part]]
        if rows:
            leaves = [name.rpartition("\n")[2] for name in rows[0]]
            heads = leaves if len({*leaves}) == len(leaves) else [*rows[0]]
            table = Table(*heads, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for column in table.columns:
                column.justify, column.no_wrap = "right", True
            for row in rows:
                table.add_row(*row.values())
            console.print(title.format(note=note))
            console.print(table, soft_wrap=False)
    sizes = {f"{row['ring MB']:.3g} MB of keys and values (chunk {row['chunk']})": None for row in results["speed"]}
    kept, most = results["speed"][0]["kept MB"], max(results["peak MB"].values())
    console.print(f"a session holds {', '.join(sizes)} and at most {kept:.3g} MB of latents; peak {most:,.0f} MB")
    if soaked["drift"] is not None:
        console.print(f"p95 of the last full minute over that of the first: {soaked['drift']:.2f}")


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Cells under the names of the columns, those of nested values in two lines."""
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            cells |= _flat(value, f"{before}{name}\n")
        else:
            cells[f"{before}{name}"] = f"{value:.3g}" if isinstance(value, float) else str(value)
    return cells
