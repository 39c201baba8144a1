"""Many machines: Ray places, restarts and adds workers; browsers are sent to them and talk to them directly.

A worker is a whole gateway with its engines, as an actor on some machine of a Ray cluster. What listens here answers
the first request of a browser alone, by sending it to the worker with most places free: no picture passes through Ray.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from forcing.serve import events
from forcing.serve.gateway import Server, serve
from forcing.serve.options import Options
from forcing.serve.supervisor import Target

LOOK_S = 1.0  # between two looks at the workers
SILENT_S = 10.0  # for a worker to answer


@dataclass(frozen=True)
class Plan:
    """least, most: workers. spare: places that are kept free, by adding workers. idle_s: an empty one beyond `least`
    is given up after so long. cpus, gpus: that each worker takes.
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


class Worker:
    """A gateway on whichever machine this is. It is a Ray actor: restarted where its process or machine dies."""

    def __init__(self, options: Options, target: Target) -> None:
        self.options, self.target = replace(options, port=0), target
        events.show(lines=options.events)
        self.address = ""
        self.server: Server | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._begun.wait(SILENT_S)

    def status(self) -> dict[str, Any]:
        """Where it is, whether it can serve, and how many places are taken and free."""
        if self.server is None:
            return {"address": "", "ready": False, "taken": 0, "free": 0}
        desk = self.server.gateway.desk
        free = 0 if desk.draining else sum(each.free for each in desk.engines)
        ready = desk.world is not None and not desk.draining
        return {"address": self.address, "ready": ready, "taken": len(desk.visits), "free": free if ready else 0}

    def drain(self) -> None:
        """Let viewers finish, then stop."""
        if self.server is not None and self.server.loop is not None:
            self.server.loop.call_soon_threadsafe(self.server.gateway.drain)

    def _serve(self) -> None:
        def begun(server: Server) -> None:
            self.server = server
            self._begun.set()

        asyncio.run(serve(self.options, self.target, self._said, begun))

    def _said(self, address: str) -> None:
        port = address.rpartition(":")[2]
        host = "127.0.0.1" if self.options.host.startswith("127.") else _reachable()
        self.address = f"http://{host}:{port}"


@dataclass(eq=False)
class Placed:
    """A worker as it is seen from here. empty: since when nobody is there."""

    actor: Any
    status: dict[str, Any]
    empty: float


class Placement:
    """Workers in a Ray cluster, as many as are needed."""

    def __init__(self, ray: Any, options: Options, plan: Plan, target: Target) -> None:
        self.ray, self.options, self.plan, self.target = ray, options, plan, target
        self.workers: list[Placed] = []
        self._actor = ray.remote(Worker)

    def look(self) -> None:
        """Hear how the workers are; add one where places run short, give up one that nobody has needed for long."""
        now = time.monotonic()
        while len(self.workers) < self.plan.least:
            self._add()
        for each in self.workers:
            each.status = self._heard(each)
            each.empty = each.empty if not each.status["taken"] else now
        free = sum(each.status["free"] for each in self.workers)
        starting = any(not each.status["ready"] for each in self.workers)
        if free < self.plan.spare and not starting and len(self.workers) < self.plan.most:
            self._add()
        idle = [each for each in self.workers if now - each.empty > self.plan.idle_s]
        for each in idle[: max(0, len(self.workers) - self.plan.least)]:
            if free - each.status["free"] >= self.plan.spare:
                free -= each.status["free"]
                self._drop(each)

    def best(self) -> str | None:
        """The address of the worker with most places free."""
        ready = [each for each in self.workers if each.status["ready"] and each.status["free"] > 0]
        most = max(ready, key=lambda each: each.status["free"], default=None)
        return None if most is None else most.status["address"]

    def close(self) -> None:
        for each in list(self.workers):
            self._drop(each)

    def _add(self) -> None:
        options = {"num_cpus": self.plan.cpus, "num_gpus": self.plan.gpus, "max_restarts": -1, "max_concurrency": 4}
        actor = self._actor.options(**options).remote(self.options, self.target)
        self.workers.append(Placed(actor, {"address": "", "ready": False, "taken": 0, "free": 0}, time.monotonic()))

    def _drop(self, worker: Placed) -> None:
        self.workers.remove(worker)
        self.ray.kill(worker.actor, no_restart=True)

    def _heard(self, worker: Placed) -> dict[str, Any]:
        try:
            return self.ray.get(worker.actor.status.remote(), timeout=SILENT_S)
        except (self.ray.exceptions.RayError, TimeoutError):  # it is being restarted, or its machine is gone
            return {"address": "", "ready": False, "taken": worker.status["taken"], "free": 0}


def app(placement: Placement) -> Starlette:
    """Sends browsers to workers, and says how these are."""

    async def send(request: Request) -> Response:
        address = placement.best()
        if address is None:
            told = "all places are taken, or no worker is ready yet: try again in a moment\n"
            return PlainTextResponse(told, 503, {"Retry-After": "2"})
        return RedirectResponse(f"{address}{request.url.path}", 307, {"cache-control": "no-store"})

    async def ready(_request: Request) -> Response:
        return JSONResponse({"workers": [each.status for each in placement.workers]}, 200 if placement.best() else 503)

    async def alive(_request: Request) -> Response:
        return PlainTextResponse("alive")

    return Starlette(routes=[Route("/", send), Route("/readyz", ready), Route("/healthz", alive)])


def run(address: str, options: Options, plan: Plan, target: Target, said: Callable[[str], None]) -> int:
    """Serve from a Ray cluster until told to stop. address: of the cluster; "local" for one on this machine alone."""
    try:
        import ray
    except ModuleNotFoundError as missing:
        raise ValueError('Ray is not installed: pip install "forcing[ray]"') from missing
    where: dict[str, Any] = {"include_dashboard": False} if address == "local" else {"address": address}
    ray.init(**where, log_to_driver=False, configure_logging=False)
    placement, over = Placement(ray, options, plan, target), threading.Event()

    def watch() -> None:
        while not over.is_set():
            placement.look()
            over.wait(LOOK_S)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        with socket.create_server((options.host, options.port)) as listening:
            said("http://{}:{}".format(*listening.getsockname()[:2]))
            config = uvicorn.Config(app(placement), log_level="warning", access_log=False, lifespan="off")
            with suppress(KeyboardInterrupt):  # it was told to stop, and has
                uvicorn.Server(config).run(sockets=[listening])
    finally:
        over.set()
        watching.join(LOOK_S + SILENT_S)
        placement.close()
        ray.shutdown()
    return 0


def _reachable() -> str:
    """This machine's address for others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: the system only says by which address it would be
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
