"""A gateway for the page's tests: it speaks `wire`, has no engine, and paints what it says of a picture into it."""

import asyncio
import io
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from forcing.serve import wire

PAGE = Path(wire.__file__).parent / "page"
SIDE, BITS = 56, 14
ROOMS = wire.World(
    name="rooms",
    prompts=["multi room", "four rooms", "lava crossing"],
    keys=["left", "right", "forward", "wait"],
    width=SIDE,
    height=SIDE,
    fps=10,
    frames=1,
    chunk=1,
    steps=[1, 2, 4],
    reality=True,
)

_control = msgspec.json.Decoder(wire.Control)


def numbers(*values: int) -> np.ndarray:
    """A picture with these numbers in it, each a row of 14 squares."""
    bits = np.array([[value >> (BITS - 1 - bit) & 1 for bit in range(BITS)] for value in values], np.uint8)
    small = np.zeros((BITS, BITS), np.uint8)
    small[: 3 * len(values) : 3] = bits
    return np.repeat(np.repeat(np.repeat(small[..., None] * 255, 3, 2), 4, 0), 4, 1)


def encoded(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", compress_level=1)
    return data.getvalue()


@dataclass(eq=False)
class Viewing:
    """A session. generation: 0 before it began. prompts: from which latent frame each was so.

    once: a chunk is owed, as it went back while paused. letters: told before anyone came.
    """

    mark: int
    generation: int = 0
    frame: int = 0
    event: int = 0
    credit: int = 0
    held: list[str] = field(default_factory=list)
    tapped: list[str] = field(default_factory=list)
    begun: wire.Begin | None = None
    asked: list[wire.Ask] = field(default_factory=list)
    prompts: dict[int, str | None] = field(default_factory=dict)
    beside: bool = False
    paused: bool = False
    once: bool = False
    letters: list[wire.Told] = field(default_factory=list)
    socket: WebSocket | None = None


def painted(viewing: Viewing) -> tuple[np.ndarray, np.ndarray | None]:
    """What is shown next, and what is beside it."""
    picture = numbers(viewing.generation, viewing.frame, viewing.event, viewing.mark)
    return picture, 255 - picture if viewing.beside else None


class Strict(StaticFiles):
    """The page, under the policy that it is served with in earnest."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Content-Security-Policy"] = "default-src 'self'; img-src 'self' blob:; form-action 'none'"
        return response


class Fake:
    """`with Fake() as fake:` serves at `fake.url`; what it was told lies in `fake.heard`.

    queue: positions that are told before a place is free. full: how many are turned away first. token: that is needed.
    deaf: kinds of messages that it does not obey.
    """

    def __init__(
        self, world: wire.World = ROOMS, paint: Callable[[Viewing], tuple] = painted, queue: int = 0, full: int = 0
    ) -> None:
        self.world, self.paint, self.queue, self.full = world, paint, queue, full
        self.token: str | None = None
        self.loading, self.unfit = False, ""
        self.heard: list[wire.Control] = []
        self.images: list[bytes] = []
        self.sessions: dict[str, Viewing] = {}
        self.places: dict[str, int] = {}
        self.deaf: Any = ()
        routes = [
            Route("/api/sessions", self._admit, methods=["POST"]),
            Route("/api/sessions/{ticket}", self._place),
            Route("/api/images", self._upload, methods=["POST"]),
            Route("/api/saves", self._save, methods=["POST"]),
            Route("/api/exports/{name}", self._export),
            WebSocketRoute("/ws", self._socket),
            Mount("/", Strict(directory=PAGE, html=True)),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), port=0, log_level="warning", ws="websockets-sansio", lifespan="off"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Fake":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(10)

    def said(self, kind: type) -> list:
        return [message for message in self.heard if isinstance(message, kind)]

    def do(self, coroutine: Callable[[Viewing], object]) -> None:
        """Run coroutine(session) for every session that has a socket, in the server's thread."""
        for viewing in [each for each in self.sessions.values() if each.socket is not None]:
            asyncio.run_coroutine_threadsafe(coroutine(viewing), self.loop).result(5)  # type: ignore[arg-type]

    def tell(self, message: wire.Told) -> None:
        self.do(lambda viewing: self._tell(viewing, message))

    def hang_up(self, code: int = wire.GOING_AWAY, reason: str = "") -> None:
        self.do(lambda viewing: viewing.socket.close(code, reason))

    def _run(self) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.server.serve())
        self.loop.close()

    # ---- HTTP

    def _open(self) -> str:
        ticket = f"ticket-{len(self.sessions) + 1}"
        self.sessions[ticket] = Viewing(len(self.sessions) + 1)
        return ticket

    async def _admit(self, request: Request) -> Response:
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"message": "This server asks for a token."}, 401)
        if self.unfit:
            return JSONResponse({"error": "engine", "message": self.unfit}, 503, {"Retry-After": "60"})
        if self.full:
            self.full -= 1
            return JSONResponse({"message": "full"}, 503, {"Retry-After": "1"})
        ticket = self._open()
        if self.queue:
            self.places[ticket] = self.queue
            queued = {"ticket": ticket, "position": self.queue, "eta_s": 20, "loading": self.loading}
            return JSONResponse(queued, 202)
        return JSONResponse({"ticket": ticket, "url": "/ws"}, 201)

    async def _place(self, request: Request) -> Response:
        ticket = request.path_params["ticket"]
        self.places[ticket] -= 1
        if self.places[ticket]:
            queued = {"ticket": ticket, "position": self.places[ticket], "eta_s": 10, "loading": self.loading}
            return JSONResponse(queued, 202)
        return JSONResponse({"ticket": ticket, "url": "/ws"})

    async def _upload(self, request: Request) -> Response:
        self.images.append(await request.body())
        return JSONResponse({"id": f"image-{len(self.images)}"}, 201)

    async def _save(self, request: Request) -> Response:
        if await request.body() != b"a session":
            return JSONResponse({"message": "not a session"}, 415)
        return JSONResponse({"id": "save-1", "prompt": "four rooms", "seed": 77, "steps": 2}, 201)

    async def _export(self, request: Request) -> Response:
        return Response(f"a {request.path_params['name'].removesuffix('.file')}".encode())

    # ---- the socket

    async def _tell(self, viewing: Viewing, message: wire.Told) -> None:
        if viewing.socket is not None:
            await viewing.socket.send_text(msgspec.json.encode(message).decode())

    async def _socket(self, socket: WebSocket) -> None:
        await socket.accept()
        with suppress(WebSocketDisconnect):
            hello = _control.decode(await socket.receive_text())
            self.heard.append(hello)
            viewing = self.sessions.get(hello.ticket)
            if viewing is None:
                wrong = wire.Wrong("bad_ticket", "This session is not known here.")
                await socket.send_text(msgspec.json.encode(wrong).decode())
                await socket.close(wire.POLICY)
                return
            viewing.socket, viewing.credit = socket, 0
            await self._tell(viewing, wire.Ready(f"s{viewing.mark}", hello.ticket, self.world))
            for letter in viewing.letters:
                await self._tell(viewing, letter)
            viewing.letters.clear()
            await self._stands(viewing)
            made = asyncio.create_task(self._make(viewing))
            try:
                while True:
                    await self._heard(viewing, await socket.receive_text())
            finally:
                made.cancel()
                viewing.socket = None

    async def _stands(self, viewing: Viewing) -> None:
        state = "starting" if viewing.generation == 0 else "paused" if viewing.paused else "live"
        await self._tell(viewing, wire.Stands(state, viewing.generation))

    async def _heard(self, viewing: Viewing, text: str) -> None:
        try:
            said = _control.decode(text)
        except msgspec.ValidationError as wrong:
            await self._tell(viewing, wire.Wrong("bad_message", f"not a control: {wrong}"))
        else:
            await self._obey(viewing, said)

    async def _obey(self, viewing: Viewing, said: wire.Control) -> None:
        self.heard.append(said)
        if isinstance(said, self.deaf):
            return
        match said:
            case wire.Begin() if (wrong := self._wrong(said)) is not None:
                await self._tell(viewing, wrong)
            case wire.Begin():
                viewing.begun, viewing.frame, viewing.paused, viewing.beside = said, 0, False, said.reality
                viewing.prompts = {0: said.prompt}
                await self._anew(viewing)
            case wire.Ask():
                viewing.asked.append(said)
                await self._tell(viewing, wire.Accepted(said.id))
            case wire.Press():
                viewing.event, viewing.held, viewing.tapped = said.id, said.held, viewing.tapped + said.tapped
            case wire.Grant():
                viewing.credit += said.chunks
            case wire.Pause():
                viewing.paused = said.on
                await self._stands(viewing)
            case wire.Back():
                went = self._back(viewing, said.frame)
                await self._stands(viewing)
                await self._tell(viewing, went)
            case wire.Fork():
                ticket = self._open()
                other = self.sessions[ticket]
                other.generation, other.frame, other.prompts = viewing.generation, viewing.frame, {**viewing.prompts}
                other.begun, other.event = viewing.begun, viewing.event
                if said.frame is not None:
                    other.letters.append(self._back(other, said.frame))
                await self._tell(viewing, wire.Ticket(said.id, ticket))
            case wire.Export(what=what):
                await self._tell(viewing, wire.Exported(said.id, f"/api/exports/{what}.file"))
            case wire.Ping():
                await self._tell(viewing, wire.Pong(said.id, time.monotonic_ns() // 1000))

    def _wrong(self, said: wire.Begin) -> wire.Wrong | None:
        if self.world.prompts and said.prompt not in self.world.prompts:
            return wire.Wrong("bad_prompt", f"prompt is {said.prompt!r}: choose another")
        if said.steps is not None and said.steps not in self.world.steps:
            return wire.Wrong("bad_steps", f"steps is {said.steps}: choose another")
        if said.image is not None and said.image not in [f"image-{n + 1}" for n, _ in enumerate(self.images)]:
            return wire.Wrong("bad_image", f"there is no image {said.image!r}")
        return None

    def _back(self, viewing: Viewing, frame: int) -> wire.Went:
        """Under the prompt of the frame before, and without the environment, which may be lost on the way."""
        viewing.prompts = {at: text for at, text in viewing.prompts.items() if at < frame or at == 0}
        viewing.frame, viewing.beside, viewing.once = frame * self.world.frames, False, viewing.paused
        viewing.generation, viewing.credit = viewing.generation + 1, 0
        return wire.Went(frame, list(viewing.prompts.values())[-1], viewing.generation)

    async def _anew(self, viewing: Viewing) -> None:
        viewing.generation, viewing.credit = viewing.generation + 1, 0
        await self._stands(viewing)

    async def _make(self, viewing: Viewing) -> None:
        pictures = self.world.frames * self.world.chunk
        for turn in range(1 << 30):
            await asyncio.sleep(pictures / self.world.fps)
            if viewing.credit and (viewing.once or not viewing.paused):
                viewing.credit, viewing.once = viewing.credit - 1, False
                await self._chunk(viewing, pictures)
            if turn % 10 == 0:
                await self._tell(viewing, wire.Stats(self.world.fps, 12.0, 1))

    async def _chunk(self, viewing: Viewing, pictures: int) -> None:
        latent, event = viewing.frame // self.world.frames, viewing.event
        for asked in viewing.asked:
            viewing.prompts[latent] = asked.text
            await self._tell(viewing, wire.Applied(asked.id, latent, viewing.generation))
        viewing.asked.clear()
        took = 20_000 + viewing.frame
        for _ in range(pictures):
            picture, beside = self.paint(viewing)
            message = wire.Picture(
                viewing.generation,
                viewing.frame,
                viewing.frame // self.world.frames,
                time.monotonic_ns() // 1000,
                event,
                took,
                viewing.mark,
                encoded(picture),
                b"" if beside is None else encoded(beside),
                wire.PNG,
            )
            await viewing.socket.send_bytes(message.pack())
            viewing.frame += 1
