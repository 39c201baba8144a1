"""Many machines: Ray places workers; browsers are sent to them and talk to them directly.

A worker is a whole gateway with its engines, as an actor on some machine of a Ray cluster. What listens here answers
the first request of a browser alone, by sending it to the worker with most places free, or where all are full to the
one with the shortest queue: no picture passes through Ray. Workers that die or fail are started again from here.
"""

import asyncio
import signal
import socket
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from forcing.serve import events
from forcing.serve.admission import Desk
from forcing.serve.gateway import Server, serve
from forcing.serve.options import Options
from forcing.serve.supervisor import LONGEST_PAUSE, Target

Leaving = Callable[[int, float], None]

LOOK_S = 1.0  # between two looks at the workers, and for their answers
SILENT_S = 10.0  # without an answer, a worker is away
AWAY_S = 60.0  # without an answer, it has failed
ARRIVE_S = 10.0  # for a browser to ask for a session where it was sent
LEAVE_S = 10.0  # for a worker to end, once its viewers are gone
RETRY_S = 3
EVERYWHERE = "0.0.0.0"
NOWHERE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{RETRY_S}">
<title>forcing</title>
<style>
:root {{ color-scheme: light dark; }}
body {{
  margin: 0; min-height: 100dvh; display: grid; place-items: center;
  background: light-dark(#f8f8f6, #141518); color: light-dark(#1d1f24, #e9e9e6); font: 15px/1.5 system-ui, sans-serif;
}}
p {{ margin: 24px; max-width: 42ch; text-align: center; text-wrap: balance; }}
</style>
</head>
<body><p role="status">No place can be reached just now; this page tries again by itself.</p></body>
</html>
"""
HEADERS = {
    "Retry-After": str(RETRY_S),
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


def _quiet(_viewers: int, _seconds: float) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Plan:
    """least, most: workers. spare: places that are kept free, by adding workers. idle_s: one beyond `least` where
    nobody is leaves after so long. cpus, gpus: that each worker takes.
    """

    least: int = 1
    most: int = 1
    spare: int = 1
    idle_s: float = 300.0
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"workers are {self.least} to {self.most}: give at least 1, and no fewer at most")
        for name in ("spare", "idle_s", "cpus", "gpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0")


@dataclass(frozen=True)
class Status:
    """What a worker says of itself. address: for browsers. taken: sessions, those that wait (`queue`) among them; free:
    places. newest: the highest number of a session that is there. why: it has failed, or is not ready.
    """

    state: Literal["starting", "ready", "stopping", "stopped", "failed"] = "starting"
    address: str = ""
    taken: int = 0
    free: int = 0
    queue: int = 0
    newest: int = 0
    why: str = ""


class Worker:
    """A gateway on whichever machine this is, as a Ray actor; on any port that is free."""

    def __init__(self, options: Options, target: Target) -> None:
        self.options, self.target = replace(options, port=0), target
        self.address = self.why = ""
        self.server: Server | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="gateway", daemon=True)
        self._thread.start()

    def status(self) -> Status:
        """It is asked for in the gateway's loop: one that hangs does not answer. TimeoutError after SILENT_S."""
        server = self.server
        if not self._thread.is_alive():
            return self._over()
        if server is None or server.loop is None:
            return Status(why="its gateway begins")
        seen = self._seen(server.gateway.desk)
        try:
            asked = asyncio.run_coroutine_threadsafe(seen, server.loop)
        except RuntimeError:  # its loop has just been closed
            seen.close()
            self._thread.join(SILENT_S)
            return self._over()
        return asked.result(SILENT_S)

    def _over(self) -> Status:
        return Status("failed" if self.why else "stopped", why=self.why or "its gateway has ended")

    def drain(self) -> None:
        """Let viewers finish, then stop; returns when it has."""
        self._begun.wait()
        if self.server is not None and self.server.loop is not None:
            with suppress(RuntimeError):  # its loop is closed: it has stopped already
                self.server.loop.call_soon_threadsafe(self.server.gateway.drain)
        self._thread.join()

    async def _seen(self, desk: Desk) -> Status:
        broken = [each.why for each in desk.engines if each.state == "broken"]
        if len(broken) == len(desk.engines):
            return Status("failed", why=f"no engine works: {broken[0]}")
        state = "stopping" if desk.draining else "starting" if desk.world is None else "ready"
        free = sum(each.free for each in desk.engines) if state == "ready" else 0
        why = next((each.why for each in desk.engines if each.why), "its engines start") if state == "starting" else ""
        return Status(state, self.address, len(desk.visits), free, len(desk.queue), max(desk.visits, default=0), why)

    def _serve(self) -> None:
        def begun(server: Server) -> None:
            self.server = server
            self._begun.set()

        stop = events.show(lines=self.options.events)
        try:
            asyncio.run(serve(self.options, self.target, self._said, begun))
        except BaseException as wrong:
            self.why = _cause(wrong)  # for `status`: Ray does not see that a thread of its actor ended
            raise
        finally:
            stop()
            self._begun.set()

    def _said(self, address: str) -> None:
        host = self.options.host
        if host in (EVERYWHERE, "::"):
            here = _reachable(host)
            address = f"http://{f'[{here}]' if ':' in here else here}:{address.rpartition(':')[2]}"
        self.address = address


@dataclass(eq=False)
class Placed:
    """A place for a worker: the one that is there now, and those before it. Times are the clock's.

    state: what the worker said, or "away" while it does not answer, "pausing" before the next one, "broken" when there
    will be none, "leaving" while viewers may finish. asked: its next status, when that is there; left: there once it
    has stopped. sent: when browsers were sent that it has not seen yet. used_at: when somebody was there.
    """

    number: int
    actor: Any = None
    state: str = "starting"
    why: str = ""
    status: Status = field(default_factory=Status)
    asked: Any = None
    left: Any = None
    sent: deque[float] = field(default_factory=deque)
    newest: int = 0
    failures: int = 0
    heard_at: float | None = None
    born: float = 0.0
    ready_at: float = 0.0
    used_at: float = 0.0
    again_at: float = 0.0
    until: float = 0.0

    @property
    def room(self) -> int:
        """Places that will be free when those who were sent are there; below 0, who will wait."""
        return self.status.free - self.status.queue - len(self.sent) if self.state == "ready" else 0

    @property
    def told(self) -> dict[str, Any]:
        """For an operator."""
        return {"worker": self.number, **asdict(self.status), "state": self.state, "why": self.why}


class Placement:
    """Workers in a Ray cluster, as many as are needed. `look` and `close` are called by one thread.

    local: the cluster is this machine, so workers keep to the host that was given; elsewhere they cannot have it.
    """

    def __init__(
        self,
        ray: Any,
        options: Options,
        plan: Plan,
        target: Target,
        *,
        local: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ray, self.plan, self.target, self.clock = ray, plan, target, clock
        self.options = options if local else replace(options, host=EVERYWHERE)
        self.workers: list[Placed] = []  # these two are made anew where they change: others read them
        self.leaving: list[Placed] = []
        self.draining = False
        self._actor, self._number = ray.remote(Worker), 0

    def look(self) -> None:
        """Hear how the workers are; start again who failed, add one where places run short, let one leave that nobody
        has needed for long. It takes LOOK_S at most, whoever does not answer.
        """
        self._hear()
        now = self.clock()
        for each in self.workers:
            if each.state == "pausing" and now >= each.again_at:
                self._start(each)
        self._reap(0.0)
        self._grow()
        self._shrink(now)

    def best(self) -> Placed | None:
        """The worker with most room. None where none is ready."""
        ready = [each for each in self.workers if each.state == "ready"]
        return max(ready, key=lambda each: each.room, default=None)

    def send(self) -> str | None:
        """The address for one browser more, which counts from now on. None where there is none."""
        best = self.best()
        if best is None:
            return None
        best.sent.append(self.clock())
        return best.status.address

    def close(self, hurry: threading.Event, leaving: Leaving = _quiet) -> None:
        """Let viewers finish, for a while and until `hurry` is set; then kill what is left.

        leaving: is told how many sessions there are, and for how many seconds at most, if there are any.
        """
        self.draining = True
        self._hear()
        sessions, seconds = sum(each.status.taken for each in self.workers), self.options.drain_s
        events.tell("draining", workers=len(self.workers), sessions=sessions, at_most_s=seconds)
        if sessions:
            leaving(sessions, seconds)
        for each in self.workers:
            self._leave(each)
        while self.leaving and not hurry.is_set():
            self._reap(0.2)
        for each in self.leaving:
            self._kill(each)

    # ---- what becomes of each

    def _hear(self) -> None:
        for each in self.workers:
            if each.actor is not None and each.asked is None:  # once: nothing piles up where one hangs
                each.asked = each.actor.status.remote()
        asked = {each.asked: each for each in self.workers if each.asked is not None}
        if not asked:
            return
        answers, silent = self.ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_S)
        for answer in answers:
            self._heard(asked[answer], answer)
        for each in [asked[answer] for answer in silent]:
            if each.heard_at is not None:  # Ray may take long to find room for a new one
                self._missed(each, "it does not answer", SILENT_S)

    def _heard(self, worker: Placed, answer: Any) -> None:
        worker.asked = None
        try:
            status = self.ray.get(answer)
        except self.ray.exceptions.ActorDiedError as died:
            self._failed(worker, _last(died))
        except self.ray.exceptions.RayError as wrong:
            self._missed(worker, _last(wrong), 0.0)
        else:
            if status.state in ("stopped", "failed"):
                self._failed(worker, status.why)
            else:
                self._take(worker, status)

    def _take(self, worker: Placed, status: Status) -> None:
        now = self.clock()
        if status.state == "ready" and worker.state != "ready":
            worker.ready_at = worker.used_at = now
            seconds = round(now - worker.born, 1)
            events.tell("worker ready", worker=worker.number, address=status.address, seconds=seconds)
        elif worker.failures and status.state == "ready" and now - worker.ready_at > self.options.steady_s:
            worker.failures = 0
        came = status.newest - worker.newest
        while worker.sent and (came > 0 or now - worker.sent[0] > ARRIVE_S):
            worker.sent.popleft()
            came -= 1
        if status.taken or worker.sent:
            worker.used_at = now
        worker.newest = max(worker.newest, status.newest)
        worker.state, worker.why, worker.status, worker.heard_at = status.state, status.why, status, now

    def _missed(self, worker: Placed, why: str, patience: float) -> None:
        now = self.clock()
        worker.heard_at = now if worker.heard_at is None else worker.heard_at
        silent = now - worker.heard_at
        if silent > AWAY_S:
            self._failed(worker, f"no answer for {AWAY_S:g} s: {why}")
        elif silent >= patience and worker.state != "away":
            worker.state, worker.why = "away", why
            events.warn("worker away", worker=worker.number, address=worker.status.address, why=why)

    def _failed(self, worker: Placed, why: str) -> None:
        self._kill(worker)
        worker.failures, worker.status = worker.failures + 1, Status()
        if worker.failures >= self.options.crashes:
            worker.state = "broken"
            worker.why = f"given up after {worker.failures} failures in a row; the last: {why}"
            events.warn("worker given up", worker=worker.number, why=worker.why)
        else:
            pause = min(LONGEST_PAUSE, self.options.backoff_s * 2 ** (worker.failures - 1))
            worker.state, worker.why, worker.again_at = "pausing", why, self.clock() + pause
            events.warn("worker failed", worker=worker.number, why=why, again_s=pause)

    def _leave(self, worker: Placed) -> None:
        self.workers = [each for each in self.workers if each is not worker]
        if worker.heard_at is None or worker.actor is None:  # nobody can be there
            self._kill(worker)
            return
        patience = self.options.drain_s + 2 * self.options.send_s + LEAVE_S
        worker.state, worker.asked, worker.until = "leaving", None, self.clock() + patience
        worker.left = worker.actor.drain.remote()
        self.leaving = [*self.leaving, worker]
        events.tell("worker leaves", worker=worker.number, sessions=worker.status.taken)

    def _reap(self, seconds: float) -> None:
        if not self.leaving:
            return
        left = [each.left for each in self.leaving]
        ended, _ = self.ray.wait(left, num_returns=len(left), timeout=seconds)
        now = self.clock()
        for each in self.leaving:
            if each.left in ended:
                self._kill(each)
            elif now > each.until:
                events.warn("worker killed", worker=each.number, why="it did not stop in time")
                self._kill(each)
        self.leaving = [each for each in self.leaving if each.actor is not None]

    def _start(self, worker: Placed) -> None:
        # Ray is not to restart them: it would do so for ever and without pauses, and does not see engines that fail
        options = {"num_cpus": self.plan.cpus, "num_gpus": self.plan.gpus, "max_restarts": 0, "max_concurrency": 4}
        worker.actor = self._actor.options(**options).remote(self.options, self.target)
        worker.state, worker.why = "starting", "Ray has not started it yet"
        worker.newest, worker.heard_at, worker.born = 0, None, self.clock()
        worker.used_at = worker.born
        events.tell("worker added", worker=worker.number, again=worker.failures)

    def _kill(self, worker: Placed) -> None:
        if worker.actor is not None:
            self.ray.kill(worker.actor, no_restart=True)
        worker.actor = worker.asked = worker.left = None
        worker.sent.clear()

    # ---- how many there are

    def _grow(self) -> None:
        while len(self.workers) < self.plan.least:
            self._add()
        short = self._free() < self.plan.spare and len(self.workers) + len(self.leaving) < self.plan.most
        # one that failed before is not counted on: others are added as if it were not there
        if short and not any(each.state == "starting" and not each.failures for each in self.workers):
            self._add()

    def _shrink(self, now: float) -> None:
        able = [each for each in self.workers if each.state in ("starting", "ready")]
        extra, free = len(able) - self.plan.least, self._free()
        for each in able:
            room = max(0, each.room)
            if extra > 0 and now - each.used_at > self.plan.idle_s and free - room >= self.plan.spare:
                extra, free = extra - 1, free - room
                self._leave(each)

    def _free(self) -> int:
        return sum(max(0, each.room) for each in self.workers)

    def _add(self) -> None:
        self._number += 1
        worker = Placed(self._number)
        self._start(worker)
        self.workers = [*self.workers, worker]


def app(placement: Placement) -> Starlette:
    """Sends browsers to workers, and says how these are."""

    async def send(request: Request) -> Response:
        address = placement.send()
        if address is None:
            return HTMLResponse(NOWHERE, 503, HEADERS)
        asked = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"{address}/{asked}", 307, {"Cache-Control": "no-store"})

    async def ready(_request: Request) -> Response:
        fit = placement.best() is not None
        workers = [each.told for each in (*placement.workers, *placement.leaving)]
        return JSONResponse({"ready": fit, "draining": placement.draining, "workers": workers}, 200 if fit else 503)

    async def alive(_request: Request) -> Response:
        return PlainTextResponse("alive")

    return Starlette(routes=[Route("/", send), Route("/readyz", ready), Route("/healthz", alive)])


