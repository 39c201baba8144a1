"""Many viewers at once over WebSockets, some of them slow and some cut off, and what each of them saw.

One process and one event loop: how late that loop itself is belongs to the result.
"""

import asyncio
import http.client
import io
import socket
import struct
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import numpy as np
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from forcing.serve import mock, wire
from forcing.serve.local import Usage

Kind = Literal["healthy", "slow", "killed"]
KINDS: tuple[Kind, ...] = ("healthy", "slow", "killed")

WINDOW, MOST_AHEAD = 2, 8  # chunks that are granted ahead: as the page does, and as many as a gateway takes
PAINTED = 16  # one picture of so many is read, where the mock engine has painted them
ANSWER_S, PING_S, LAG_S = 10.0, 1.0, 0.02
PRESS_S, READ_S, SLEEP_S, AWAY_S = (0.5, 1.5), (1.0, 3.0), (2.0, 4.0), (0.1, 1.0)
LIVE_S = (0.15, 0.3)  # of the whole time, before a viewer is cut off
LATE_S = 2.0  # before the end, nobody is cut off any more
LINGER = struct.pack("ii", 1, 0)  # closing resets the connection: nothing is said

_letters = msgspec.json.Decoder(dict[str, Any])
_control = msgspec.json.Encoder().encode


class Unknown(Exception):
    """Whoever asks is not let in: the token is missing or wrong."""


