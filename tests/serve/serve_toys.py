"""A gateway with the mock engine on a free port, in a thread; and viewers who look at what their pictures say."""

import asyncio
import io
import os
import threading
import time
from contextlib import asynccontextmanager, contextmanager

import httpx
import msgspec
import numpy as np
import websockets
from PIL import Image

from forcing.serve import gateway, mock, wire
from forcing.serve.options import Options

SOON = 20.0  # seconds until something must have happened, on a busy machine
QUICK = {"port": 0, "backoff_s": 0.05, "send_s": 1.0}


class Served:
    """A running gateway. `settled` says that nothing is left of whoever was there."""

    def __init__(self, target=mock.main, **options):
        self.url, self.failed = "", None
        self.known = threading.Event()
        self.options = Options(**{**QUICK, "in_process": True, **options})
        self.thread = threading.Thread(target=self._run, args=(target,), name="gateway")
        self.thread.start()
        assert self.known.wait(SOON) and self.url, self.failed

    def _run(self, target):
        async def main():
            self.loop = asyncio.get_running_loop()
            await gateway.serve(self.options, target, self._said, self._begun)

        try:
            asyncio.run(main())
        except BaseException as failed:
            self.failed = failed
        self.known.set()

    def _said(self, url):
        self.url = url

    def _begun(self, server):
        self.server, self.gateway = server, server.gateway
        self.desk = self.gateway.desk
        self.known.set()

    @property
    def ws(self):
        return self.url.replace("http", "ws") + "/ws"

    def get(self, path, **rest):
        return httpx.get(self.url + path, timeout=SOON, **rest)

    def post(self, path, **rest):
        return httpx.post(self.url + path, timeout=SOON, **rest)

    def warm(self):
        until(lambda: self.get("/readyz").status_code == 200)
        self.base = self.counted()
        return self

    def metric(self, name, **labels):
        return self.gateway.metrics.registry.get_sample_value(f"forcing_{name}", labels) or 0.0

    def counted(self):
        tasks = asyncio.run_coroutine_threadsafe(_tasks(), self.loop).result(SOON)
        return {"tasks": tasks, "threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd"))}

    def settled(self):
        """Slots, tasks, threads and file descriptors are what they were."""

        def left():
            return self.gateway.lines, self.desk.visits, self.desk.tickets, *(each.taken for each in self.desk.engines)

        until(lambda: not any(left()), left)
        until(lambda: self.counted() == self.base, lambda: (self.counted(), self.base))

    def close(self, *, how=None):
        self.loop.call_soon_threadsafe(how or self.server.leave)
        self.thread.join(SOON)
        assert not self.thread.is_alive() and self.failed is None, self.failed


async def _tasks():
    return len(asyncio.all_tasks())


def until(true, told=lambda: "", seconds=SOON):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(0.02)


@contextmanager
def serving(target=mock.main, **options):
    served = Served(target, **options)
    try:
        yield served.warm()
    finally:
        served.close()


class Viewer:
    """Grants as the page does, and checks each picture: it is the session's, of this generation, and a new one."""

    def __init__(self, socket, window=2):
        self.socket, self.window, self.generation, self.frame, self.number = socket, window, None, -1, None
        self.told, self.pictures = [], []

    async def say(self, kind, **fields):
        await self.socket.send(msgspec.json.encode({"type": kind, **fields}).decode())

    async def hear(self):
        """The next message: a dict, or a (Picture, Marks)."""
        async with asyncio.timeout(SOON):
            data = await self.socket.recv()
        if isinstance(data, bytes):
            return await self._seen(wire.Picture.unpack(data))
        message = msgspec.json.decode(data)
        self.told.append(message)
        if message["type"] == "state" and message["generation"] != self.generation:
            self.generation, self.frame = message["generation"], -1
            if self.window and message["state"] != "closed":
                await self.say("grant", chunks=self.window)
        return message

    async def _seen(self, picture):
        marks = read(picture.image)
        self.number = self.number or picture.mark
        assert marks.session == picture.mark == self.number
        assert marks.generation == picture.generation == self.generation
        assert marks.frame == picture.frame > self.frame
        assert marks.event == picture.event
        self.frame = picture.frame
        self.pictures.append(marks)
        if self.window:
            await self.say("grant", chunks=1, frame=picture.frame, age_ms=1.0)
        return picture, marks

    async def until(self, kind, **fields):
        """The next message of a type that says so."""
        async with asyncio.timeout(SOON):
            while True:
                message = await self.hear()
                if isinstance(message, dict) and message["type"] == kind and fields.items() <= message.items():
                    return message

    async def look(self, count=1):
        """The marks of so many pictures more."""
        seen = []
        async with asyncio.timeout(SOON):
            while len(seen) < count:
                message = await self.hear()
                if not isinstance(message, dict):
                    seen.append(message[1])
        return seen

    async def begin(self, **fields):
        await self.say("begin", **fields)
        await self.until("state", state="starting")
        return await self.look()

    async def closed(self):
        """The code that the socket is closed with."""
        try:
            async with asyncio.timeout(SOON):
                while True:
                    await self.hear()
        except websockets.ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None


def read(image):
    return mock.read(np.asarray(Image.open(io.BytesIO(image)).convert("RGB")))


async def ticket(served, **rest):
    async with httpx.AsyncClient(timeout=SOON) as client:
        answer = await client.post(served.url + "/api/sessions", **rest)
    return answer.json()["ticket"]


@asynccontextmanager
async def socket(served, **rest):
    async with websockets.connect(served.ws, compression=None, close_timeout=2, ping_interval=None, **rest) as opened:
        yield opened


@asynccontextmanager
async def viewing(served, token=None, *, window=2, bye=True, **begin):
    """A viewer whose hello was answered; with a seed, one who sees pictures."""
    async with socket(served) as opened:
        viewer = Viewer(opened, window)
        await viewer.say("hello", ticket=token or await ticket(served))
        viewer.ready = await viewer.hear()
        assert viewer.ready["type"] == "ready", viewer.ready
        await viewer.until("state")
        if begin:
            await viewer.begin(**begin)
        yield viewer
        if bye:
            await viewer.say("bye")
            assert await viewer.closed() == wire.NORMAL


def pid_of(served, number=0):
    return served.desk.engines[number].life.body.process.pid
