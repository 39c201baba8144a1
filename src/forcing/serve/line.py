"""One WebSocket: what comes is read and what is there is sent, side by side; either's end is the other's."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from forcing.serve import events, wire
from forcing.serve.admission import Desk
from forcing.serve.exchange import Refusal, obey
from forcing.serve.limits import Bucket, Strikes
from forcing.serve.visit import Tether, Visit

RATE = 60.0  # messages a second; keys beyond it are put together
FLOOD = 240.0  # of keys and grants, a second
SCOLD_S = 0.5  # between two words on being too fast
STATS_S = 1.0
LINGER_S = 12.0  # for a peer to read what it was sent, when the socket is closed

_controls = msgspec.json.Decoder(wire.Control)
_letter = msgspec.json.Encoder().encode


class Over(Exception):
    """The socket is to be closed, or is gone (code 0). why: for the metrics."""

    def __init__(self, code: int, reason: str, why: str) -> None:
        super().__init__(reason)
        self.code, self.reason, self.why = code, reason, why


class Line:
    """abort: drops the connection where it cannot be closed, because the peer reads nothing."""

    def __init__(self, socket: WebSocket, desk: Desk, abort: Callable[[], None]) -> None:
        self.socket, self.desk, self.abort, self.options = socket, desk, abort, desk.options
        self.tether = Tether()
        self.bucket, self.keys, self.flood, self.strikes = Bucket(RATE), Bucket(RATE), Bucket(FLOOD), Strikes()
        self.waiting: wire.Press | None = None  # keys that came too fast, put together
        self.scolded = 0.0
        self.pictures: deque[wire.Picture] = deque()

    async def run(self) -> None:
        """Serve until either side ends it."""
        over = Over(0, "", "gone")
        visit: Visit | None = None
        try:
            async with asyncio.timeout(self.options.send_s):
                await self.socket.accept()
            visit = await self._greeted()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(visit))
                group.create_task(self._write(visit))
        except* Over as ends:
            over = next(end for end in _leaves(ends) if isinstance(end, Over))
        except* (WebSocketDisconnect, TimeoutError):
            over = Over(0, "", "gone")
        finally:
            if visit is not None and visit.tether is self.tether:
                visit.detach(self.desk.clock())
        self.desk.metrics.disconnects.labels(over.why).inc()
        events.tell("socket over", session=None if visit is None else visit.name, why=over.why)
        await self._close(over)

    async def _greeted(self) -> Visit:
        """The session that the first message names."""
        try:
            async with asyncio.timeout(self.options.hello_s):
                hello = _read(await self._message())
        except TimeoutError:
            raise Over(wire.POLICY, "no hello", "greeting") from None
        except Refusal as refused:
            raise await self._unwelcome(refused.told) from None
        if not isinstance(hello, wire.Hello):
            raise await self._unwelcome(wire.Wrong("bad_message", "hello must be first of all"))
        if hello.protocol != wire.PROTOCOL:
            told = f"protocol is {hello.protocol}, here it is {wire.PROTOCOL}: load the page again"
            raise await self._unwelcome(wire.Wrong("protocol", told))
        visit = self.desk.tickets.get(hello.ticket)
        if visit is None:
            raise await self._unwelcome(wire.Wrong("bad_ticket", "there is no such session (any more)"))
        if visit.state == "queued" or self.desk.world is None:
            queued = wire.Wrong("busy", f"number {self.desk.position(visit)} in the queue", retryable=True)
            raise await self._unwelcome(queued, wire.TRY_LATER)
        visit.attach(self.tether)
        events.tell("socket", session=visit.name)
        visit.letters.appendleft(wire.Ready(visit.name, visit.resume, self.desk.world))
        visit.stands(visit.state)
        if self.desk.draining:
            visit.tell(wire.Stands("draining", visit.generation, "the gateway stops in a moment"))
        return visit

    async def _unwelcome(self, told: wire.Wrong, code: int = wire.POLICY) -> Over:
        self.desk.metrics.protocol_errors.labels(told.code).inc()
        await self._send(told)
        return Over(code, told.message, told.code)

    async def _message(self) -> str | bytes:
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise Over(0, "", "left" if message.get("code") in (wire.NORMAL, wire.GOING_AWAY) else "lost")
        text = message.get("text")
        return message["bytes"] if text is None else text

    async def _read(self, visit: Visit) -> None:
        while visit.tether is self.tether:
            try:
                async with asyncio.timeout(self.options.heartbeat_s):
                    message = await self._message()
            except TimeoutError:
                raise Over(wire.GOING_AWAY, "nothing was heard", "heartbeat") from None
            self.desk.tickets.pop(visit.ticket, None)  # it has the other one: this was the answer to it
            if visit.tether is not self.tether:
                return
            try:
                self._hear(visit, _read(message))
            except Refusal as refused:
                self._scold(visit, refused.told)

    def _hear(self, visit: Visit, said: wire.Control) -> None:
        """Obey, unless too much is said: then keys are put together, and the rest is refused."""
        now = self.desk.clock()
        often = isinstance(said, wire.Press | wire.Grant)  # as fast as pictures are, and lost if they were refused
        if not (self.flood if often else self.bucket).take(now):
            if now - self.scolded > SCOLD_S:
                self.scolded = now
                raise Refusal("too_fast", f"more than {FLOOD if often else RATE:g} messages a second", retryable=True)
        elif not isinstance(said, wire.Press):
            if not often:
                self._pressed(visit)  # what was said before comes before
            obey(self.desk, visit, said)
        else:
            if self.waiting is None:
                asyncio.get_running_loop().call_later(2 / RATE, self.tether.wake.set)
            self.waiting = said if self.waiting is None else _together(self.waiting, said)
            if self.keys.take(now):
                self._pressed(visit)

    def _pressed(self, visit: Visit) -> None:
        if self.waiting is not None:
            said, self.waiting = self.waiting, None
            try:
                obey(self.desk, visit, said)
            except Refusal as refused:
                self._scold(visit, refused.told)

    def _scold(self, visit: Visit, told: wire.Wrong) -> None:
        visit.tell(told)
        if told.code in ("bad_message", "too_fast"):
            self.desk.metrics.protocol_errors.labels(told.code).inc()
            if self.strikes.strike(self.desk.clock()):
                self.tether.leave(wire.POLICY, told.message[:100])

    async def _write(self, visit: Visit) -> None:
        loop, wake = asyncio.get_running_loop(), self.tether.wake
        shown, at = visit.shown, loop.time()
        while True:
            wake.clear()
            while visit.tether is self.tether and (message := self._next(visit)) is not None:
                await self._send(message)
            if self.tether.leaving is not None:
                raise Over(*self.tether.leaving, "closed")
            with suppress(TimeoutError):
                async with asyncio.timeout_at(at + STATS_S):
                    await wake.wait()
            if self.waiting is not None and self.keys.take(self.desk.clock()):
                self._pressed(visit)
            if (now := loop.time()) - at >= STATS_S:
                fps, pass_ms = (visit.shown - shown) / (now - at), visit.engine.pass_ms if visit.engine else 0.0
                visit.tell(wire.Stats(max(0.0, fps), pass_ms, len(self.desk.visits)))
                shown, at = visit.shown, now

    def _next(self, visit: Visit) -> wire.Told | wire.Picture | None:
        """Letters first; pictures of what the session is now, none of what it was before."""
        if visit.letters:
            return visit.letters.popleft()
        while self.tether.leaving is None:
            if not self.pictures:
                if not visit.slot:
                    return None
                self.pictures.extend(visit.slot.popleft())
            picture = self.pictures.popleft()
            if picture.generation == visit.generation:
                return picture
        return None

    async def _send(self, message: wire.Told | wire.Picture) -> None:
        metrics = self.desk.metrics
        try:
            async with asyncio.timeout(self.options.send_s):
                if isinstance(message, wire.Picture):
                    data = message.pack()
                    await self.socket.send_bytes(data)
                    metrics.pictures.inc()
                    metrics.bytes.inc(len(data))
                else:
                    await self.socket.send_text(_letter(message).decode())
        except TimeoutError:
            self.abort()
            raise Over(0, "", "send") from None
        except RuntimeError:  # it was closed meanwhile
            raise Over(0, "", "gone") from None

    async def _close(self, over: Over) -> None:
        if not over.code:
            return
        asyncio.get_running_loop().call_later(LINGER_S, self.abort)
        try:
            async with asyncio.timeout(self.options.send_s):
                await self.socket.close(over.code, over.reason[:100])
        except TimeoutError:
            self.abort()
        except (WebSocketDisconnect, RuntimeError):
            return  # it is gone already


def _read(message: str | bytes) -> wire.Control:
    """Refusal for what is not a control."""
    if isinstance(message, bytes):
        raise Refusal("bad_message", "controls are text, not binary")
    if (size := len(message.encode())) > wire.MOST_CONTROL:
        raise Refusal("bad_message", f"{size} bytes: a control has at most {wire.MOST_CONTROL}")
    try:
        return _controls.decode(message)
    except (msgspec.MsgspecError, RecursionError, ValueError) as wrong:
        raise Refusal("bad_message", f"not a control: {wrong}".encode("ascii", "replace").decode()[:200]) from None


def _together(before: wire.Press, after: wire.Press) -> wire.Press:
    """As one message: who taps is heard, however fast."""
    tapped = list(dict.fromkeys([*before.tapped, *after.tapped]))
    return wire.Press(after.id, after.held, tapped[: wire.MOST_KEYS])


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for each in group.exceptions for leaf in _leaves(each)]
    return [group]