@dataclass(frozen=True)
class Plan:
    """sessions: viewers; of them `slow` stop reading for seconds, and `kill` are cut off and come back.

    ramp: seconds in which all of them come. lead: seconds that a viewer's screen waits before the first picture.
    """

    url: str
    sessions: int = 8
    slow: int = 0
    kill: int = 0
    seconds: float = 30.0
    seed: int = 0
    token: str | None = None
    ramp: float = 1.0
    lead: float = 0.1

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"url is {self.url!r}: write it as http://127.0.0.1:8000")
        if self.sessions < 1:
            raise ValueError(f"sessions is {self.sessions}: it must be at least 1")
        for name in ("slow", "kill"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if self.slow + self.kill >= self.sessions:
            least = f"more than slow and kill together, which are {self.slow + self.kill}"
            raise ValueError(f"sessions is {self.sessions}: it must be {least}, or nobody healthy is left")
        if not 1 <= self.seconds <= 86400:
            raise ValueError(f"seconds is {self.seconds:g}: it must be from 1 to 86400")
        for name in ("ramp", "lead"):
            if not 0 <= getattr(self, name) <= 60:
                raise ValueError(f"{name} is {getattr(self, name):g} s: it must be from 0 to 60")

    def kind(self, number: int) -> Kind:
        """Of a viewer, numbered from 0."""
        healthy = self.sessions - self.slow - self.kill
        return "healthy" if number < healthy else "slow" if number < healthy + self.slow else "killed"


def _ms() -> "array[float]":
    return array("d")


@dataclass
class Seen:
    """What one viewer saw; times in ms. between: from chunk to chunk; applied: from a key to a picture that heard it.

    first: from asking for a session to a picture. back: from coming back to a picture. foreign: pictures of another
    session; stale: of a moment that was over, or shown before. read: pictures whose painted numbers were read.
    """

    first: float | None = None
    between: "array[float]" = field(default_factory=_ms)
    applied: "array[float]" = field(default_factory=_ms)
    age: "array[float]" = field(default_factory=_ms)
    back: "array[float]" = field(default_factory=_ms)
    pictures: int = 0
    read: int = 0
    foreign: int = 0
    stale: int = 0
    kills: int = 0
    unheard: int = 0
    live_s: float = 0.0  # from the first picture to the end
    errors: list[str] = field(default_factory=list)


@dataclass
class Screen:
    """Shows pictures evenly, the first one `lead` seconds after it came. dry: how often one was not there in time.

    stood: seconds without the next picture, until so much lead was there again.
    """

    period: float
    lead: float
    due: float | None = None
    dry: int = 0
    stood: float = 0.0

    def came(self, now: float) -> None:
        if self.due is None:
            self.due = now + self.lead
        elif now > self.due:
            self.dry += 1
            self.stood += now + self.lead - self.due
            self.due = now + self.lead
        self.due += self.period


class Viewer:
    """One browser's part. marks: whose session a mark is, of all viewers."""

    def __init__(self, number: int, plan: Plan, marks: dict[int, int]) -> None:
        self.number, self.plan, self.marks, self.kind = number, plan, marks, plan.kind(number)
        self.seen, self.random = Seen(), np.random.default_rng([plan.seed, number])
        self.screen: Screen | None = None
        self.world: Mapping[str, Any] = {}
        self.now = asyncio.get_running_loop().time
        self.generation, self.frame, self.mark, self.event = -1, -1, -1, 0
        self.offsets: deque[tuple[float, float]] = deque(maxlen=8)  # seconds of a round trip, and our clock's lead
        self.pressed: dict[int, float] = {}
        self.pings: dict[int, float] = {}
        self.came_at = self.end = 0.0
        self.back_at: float | None = None
        self._anew()

    def _anew(self) -> None:
        """Another generation, or another socket: nothing is granted, and nothing was shown."""
        self.granted = self.chunks = 0
        self.last: wire.Picture | None = None
        if self.screen is not None:
            self.screen.due = None

    async def watch(self, end: float) -> None:
        """Come, look until `end` (of the loop's clock), say good-bye."""
        self.end = end
        scope = asyncio.timeout_at(end)
        try:
            async with scope:
                await asyncio.sleep(self.plan.ramp * self.number / self.plan.sessions)
                self.came_at = self.now()
                ticket = await self._ticket()
                while True:
                    ticket = await self._visit(ticket)
                    await asyncio.sleep(self.random.uniform(*AWAY_S))
                    self.back_at = self.now()
        except (OSError, WebSocketException, http.client.HTTPException, ValueError) as wrong:
            if not scope.expired():
                self.seen.errors.append(_told(wrong))
        self.seen.unheard = sum(self.now() - at > LATE_S for at in self.pressed.values())
        if self.seen.first is not None:
            self.seen.live_s = min(self.now(), end) - self.came_at - self.seen.first / 1000

    async def _ticket(self) -> str:
        place = await asyncio.to_thread(asked, self.plan.url, "POST", "/api/sessions", self.plan.token)
        while "url" not in place:
            await asyncio.sleep(1.0)
            place = await asyncio.to_thread(asked, self.plan.url, "GET", f"/api/sessions/{place['ticket']}")
        return place["ticket"]

    async def _visit(self, ticket: str) -> str:
        """One socket, until it is cut off; returns how to come back."""
        url = self.plan.url.rstrip("/").replace("http", "ws", 1) + "/ws"
        async with connect(url, compression=None, ping_interval=None, close_timeout=2) as line:
            await self._say(line, "hello", ticket=ticket)
            ready = await self._letter(line)
            if ready["type"] != "ready":
                raise ConnectionError(f"not let in: {ready.get('code')}: {ready.get('message')}")
            self.world = ready["world"]
            if self.screen is None:
                prompts = self.world["prompts"] or [f"viewer {self.number}"]
                prompt, seed = prompts[self.number % len(prompts)], self.plan.seed + self.number
                self.screen = Screen(1 / (self.world["fps"] or 1e9), self.plan.lead)
                await self._say(line, "begin", prompt=prompt, seed=seed)
            self._anew()
            try:
                await self._look(line)
            except BaseException:  # the time is over, or the measurement is stopped: leave no session behind
                await self._bye(line)
                raise
            line.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
            line.transport.abort()
        self.seen.kills += 1
        self.pressed.clear()
        return ready["resume"]

    async def _bye(self, line: ClientConnection) -> None:
        with suppress(WebSocketException, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._say(line, "bye")

    async def _look(self, line: ClientConnection) -> None:
        """Read, press keys, ask for the time; returns when it is to be cut off."""
        now, draw = self.now(), self.random.uniform
        press, ping, turn = now + draw(*PRESS_S), now, now + draw(*READ_S)
        if self.kind == "killed":
            turn = now + draw(*LIVE_S) * self.plan.seconds
        while True:
            now = self.now()
            if now >= press:
                press = now + draw(*PRESS_S)
                await self._press(line)
            if now >= ping:
                ping = now + PING_S
                self.pings[len(self.pings)] = now
                await self._say(line, "ping", id=len(self.pings) - 1)
            if now >= turn and self.kind == "killed" and now < self.end - LATE_S:
                return
            if now >= turn and self.kind == "slow":
                await self._grant(line, MOST_AHEAD)
                await asyncio.sleep(draw(*SLEEP_S))
                turn = self.now() + draw(*READ_S)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(press, ping)):
                    message = await line.recv()
                await self._heard(line, message)

    async def _press(self, line: ClientConnection) -> None:
        self.event += 1
        keys = self.world["keys"]
        held = [keys[int(self.random.integers(len(keys)))]] if keys and self.event % 2 else []
        self.pressed[self.event] = self.now()
        await self._say(line, "keys", id=self.event, held=held)

    async def _grant(self, line: ClientConnection, window: int, **shown: float) -> None:
        more = self.chunks + window - self.granted
        if more > 0:
            self.granted += more
            await self._say(line, "grant", chunks=more, **shown)

    async def _heard(self, line: ClientConnection, message: str | bytes) -> None:
        if isinstance(message, bytes):
            await self._saw(line, wire.Picture.unpack(message))
            return
        told = _letters.decode(message)
        if told["type"] == "pong":
            sent, now = self.pings[told["id"]], self.now()
            self.offsets.append((now - sent, (now + sent) / 2 - told["clock_us"] / 1e6))
        elif told["type"] == "error":
            self.seen.errors.append(f"{told['code']}: {told['message']}")
        elif told["type"] == "state" and told["state"] != "closed":
            if told["generation"] != self.generation:
                self.generation, self.frame = told["generation"], -1
                self._anew()
            if told["generation"] and not self.granted:
                await self._grant(line, WINDOW)

    async def _saw(self, line: ClientConnection, picture: wire.Picture) -> None:
        now, seen, last = self.now(), self.seen, self.last
        self._check(picture)
        seen.pictures += 1
        if seen.first is None:
            seen.first = 1000 * (now - self.came_at)
        if self.back_at is not None:
            seen.back.append(1000 * (now - self.back_at))
            self.back_at = None
        for event in [event for event in self.pressed if event <= picture.event]:
            seen.applied.append(1000 * (now - self.pressed.pop(event)))
        age = {}
        if self.offsets:
            age = {"age_ms": max(0.0, 1000 * (now - min(self.offsets)[1]) - picture.made_us / 1000)}
            seen.age.append(age["age_ms"])
        if self.screen is not None:
            self.screen.came(now)
        same = last is not None and (last.event, last.took_us) == (picture.event, picture.took_us)
        if last is None or not same or picture.latent - last.latent >= self.world["chunk"]:
            if last is not None:
                seen.between.append(1000 * (now - self.chunk_at))
            self.last, self.chunk_at, self.chunks = picture, now, self.chunks + 1
            await self._grant(line, WINDOW, frame=picture.frame, **age)

    def _check(self, picture: wire.Picture) -> None:
        """Is it ours, of now, and new?"""
        seen = self.seen
        self.mark = picture.mark if self.mark < 0 else self.mark
        foreign = picture.mark != self.mark or self.marks.setdefault(picture.mark, self.number) != self.number
        stale = picture.generation != self.generation or picture.frame <= self.frame
        self.frame = max(self.frame, picture.frame)
        if self.world["name"] == "mock" and (self.last is None or seen.pictures % PAINTED == 0):
            seen.read += 1
            with Image.open(io.BytesIO(picture.image)) as opened:
                marks = mock.read(np.asarray(opened.convert("RGB")))
            foreign |= (marks.session, marks.seed) != (picture.mark, (self.plan.seed + self.number) % 2**32)
            painted = marks.generation, marks.frame, marks.event
            stale |= painted != (picture.generation, picture.frame, picture.event % 2**32)
        seen.foreign += foreign
        seen.stale += stale

    async def _say(self, line: ClientConnection, kind: str, **fields: Any) -> None:
        await line.send(_control({"type": kind, **fields}).decode())

    async def _letter(self, line: ClientConnection) -> dict[str, Any]:
        async with asyncio.timeout(ANSWER_S):
            return _letters.decode(await line.recv())


def asked(url: str, method: str, path: str, token: str | None = None) -> dict[str, Any]:
    """What a server answers. ConnectionError, saying what, where it does not answer or refuses; Unknown for a token."""
    where = urlsplit(url)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    connection = kind(where.hostname or "", where.port, timeout=ANSWER_S)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        connection.request(method, where.path.rstrip("/") + path, "{}" if method == "POST" else None, headers)
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except (OSError, http.client.HTTPException) as wrong:
        raise ConnectionError(f"{url} does not answer ({_told(wrong)})") from wrong
    finally:
        connection.close()
    if status == http.client.UNAUTHORIZED:
        raise Unknown(url)
    if status >= 300:
        raise ConnectionError(f"{url}{path} answers {status}: {body[:200].decode(errors='replace')}")
    try:
        return _letters.decode(body)
    except msgspec.MsgspecError:
        raise ConnectionError(f"{url}{path} answers what is no JSON: this is another server") from None


async def measure(plan: Plan, tell: Callable[[float, str], None], pid: int | None = None) -> dict[str, Any]:
    """Load a server as planned. tell: seconds so far, and what is going on. pid: the server's, where it is here.

    Unknown as soon as a viewer is not let in.
    """
    loop, marks, lags, usage = asyncio.get_running_loop(), {}, _ms(), Usage(pid)
    viewers = [Viewer(number, plan, marks) for number in range(plan.sessions)]
    began, used = loop.time(), time.process_time()
    aside = [loop.create_task(_lag(lags)), loop.create_task(_progress(viewers, usage, began, tell))]
    try:
        async with asyncio.TaskGroup() as group:
            for viewer in viewers:
                group.create_task(viewer.watch(began + plan.seconds))
    except* Unknown:
        raise Unknown(plan.url) from None
    finally:
        for task in aside:
            task.cancel()
    took = loop.time() - began
    usage.look()
    own = {"cpu": round((time.process_time() - used) / took, 3), "late_ms": spread(lags)}
    return {**_report(plan, viewers), "server": usage.told(), "here": own}


async def _lag(lags: "array[float]") -> None:
    now = asyncio.get_running_loop().time
    while True:
        at = now()
        await asyncio.sleep(LAG_S)
        lags.append(1000 * (now() - at - LAG_S))


async def _progress(viewers: Sequence[Viewer], usage: Usage, began: float, tell: Callable[[float, str], None]) -> None:
    while True:
        live = sum(viewer.seen.first is not None for viewer in viewers)
        pictures = sum(viewer.seen.pictures for viewer in viewers)
        wrong = sum(len(viewer.seen.errors) for viewer in viewers)
        tell(asyncio.get_running_loop().time() - began, f"{live} viewers, {pictures} pictures, {wrong} errors")
        usage.look()
        await asyncio.sleep(1.0)


def _report(plan: Plan, viewers: Sequence[Viewer]) -> dict[str, Any]:
    world = next((viewer.world for viewer in viewers if viewer.world), {})
    every = [viewer.seen for viewer in viewers]
    plain = ("sessions", "slow", "kill", "seconds", "seed", "ramp", "lead")
    return {
        "plan": {name: getattr(plan, name) for name in plain},
        "world": {name: world.get(name) for name in ("name", "width", "height", "fps", "frames", "chunk")},
        "viewers": {
            kind: _of([viewer for viewer in viewers if viewer.kind == kind])
            for kind in KINDS
            if any(viewer.kind == kind for viewer in viewers)
        },
        "pictures": sum(seen.pictures for seen in every),
        "read": sum(seen.read for seen in every),
        "foreign": sum(seen.foreign for seen in every),
        "stale": sum(seen.stale for seen in every),
        "errors": dict(Counter(error for seen in every for error in seen.errors).most_common()),
    }


def _of(viewers: Sequence[Viewer]) -> dict[str, Any]:
    """What viewers of one kind saw, all together."""
    every, screens = [viewer.seen for viewer in viewers], [viewer.screen for viewer in viewers if viewer.screen]
    live = sum(seen.live_s for seen in every)
    worst = [spread(seen.between)["p95"] for seen in every if seen.between]
    return {
        "viewers": len(viewers),
        "fps": round(sum(seen.pictures for seen in every) / live, 2) if live else None,
        "first_ms": spread([seen.first for seen in every if seen.first is not None]),
        "between_ms": spread([ms for seen in every for ms in seen.between]),
        "worst_between_p95_ms": max(worst, default=None),
        "applied_ms": spread([ms for seen in every for ms in seen.applied]),
        "unheard": sum(seen.unheard for seen in every),
        "age_ms": spread([ms for seen in every for ms in seen.age]),
        "dry": sum(screen.dry for screen in screens),
        "stood_ms": round(1000 * sum(screen.stood for screen in screens)),
        "kills": sum(seen.kills for seen in every),
        "back_ms": spread([ms for seen in every for ms in seen.back]),
    }


def spread(values: "Sequence[float] | array[float]") -> dict[str, Any]:
    """Percentiles: the least value that so many percent are not above."""
    if not len(values):
        return {"count": 0, "p50": None, "p95": None, "p99": None, "max": None}
    ranked = sorted(values)
    at = {f"p{p}": ranked[-(-p * len(ranked) // 100) - 1] for p in (50, 95, 99)}
    return {"count": len(ranked)} | {name: round(ms, 1) for name, ms in {**at, "max": ranked[-1]}.items()}


def broken(report: Mapping[str, Any], p95: float | None) -> list[str]:
    """Promises that were not kept, in words. p95: of the ms between a healthy viewer's chunks, if it is promised."""
    found = [f"{report[name]} {name} pictures" for name in ("foreign", "stale") if report[name]]
    found += [f"{sum(report['errors'].values())} errors"] if report["errors"] else []
    healthy = report["viewers"]["healthy"]
    if healthy["first_ms"]["count"] < healthy["viewers"]:
        found.append(f"only {healthy['first_ms']['count']} of {healthy['viewers']} healthy viewers saw a picture")
    measured = healthy["between_ms"]["p95"]
    if p95 is not None and (measured is None or measured > p95):
        found.append(f"p95 between chunks is {measured} ms, {p95:g} were promised")
    return found


def _told(wrong: BaseException) -> str:
    if isinstance(wrong, ConnectionClosed) and wrong.rcvd is not None:
        return f"closed with {wrong.rcvd.code}: {wrong.rcvd.reason}"
    return str(wrong) or type(wrong).__name__
