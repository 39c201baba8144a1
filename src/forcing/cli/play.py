"""`forcing play`: a world in the browser."""

from __future__ import annotations

import os
import re
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import tyro
from rich.console import Console

from forcing.cli import home
from forcing.cli.options import read, shown, size
from forcing.serve.options import MOST_FPS

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from forcing.rollout import Plan
    from forcing.world import World

ROOMS, PROMPTS = "rooms", ("multi room", "four rooms", "lava crossing")
TOKEN = "FORCING_TOKEN"
PASSES = 4  # a frame; what needs more is slow on most machines


@dataclass(frozen=True)
class Options:
    """Play a world in the browser: type a prompt, hold a key, watch it answer. Many may play at once.

    RUN is a run's folder or a world's; without it, the world that is shipped. While others wait, a session ends after
    10 minutes without a control, or after an hour. Ctrl-C stops, once viewers were told; twice, at once.
    """

    run: tyro.conf.Positional[Annotated[Path | None, shown("[RUN]", name="RUN")]] = None  # a run's folder, or a world's
    recipe: Annotated[str | None, shown("NAME")] = None  # which world of a run; default: dmd-2step, if it is there
    host: str = "127.0.0.1"  # where to listen; 0.0.0.0 for everyone, and then think of --token and a proxy with TLS
    port: int = 8000  # 0 for any that is free
    no_browser: bool = False  # say the address, and open no browser
    fps: Annotated[float | None, shown("N")] = None  # pictures a second; default 10, of Wan 16
    size: Annotated[str | None, shown("WIDTHxHEIGHT")] = None  # of Wan's pictures; default: what it was made for
    sessions: int = 8  # viewers at once, of each engine
    queue: int = 64  # who may wait for a place
    engines: int = 1  # processes, one on each device
    batch: int = 4  # sessions that may share a pass
    device: str = "auto"  # cpu, cuda or cuda:N; with several engines on GPUs, the first one's
    threads: Annotated[int | None, shown("N")] = None  # of a CPU, for each engine
    token: Annotated[str | None, shown("SECRET")] = None  # that viewers must know; better in FORCING_TOKEN
    origin: tuple[str, ...] = ()  # what else this server is called, or pages that may connect: https://example.org
    logs: Annotated[Path | None, shown("DIR")] = None  # keep each session's controls, for forcing replay
    events: bool = False  # say all that happens as JSON lines on standard error; else only what is wrong, in words
    in_process: bool = False  # the engine as a thread, for debugging
    ray: Annotated[str | None, shown("ADDRESS")] = None  # workers in a Ray cluster: its address, or "local"
    workers: tuple[int, int] = (1, 1)  # there: at least and at most; more are added while places are short
    gpus: float = 0.0  # that each of them takes


def run(args: Sequence[str], console: Console) -> int:
    """Serve until told to stop."""
    options = read(Options, args, "play")
    world = home.find(options.run, options.recipe)
    told = engine_of(world, options)
    try:
        from forcing.serve import gateway, placement
        from forcing.serve.options import Options as Serving
    except ModuleNotFoundError as missing:
        raise ValueError(f'{missing.name} is not installed: pip install "forcing[serve]"') from missing
    serving = Serving(
        host=options.host,
        port=options.port,
        engines=options.engines,
        sessions=options.sessions,
        queue=options.queue,
        token=secret(options.token),
        origins=tuple(map(origin, options.origin)),
        logs=options.logs,
        engine=told,
        in_process=options.in_process,
        events=options.events,
    )
    plan = placement.Plan(*options.workers, gpus=options.gpus)
    if options.ray is None and plan != placement.Plan():
        raise ValueError("--workers and --gpus are for --ray: give a cluster's address, or --ray local")
    says = Says(console, world, told["fps"], options.no_browser)
    with suppress(KeyboardInterrupt):  # once more than was needed, or before anybody could be there
        if options.ray is not None:
            placement.run(options.ray, serving, plan, engine, says.listening, says.leaving)
        else:
            gateway.run(serving, engine, says.listening, says.leaving)
    console.print("stopped")
    return 0


@dataclass(frozen=True)
class Says:
    """What an operator is told in the terminal."""

    console: Console
    world: home.Home
    fps: float
    no_browser: bool

    def listening(self, address: str) -> None:
        name, passes = self.world.name, self.world.passes
        self.console.print(f"{name_of(self.world)} is on {address} (Ctrl-C stops)")
        if passes > PASSES:
            self.console.print(
                f"{name} needs {passes} passes a frame: expect fewer pictures a second than {self.fps:g}"
            )
        if not self.no_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    def leaving(self, viewers: int, seconds: float) -> None:
        who = "1 viewer is" if viewers == 1 else f"{viewers} viewers are"
        told = f": {who} told, at most {seconds:g} s; Ctrl-C again stops at once" if viewers else ""
        self.console.print(f"stopping{told}")


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


def engine_of(world: home.Home, options: Options) -> dict[str, Any]:
    """What each engine is told. ValueError for what cannot be, as far as can be said without it."""
    if options.fps is not None and not 0 < options.fps <= MOST_FPS:
        raise ValueError(f"fps is {options.fps:g}: it must be above 0 and at most {MOST_FPS}")
    for name, value in (("batch", options.batch), ("threads", options.threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"device is {options.device!r}: choose from auto, cpu, cuda, cuda:0, cuda:1, ...")
    frame = None if options.size is None else size(options.size)
    world.check(frame)
    rooms = world.prompts == PROMPTS
    return {
        "world": str(world.path.resolve()),
        "name": name_of(world),
        "fps": options.fps or (10.0 if world.pipeline is None else 16.0),
        "batch": options.batch,
        "device": options.device,
        "frame": frame,
        "reality": ROOMS if rooms else "",
        "hint": "You are the red triangle: turn with ← and →, walk with ↑" if rooms else "",
        "first": PROMPTS[-1] if rooms else None,
        "threads": options.threads,
    }


def name_of(world: home.Home) -> str:
    """For viewers."""
    return f"{ROOMS}, {world.name}" if world.prompts == PROMPTS else world.name


def secret(told: str | None) -> str | None:
    """The token that was told, or that of the environment. ValueError for an empty one, which would keep nobody out."""
    name, token = ("--token", told) if told is not None else (TOKEN, os.environ.get(TOKEN))
    if token is not None and not token.strip():
        raise ValueError(f"{name} is empty, and would keep nobody out: give a secret, or leave it out")
    return token and token.strip()


def origin(told: str) -> str:
    """As browsers say it. ValueError for what none would say."""
    plain = f"origin is {told!r}: write it as browsers do, such as https://example.org, without a path"
    try:
        page = urlsplit(told)
        port = {"http": 80, "https": 443}[page.scheme], page.port
    except (ValueError, KeyError):
        raise ValueError(plain) from None
    if (
        told != f"{page.scheme}://{page.netloc}".lower()
        or not page.hostname
        or "@" in page.netloc
        or port[0] == port[1]
    ):
        raise ValueError(plain)
    return told
