"""Sessions for browsers: admission by HTTP, a WebSocket for each session, and engines in processes of their own.

No torch here: what computes is elsewhere, and may crash.
"""

import asyncio
import hmac
import ipaddress
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from types import FrameType
from urllib.parse import urlsplit

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol

from forcing import files
from forcing.serve import events, exchange, saves, static, wire
from forcing.serve.admission import Desk, Full
from forcing.serve.images import repainted
from forcing.serve.line import Line
from forcing.serve.metrics import Metrics
from forcing.serve.options import Options
from forcing.serve.supervisor import Supervisor, Target

MOST_ASKED = 4096  # bytes of a request for a session
MOST_UPLOAD = 8_000_000  # bytes of an image
UPLOAD_S = 30.0
TICK_S = 0.2
MOST_MESSAGE = 64 * 1024  # bytes; longer ones close the socket before they are read
MOST_UPLOADS = 8  # images that are read at the same time
REFUSED_S = 5.0  # between two words on being full
SILENT_S = 15.0  # for a connection to ask for something
LOCAL = ("localhost", socket.gethostname().lower(), f"{socket.gethostname().lower()}.local")
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "worker-src 'self' blob:; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Asked(msgspec.Struct, frozen=True):
    """Of a request for a session."""

    token: str | None = None


class Denied(Exception):
    """A request that is not served."""

    def __init__(self, status: int, error: str, message: str, retry_s: int | None = None) -> None:
        super().__init__(message)
        headers = None if retry_s is None else {"Retry-After": str(retry_s)}
        self.response = JSONResponse({"error": error, "message": message}, status, headers)


def _quiet(_viewers: int, _seconds: float) -> None:
    """Nobody wants to know."""


