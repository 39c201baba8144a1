"""`forcing play`: a world in the browser."""

from __future__ import annotations

import json
import os
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from forcing.cli.options import read, shown, size

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from forcing.rollout import Plan
    from forcing.world import World

# as in cli.setting, which loads torch: the gateway does without
SHIPPED = Path(__file__).resolve().parent.parent / "shipped" / "rooms"
FAVOURITES = ("dmd-2step", "dmd-4step", "dmd-1step", "cd", "ar")
ROOMS = "rooms"


@dataclass(frozen=True)
class Options:
    """Play a world in the browser: type a prompt, hold a key, watch it answer. Many may play at once.

    RUN is a run's folder or a world's; without it, the world that is shipped. Ctrl-C stops, once viewers were told.
    """

    run: tyro.conf.Positional[Annotated[Path | None, shown("RUN", name="RUN")]] = None  # a run's folder, or a world's
    recipe: Annotated[str | None, shown("NAME")] = None  # which world of a run; default: dmd-2step, if it is there
    host: str = "127.0.0.1"  # where to listen; 0.0.0.0 for everyone, and then think of --token and a proxy with TLS
    port: int = 8000  # 0 for any that is free
    browser: bool = True  # open one
    fps: Annotated[float | None, shown("N")] = None  # pictures a second; default 10, of Wan 16
    size: Annotated[str | None, shown("WIDTHxHEIGHT")] = None  # of Wan's pictures; default: what it was made for
    sessions: int = 8  # viewers at once, of each engine
    queue: int = 64  # who may wait for a place
    engines: int = 1  # processes, one on each device
    batch: int = 4  # sessions that may share a pass
    device: str = "auto"  # cpu, cuda or cuda:N; with several engines on GPUs, the first one's
    threads: Annotated[int | None, shown("N")] = None  # of a CPU, for each engine
    token: Annotated[str | None, shown("SECRET")] = None  # that viewers must know; better in FORCING_TOKEN
    origin: tuple[str, ...] = ()  # other pages that may connect, such as https://example.org
    logs: Annotated[Path | None, shown("DIR")] = None  # keep each session's controls, for forcing replay
    events: bool = False  # say all that happens as JSON lines on standard error; else only what is wrong, in words
    in_process: bool = False  # the engine as a thread, for debugging
    ray: Annotated[str | None, shown("ADDRESS")] = None  # workers in a Ray cluster: its address, or "local"
    workers: tuple[int, int] = (1, 1)  # there: at least and at most; more are added while places are short
    gpus: float = 0.0  # that each of them takes


def run(args: Sequence[str], console: Console) -> int:
    """Serve until told to stop."""
    options = read(Options, args, "play")
    home = home_of(options.run, options.recipe)
    told = engine_of(home, options)
    try:
        from forcing.serve import gateway
        from forcing.serve.options import Options as Serving
    except ModuleNotFoundError as missing:
        raise ValueError(f'{missing.name} is not installed: pip install "forcing[serve]"') from missing
    serving = Serving(
        host=options.host,
        port=options.port,
        engines=options.engines,
        sessions=options.sessions,
        queue=options.queue,
        token=options.token or os.environ.get("FORCING_TOKEN") or None,
        origins=options.origin,
        logs=options.logs,
        engine=told,
        in_process=options.in_process,
        events=options.events,
    )

    def said(address: str) -> None:
        console.print(f"{told['name']} is on {address} (Ctrl-C stops)")
        if options.browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    if options.ray is not None:
        from forcing.serve import placement

        least, most = options.workers
        return placement.run(options.ray, serving, placement.Plan(least, most, gpus=options.gpus), engine, said)
    return gateway.run(serving, engine, said)


def engine(connection: Connection, told: dict[str, Any]) -> None:
    """The real engine, for a process of its own: torch is loaded there, and not by the gateway."""
    from forcing.serve import host

    host.main(connection, told, plans_of)


def plans_of(world: World) -> Mapping[int, Plan]:
    """By passes a frame, how this world can be sampled: as few-step students are, if it is one."""
    from forcing.backbones.wan import WanConfig
    from forcing.recipes import rooms, wan

    if not world.recipe.sampling.plan.fresh:
        return {}
    return wan.PLANS if isinstance(world.recipe.backbone, WanConfig) else rooms.PLANS


def home_of(run: Path | None, recipe: str | None) -> Path:
    """The folder of the world to play. ValueError where there is none."""
    if run is not None and (run / "world.json").is_file():
        return run
    found = {
        path.parent.name if path.parent.name != "world" else path.parent.parent.name: path.parent
        for pattern in ("*/world.json", "*/world/world.json")
        for path in (SHIPPED if run is None else run).glob(pattern)
    }
    if not found:
        raise ValueError(f"there is no world in {run or SHIPPED}: give a run's folder or a world's, or leave it out")
    if recipe is not None and recipe not in found:
        raise ValueError(f"there is no world {recipe!r} in {run or SHIPPED}: choose from {', '.join(sorted(found))}")
    name = recipe or next((name for name in FAVOURITES if name in found), None)
    if name is None:
        raise ValueError(f"{run or SHIPPED} has only {', '.join(sorted(found))}: a bidirectional model does not stream")
    return found[name]


def engine_of(home: Path, options: Options) -> dict[str, Any]:
    """What each engine is told of the world in `home`."""
    try:
        document = json.loads((home / "world.json").read_text(encoding="utf-8"))
        recipe, large, prompts = document["recipe"]["name"], "pipeline" in document, document.get("prompts", [])
    except (ValueError, LookupError, TypeError) as damage:
        raise ValueError(f"the world in {home} is damaged: world.json is not readable ({damage})") from damage
    if options.fps is not None and not 0 < options.fps <= 240:
        raise ValueError(f"fps is {options.fps}: it must be above 0 and at most 240")
    if options.size is not None and not large:
        raise ValueError(f"--size is for Wan: pictures of the small world in {home} have one size")
    rooms = prompts == ["multi room", "four rooms", "lava crossing"]
    return {
        "world": str(home.resolve()),
        "name": f"{ROOMS}, {recipe}" if rooms else recipe,
        "fps": options.fps or (16.0 if large else 10.0),
        "batch": options.batch,
        "device": options.device,
        "frame": None if options.size is None else size(options.size),
        "reality": ROOMS if rooms else "",
        "threads": options.threads,
    }
