"""`forcing load`: many viewers at once on a server, and what they see of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from forcing import files
from forcing.cli import home, play
from forcing.cli.bar import Bar
from forcing.cli.options import read, shown
from forcing.eval.machine import machine
from forcing.serve.options import MOST_FPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forcing.serve.load import Plan

SHIPPED = "shipped"
MOCK = {"fps": 16.0, "pass_s": 0.0}  # frames that cost no more than their encoding: the server is measured, no model
START_S = 600.0  # for an engine to be ready
FORMAT = 1
ROWS = {  # what is measured, in ms, and which percentiles of it are shown
    "first picture": ("first_ms", ("p50", "p95")),
    "chunk to chunk": ("between_ms", ("p50", "p95", "p99")),
    "key to picture": ("applied_ms", ("p50", "p95")),
    "age when it comes": ("age_ms", ("p50", "p95")),
    "back after a cut": ("back_ms", ("p50", "p95")),
}


@dataclass(frozen=True)
class Options:
    """Load a server with viewers, and measure what they see: first picture, evenness, reaction, age of pictures.

    URL is that of a running server; without it, one is started for the time, with an engine that has no model. Some
    viewers may read slowly, and some be cut off and come back. Exit code 1: pictures were wrong, something failed, or
    --p95 was not kept.
    """

    url: tyro.conf.Positional[Annotated[str | None, shown("[URL]", name="URL")]] = None  # as http://127.0.0.1:8000
    sessions: int = 8  # viewers in all; a server needs as many places, or some wait
    slow: int = 0  # of them stop reading, for seconds at a time
    kill: int = 0  # of them are cut off, and come back
    seconds: float = 30.0
    mock: bool = False  # the server that is started has no model; that is so without --world anyway
    world: Annotated[str | None, shown("DIR")] = None  # of the server that is started: a world's folder, or "shipped"
    fps: Annotated[float | None, shown("N")] = None  # of the server that is started; default 16, of a world its own
    token: Annotated[str | None, shown("SECRET")] = None  # of the running server
    p95: Annotated[float | None, shown("MS")] = None  # promise for healthy viewers: p95 from chunk to chunk
    ramp: float = 1.0  # seconds in which all of them come
    lead: float = 0.1  # seconds a screen waits with its first picture, so that it does not run dry
    seed: int = 0  # of whoever does what when
    out: Annotated[Path | None, shown("FILE.json")] = None  # all of it as JSON


def run(args: Sequence[str], console: Console) -> int:
    """Load, show and keep."""
    options = read(Options, args, "load")
    _check(options)
    try:
        from forcing.serve import load
    except ModuleNotFoundError as missing:
        raise ValueError(f'{missing.name} is not installed: pip install "forcing[serve]"') from missing

    def plan(url: str) -> Plan:
        rest = {"token": options.token, "ramp": options.ramp, "lead": options.lead}
        return load.Plan(url, options.sessions, options.slow, options.kill, options.seconds, options.seed, **rest)

    plan(options.url or "http://localhost")  # what cannot be is said before a server is started
    if options.out is not None:
        files.probe(options.out)
    about = {"format": FORMAT, "machine": machine(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with _server(options, console) as (url, pid), _let_in(options), Bar("loading", "seconds", console) as bar:
        whole = math.ceil(options.seconds)

        def tell(seconds: float, note: str) -> None:
            bar.show(min(whole, int(seconds)), whole, note)

        report = asyncio.run(load.measure(plan(url), tell, pid))
    lost = load.broken(report, options.p95)
    if options.out is not None:
        files.write_json(options.out, about | report | {"promised_p95_ms": options.p95, "broken": lost})
    _show(report, console)
    for promise in lost:
        console.print(f"not kept: {promise}")
    if options.out is not None:
        console.print(f"wrote {options.out}")
    return 1 if lost else 0


def _check(options: Options) -> None:
    if options.url is not None:
        for name in ("mock", "world", "fps"):
            if getattr(options, name):
                raise ValueError(f"--{name} is for a server that is started here, and {options.url} runs already")
    elif options.token is not None:
        raise ValueError("--token is for a server that runs already: give its URL")
    if options.mock and options.world is not None:
        raise ValueError("--mock and --world exclude each other: there is no model, or there is a world")
    if options.fps is not None and not 0 < options.fps <= MOST_FPS:
        raise ValueError(f"fps is {options.fps:g}: it must be above 0 and at most {MOST_FPS}")
    if options.p95 is not None and not 0 < options.p95 < math.inf:
        raise ValueError(f"p95 is {options.p95:g} ms: it must be above 0")


@contextmanager
def _server(options: Options, console: Console) -> Iterator[tuple[str, int | None]]:
    """Address and process of the server to load, which is ready; no process where it is not on this machine."""
    from forcing.serve import load, local, mock
    from forcing.serve.options import Options as Serving

    if options.url is not None:
        load.asked(options.url, "GET", "/healthz")
        where = urlsplit(options.url)
        port = where.port or (443 if where.scheme == "https" else 80)
        yield options.url, local.listening(port) if where.hostname in ("127.0.0.1", "localhost", "::1") else None
        return
    if options.world is None:
        told, target = {**MOCK, **({} if options.fps is None else {"fps": options.fps})}, mock.main
    else:
        world = home.find(None if options.world == SHIPPED else Path(options.world))
        told, target = play.engine_of(world, play.Options(fps=options.fps)), play.engine
    serving = Serving(port=0, sessions=options.sessions, engine=told)
    with local.served(serving, target) as (url, pid):
        console.print(f"a server of our own is on {url}")
        _until_ready(lambda: load.asked(url, "GET", "/readyz"), lambda: load.asked(url, "GET", "/healthz"))
        yield url, pid


@contextmanager
def _let_in(options: Options) -> Iterator[None]:
    """ValueError where viewers are not."""
    from forcing.serve import load

    try:
        yield
    except load.Unknown:
        token = "wants a token" if options.token is None else "does not know this token"
        raise ValueError(f"{options.url} {token}: give the right one by --token") from None


def _until_ready(ready: Callable[[], object], alive: Callable[[], object]) -> None:
    """ConnectionError, saying why, where a server does not become ready."""
    end = time.monotonic() + START_S
    while True:
        try:
            ready()
        except ConnectionError as why:
            if "broken" in str(why) or time.monotonic() > end:
                raise
            alive()
            time.sleep(0.1)
        else:
            return


def _show(report: Mapping[str, Any], console: Console) -> None:
    """A table for people."""
    world, plan = report["world"], report["plan"]
    console.print(
        f"{plan['sessions']} viewers of {world['name']} at {world['fps']:g} pictures a second"
        if world["fps"]
        else f"{plan['sessions']} viewers"
    )
    kinds = report["viewers"]
    heads = [f"{kind}: {saw['viewers']}" for kind, saw in kinds.items()]
    table = Table("ms", *heads, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for what, (part, ranks) in ROWS.items():
        cells = ["/".join(_cell(saw[part][rank]) for rank in ranks) for saw in kinds.values()]
        table.add_row(f"{what}, {'/'.join(ranks)}", *cells)
    table.add_row("pictures a second", *(_cell(saw["fps"]) for saw in kinds.values()))
    table.add_row("screens ran dry", *(str(saw["dry"]) for saw in kinds.values()))
    console.print(table, soft_wrap=False)
    counted = ", ".join(f"{report[name]} {name}" for name in ("foreign", "stale"))
    console.print(f"{report['pictures']} pictures, {counted}; {report['read']} were read")
    for error, count in report["errors"].items():
        console.print(f"{count} x error: {error}")
    for name, used in (report["server"] or {}).items():
        console.print(f"{name}: {used['cpu']:.0%} of a core, at most {used['most_mb']} MB")
    late = report["here"]["late_ms"]
    console.print(f"this process: {report['here']['cpu']:.0%} of a core, p95 {late['p95']} ms late itself")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