class Gateway:
    """Desk, engines and routes. `live` is its life; `app` can be served, or mounted elsewhere, within it.

    drop: given a peer's address, ends its connection at once; sweep: ends those that never said anything; stop: ends
    the server. leaving: is told how many viewers there are, and for how many seconds at most, when it is to stop.
    """

    def __init__(self, options: Options, target: Target) -> None:
        self.options, self.metrics = options, Metrics()
        self.desk = Desk(options, self.metrics)
        self.supervisor = Supervisor(options, target, self.metrics, self._heard, self._lost)
        self.desk.engines = self.supervisor.engines
        self.lines: set[Line] = set()
        self.drop: Callable[[tuple[str, int]], Callable[[], None]] = lambda _: lambda: None
        self.stop: Callable[[], None] = lambda: None
        self.sweep: Callable[[], None] = lambda: None
        self.leaving: Callable[[int, float], None] = _quiet
        self.unfit = ""  # why no engine can serve, and none ever did
        self.uploads, self.refused_at = 0, 0.0
        self.files = ThreadPoolExecutor(2, "images")
        self._drained: asyncio.Task[None] | None = None
        routes = [
            Route("/api/sessions", self.enter, methods=["POST"]),
            Route("/api/sessions/{ticket}", self.waits),
            Route("/api/images", self.upload, methods=["POST"]),
            Route("/api/saves", self.open, methods=["POST"]),
            Route("/api/exports/{name}.{kind}", self.export),
            Route("/healthz", self.healthy),
            Route("/readyz", self.ready),
            Route("/metrics", self.measured),
            WebSocketRoute("/ws", self.connect),
            Route("/{name:path}", static.page),
        ]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=options.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
        app = Starlette(
            routes=routes, middleware=[cors] if options.origins else [], exception_handlers={Denied: _denied}
        )
        self.app: ASGIApp = _with_headers(app)

    @asynccontextmanager
    async def live(self) -> AsyncIterator[None]:
        """Engines are started, and looked after; they are gone in the end."""
        self.supervisor.start()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.supervisor.watch()), group.create_task(self._tick())]
                yield
                for task in tasks:
                    task.cancel()
        finally:
            for visit in list(self.desk.visits.values()):
                self.desk.close(visit, wire.GOING_AWAY, "the gateway stops")
            await self.supervisor.close()
            self.files.shutdown()

    def drain(self) -> None:
        """Begin nothing new, let viewers finish for a while, close their sockets, stop."""
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        desk, loop = self.desk, asyncio.get_running_loop()
        desk.draining = True
        events.tell("draining", sessions=len(desk.visits), at_most_s=self.options.drain_s)
        self.metrics.draining.set(1)
        viewers = sum(visit.tether is not None for visit in desk.visits.values())
        if viewers:
            self.leaving(viewers, self.options.drain_s)
        for visit in desk.visits.values():
            told = f"the gateway stops in {self.options.drain_s:g} s"
            visit.tell(wire.Stands("draining", visit.generation, told))
        end = loop.time() + self.options.drain_s
        while self.lines and loop.time() < end:
            await asyncio.sleep(0.05)
        for line in self.lines:
            line.tether.leave(wire.GOING_AWAY, "the gateway stops")
        end = loop.time() + 2 * self.options.send_s
        while self.lines and loop.time() < end:
            await asyncio.sleep(0.02)
        self.stop()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.desk.tick()
                self.sweep()
            except Exception as wrong:  # of one session, perhaps: the others are looked after
                events.warn("tick failed", why=f"{type(wrong).__name__}: {wrong}")

    def _lost(self, engine: exchange.Engine) -> None:
        self.desk.lost(engine)
        if self.desk.world is None and all(each.state == "broken" for each in self.desk.engines):
            self.unfit = engine.why
            self.stop()

    def _heard(self, engine: exchange.Engine, report: exchange.orders.AnyReport) -> None:
        exchange.heard(self.desk, engine, report)

    # ---- routes

    async def enter(self, request: Request) -> Response:
        self._own(request)
        body = await _body(request, MOST_ASKED)
        try:
            asked = msgspec.json.decode(body or b"{}", type=Asked)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            raise Denied(400, "bad_message", 'the body is {} or {"token": "..."}') from None
        self._known(request, asked.token)
        try:
            visit = self.desk.enter()
        except Full as full:
            self.metrics.refused.labels("draining" if self.desk.draining else "full").inc()
            if (now := self.desk.clock()) - self.refused_at > REFUSED_S:  # or a crowd would fill the log
                self.refused_at = now
                say = events.tell if self.desk.draining else events.warn
                say("session refused", why=str(full))
            raise Denied(503, full.code, str(full), full.retry_s) from None
        place = self._place(visit)
        return JSONResponse(place, 201 if "url" in place else 202)

    async def waits(self, request: Request) -> Response:
        visit = self.desk.tickets.get(request.path_params["ticket"])
        if visit is None:
            raise Denied(404, "bad_ticket", "there is no such ticket (any more)")
        visit.touched = self.desk.clock()
        return JSONResponse(self._place(visit))

    def _place(self, visit: exchange.Visit) -> dict[str, object]:
        position = self.desk.position(visit)
        place: dict[str, object] = {"ticket": visit.ticket, "state": visit.state, "position": position}
        waits = {"eta_s": self.desk.eta(position), "loading": self.desk.loads}
        return {**place, **waits} if position else {**place, "url": "ws"}

    async def upload(self, request: Request) -> Response:
        self._own(request)
        self._known(request, None)
        if self.uploads >= MOST_UPLOADS:
            raise Denied(503, "busy", f"{self.uploads} images are being read already", 2)
        self.uploads += 1
        try:
            body = await _body(request, MOST_UPLOAD)
            loop = asyncio.get_running_loop()
            data, width, height = await loop.run_in_executor(self.files, repainted, body)
        except ValueError as wrong:
            raise Denied(415, "bad_image", str(wrong)) from None
        finally:
            self.uploads -= 1
        return JSONResponse({"id": self.desk.images.put(data), "width": width, "height": height}, 201)

    async def open(self, request: Request) -> Response:
        self._own(request)
        self._known(request, None)
        body = await _body(request, saves.MOST)
        try:
            save = saves.read(body, {engine.digest for engine in self.desk.engines})
        except ValueError as wrong:
            raise Denied(415, "bad_save", str(wrong)) from None
        told = {"id": self.desk.saves.put(save.data), "prompt": save.prompt, "seed": save.seed, "steps": save.steps}
        return JSONResponse(told, 201)

    async def export(self, request: Request) -> Response:
        name, kind = request.path_params["name"], request.path_params["kind"]
        exports = self.desk.exports
        data = exports.get(name) if request.method == "HEAD" else exports.take(name)
        if data is None:
            raise Denied(404, "not_kept", "there is no such file: each is served once, within minutes")
        headers = {"Content-Disposition": f'attachment; filename="session.{"mp4" if kind == "mp4" else "forcing"}"'}
        return Response(data, media_type="video/mp4" if kind == "mp4" else "application/octet-stream", headers=headers)

    async def healthy(self, _request: Request) -> Response:
        return JSONResponse({"alive": True})

    async def ready(self, _request: Request) -> Response:
        engines = [{"state": each.state, "sessions": len(each.taken), "why": each.why} for each in self.desk.engines]
        fit = not self.desk.draining and any(each.state == "warm" for each in self.desk.engines)
        told = {"ready": fit, "draining": self.desk.draining, "engines": engines}
        return JSONResponse(told, 200 if fit else 503)

    async def measured(self, _request: Request) -> Response:
        desk, metrics = self.desk, self.metrics
        for gauge, of in ((metrics.sessions, desk.visits.values()), (metrics.engines, desk.engines)):
            gauge.clear()
            for state, count in Counter(_state(each) for each in of).items():
                gauge.labels(state).set(count)
        metrics.slots.set(sum(engine.slots for engine in desk.engines if engine.state == "warm"))
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def connect(self, websocket: WebSocket) -> None:
        try:
            self._own(websocket)
        except Denied:
            await websocket.close(wire.POLICY)  # before it is accepted: the browser sees a plain refusal
            return
        client = websocket.client
        line = Line(websocket, self.desk, self.drop((client.host, client.port)) if client else lambda: None)
        self.lines.add(line)
        try:
            await line.run()
        finally:
            self.lines.discard(line)

    # ---- who may

    def _own(self, connection: HTTPConnection) -> None:
        """Only under a name of ours, and only pages of ours or those that are listed; other programs say no origin."""
        origin, host = connection.headers.get("origin"), connection.headers.get("host", "")
        # A page elsewhere can have its own name point here, and would then be of our origin.
        name = urlsplit(f"//{host}").hostname or ""
        listed = {urlsplit(each).hostname for each in self.options.origins}
        if not (_is_address(name) or name in listed | {*LOCAL, self.options.host.lower()}):
            raise Denied(403, "bad_host", f"this server is not called {name[:100]!a}; --origin says what else it is")
        if origin is None or origin in self.options.origins:
            return
        page = urlsplit(origin)
        if page.scheme not in ("http", "https") or page.netloc != host:
            raise Denied(403, "bad_origin", f"a page of {origin[:100]!a} may not connect here")

    def _known(self, request: Request, token: str | None) -> None:
        if self.options.token is None:
            return
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        said = secret if scheme.lower() == "bearer" else token or ""
        if not hmac.compare_digest(said.strip().encode("utf-8", "replace"), self.options.token.encode()):
            raise Denied(401, "bad_token", "the token is missing or wrong")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _state(each: exchange.Visit | exchange.Engine) -> str:
    if isinstance(each, exchange.Visit) and each.greeted and each.tether is None:
        return "detached"
    return each.state


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(UPLOAD_S):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise Denied(413, "too_large", f"it has more than {most / 1e6:g} MB, the most that is taken")
            return bytes(body)
    raise Denied(408, "too_slow", f"not there after {UPLOAD_S:g} s")