class Front(uvicorn.Server):
    """Answers browsers until it is told to stop: then workers let viewers finish. Told twice, it stops at once."""

    def __init__(self, placement: Placement, leaving: Leaving) -> None:
        config = uvicorn.Config(
            app(placement),
            lifespan="off",
            log_config=None,  # `events` shows what it says
            access_log=False,
            server_header=False,
            limit_concurrency=placement.options.connections,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.placement, self.leaving, self.loop = placement, leaving, asyncio.get_running_loop()
        self.told, self.hurry = threading.Event(), threading.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.loop.call_soon_threadsafe(self.stop)  # and not here, where an event may just be in use

    def stop(self) -> None:
        """Told for the first time, or for the second."""
        (self.hurry if self.told.is_set() else self.told).set()

    def watch(self) -> None:
        """Look after the workers until told to stop, and until they have."""
        try:
            while not self.told.is_set():
                self.placement.look()
                self.told.wait(LOOK_S)
        finally:
            try:
                self.placement.close(self.hurry, self.leaving)
            finally:
                self.should_exit = True


async def _serve(placement: Placement, listening: socket.socket, said: Callable[[str], None], leaving: Leaving) -> None:
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    front = Front(placement, leaving)
    watching = asyncio.create_task(asyncio.to_thread(front.watch))
    try:
        events.tell("listening", address=address)
        said(address)
        await front.serve(sockets=[listening])
    finally:
        front.told.set()
        await watching


def run(
    address: str,
    options: Options,
    plan: Plan,
    target: Target,
    said: Callable[[str], None],
    leaving: Leaving = _quiet,
) -> int:
    """Serve from a Ray cluster until told to stop (SIGTERM or SIGINT): the exit code. said: is told the address;
    leaving: see `Placement.close`.

    address: of the cluster; "local" for one on this machine alone. ValueError where there is none, OSError, naming it,
    for an address to listen at that cannot be had.
    """
    try:
        import ray
    except ModuleNotFoundError as missing:
        raise ValueError('Ray is not installed: pip install "forcing[ray]"') from missing
    stop = events.show(lines=options.events)
    try:
        with _listening(options) as listening:
            _join(ray, address)
            placement = Placement(ray, options, plan, target, local=address == "local")
            asyncio.run(_serve(placement, listening, said, leaving))
    finally:
        ray.shutdown()
        stop()
    return 0


def _join(ray: Any, address: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    more = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **more)
    except (ConnectionError, RuntimeError, ValueError) as wrong:
        raise ValueError(f"there is no Ray cluster at {address!r}: {wrong}") from wrong
    except SystemExit as told:  # how Ray answers SIGTERM
        raise KeyboardInterrupt from told
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # and not Ray's, which leaves with 15


def _listening(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as wrong:
        wrong.filename = f"{options.host}:{options.port}"
        raise


def _reachable(host: str) -> str:
    """This machine's address for others, of the kind of `host`: the one that Ray knows, or by which it would send."""
    import ray

    six, known = ":" in host, ray.util.get_node_ip_address()
    if (":" in known) == six and not known.startswith(("127.", "::1", "localhost")):
        return known
    with suppress(OSError), socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("2001:db8::1" if six else "192.0.2.1", 9))  # nothing is sent
        return probe.getsockname()[0]
    return "::1" if six else "127.0.0.1"


def _cause(wrong: BaseException) -> str:
    while isinstance(wrong, BaseExceptionGroup):
        wrong = wrong.exceptions[0]
    return f"{type(wrong).__name__}: {wrong}"


def _last(wrong: Exception) -> str:
    """Ray puts the cause into the last line, after a trace or what it knows of the actor."""
    return textwrap.shorten(str(wrong).strip().rpartition("\n")[2], 200, placeholder=" ...")