async def _denied(_request: Request, denied: Exception) -> Response:
    assert isinstance(denied, Denied)
    return denied.response


def _with_headers(app: ASGIApp) -> ASGIApp:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in said]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await app(scope, receive, answer)

    return serve


class Server(uvicorn.Server):
    """One that lets viewers finish when it is told to stop; told twice, it stops."""

    def __init__(self, gateway: Gateway) -> None:
        config = uvicorn.Config(
            gateway.app,
            lifespan="off",
            ws="websockets-sansio",
            ws_max_size=MOST_MESSAGE,
            ws_per_message_deflate=False,  # pictures are compressed already
            ws_ping_interval=None,  # viewers say something often enough
            http="h11",
            proxy_headers=False,  # the peer is whoever is connected: `drop` finds its connection by that
            limit_concurrency=gateway.options.connections,
            log_config=None,  # `events` shows what it says
            access_log=False,  # it would hold tickets
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.gateway = gateway
        self.loop: asyncio.AbstractEventLoop | None = None
        self.silent: dict[H11Protocol, float] = {}
        gateway.drop, gateway.stop, gateway.sweep = self.drop, self.leave, self.sweep

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.loop is None or self.gateway.desk.draining:
            self.should_exit = True
        else:
            self.loop.call_soon_threadsafe(self.gateway.drain)

    def leave(self) -> None:
        self.should_exit = True

    def sweep(self) -> None:
        """End connections that have asked for nothing, or for half of something, for too long."""
        now, before = time.monotonic(), self.silent
        silent = [
            each for each in self.server_state.connections if isinstance(each, H11Protocol) and each.cycle is None
        ]
        self.silent = {each: before.get(each, now) for each in silent}
        for each, since in self.silent.items():
            if now - since > SILENT_S and each.transport is not None:
                each.transport.abort()

    def drop(self, peer: tuple[str, int]) -> Callable[[], None]:
        """Closing waits until the peer has read everything; this does not wait."""
        for connection in self.server_state.connections:
            transport = connection.transport
            if transport is not None and transport.get_extra_info("peername", ())[:2] == peer:
                return transport.abort
        return lambda: None


async def serve(
    options: Options,
    target: Target,
    said: Callable[[str], None] = lambda _: None,
    begun: Callable[[Server], None] = lambda _: None,
    leaving: Callable[[int, float], None] = _quiet,
) -> None:
    """Serve until told to stop. target: the main function of an engine. said: is told the address; begun: the server;
    leaving: see `Gateway`.

    OSError, naming it, for an address that cannot be had or a folder that cannot be written to. ValueError where no
    engine can serve.
    """
    if options.logs is not None:
        files.probe(options.logs / "journal")
    gateway = Gateway(options, target)
    server = Server(gateway)
    server.loop, gateway.leaving = asyncio.get_running_loop(), leaving
    with _listening(options) as listening:
        async with gateway.live():
            host, port = listening.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            events.tell("listening", address=address)
            said(address)
            begun(server)
            await server.serve(sockets=[listening])
    if gateway.unfit:
        raise ValueError(f"the world cannot be served: {gateway.unfit}")


def run(
    options: Options,
    target: Target,
    said: Callable[[str], None] = lambda _: None,
    leaving: Callable[[int, float], None] = _quiet,
) -> int:
    """Serve until told to stop (SIGTERM or SIGINT): the exit code. See `serve`."""
    stop = events.show(lines=options.events)
    try:
        asyncio.run(serve(options, target, said, leaving=leaving))
    finally:
        stop()
    return 0


def _listening(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as wrong:
        wrong.filename = f"{options.host}:{options.port}"
        raise
