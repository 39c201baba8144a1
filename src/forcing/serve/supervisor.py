"""Engine processes: started, watched, killed where they hang, and started again."""

import asyncio
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Literal

import msgspec

from forcing.serve import events, orders, wire
from forcing.serve.metrics import Metrics
from forcing.serve.options import Options

Target = Callable[[Connection, dict[str, Any]], None]

LOOK = 0.1  # seconds between two looks at the engines
LEAVE = 2.0  # seconds for an engine to leave when it is told to
BACKLOG = 4096  # orders that an engine has not taken
LONGEST_PAUSE = 30.0


class Spawned:
    """An engine in a process of its own, and our end of its pipe."""

    def __init__(self, target: Target, told: dict[str, Any]) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=_live, args=(target, theirs, told), name="engine", daemon=True)
        self.process.start()
        theirs.close()  # or we would never see the pipe end

    def kill(self) -> None:
        """Now, and it cannot refuse."""
        self.process.kill()

    def reap(self) -> str:
        """Once the pipe is closed: wait for its end, and say how it ended."""
        self.process.join(LEAVE)
        self.process.kill()  # it may have closed the pipe and stay
        self.process.join()
        code = self.process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class InProcess:
    """An engine in a thread, for debugging and tests; one that hangs cannot be stopped."""

    def __init__(self, target: Target, told: dict[str, Any]) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.thread = threading.Thread(target=_live_beside, args=(target, theirs, told), name="engine", daemon=True)
        self.thread.start()

    def kill(self) -> None:
        with socket.socket(fileno=os.dup(self.connection.fileno())) as ours, suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)  # wakes whoever waits at either end, as closing would not

    def reap(self) -> str:
        self.thread.join(LEAVE)
        return "the thread ended"


Body = Spawned | InProcess


def _live(target: Target, connection: Connection, told: dict[str, Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the gateway lets viewers finish first
        signal.signal(number, signal.SIG_IGN)
    target(connection, told)


def _live_beside(target: Target, connection: Connection, told: dict[str, Any]) -> None:
    with connection:
        target(connection, told)


class Life:
    """One engine from its start to its end: a thread hears it, another tells it, for pipes block.

    heard: called in the event loop with each report, and with how it ended.
    """

    def __init__(self, body: Body, heard: Callable[["Life", orders.AnyReport | str], None]) -> None:
        self.body, self.heard, self.loop = body, heard, asyncio.get_running_loop()
        self.orders: queue.SimpleQueue[orders.AnyOrder | None] = queue.SimpleQueue()
        self.born = self.beat_at = self.moved_at = time.monotonic()
        self.progress, self.pass_s, self.ready_at = -1, 0.0, 0.0
        self.ended = asyncio.Event()
        self.teller = threading.Thread(target=self._tell, name="to engine", daemon=True)
        self.hearer = threading.Thread(target=self._hear, name="from engine", daemon=True)
        self.teller.start()
        self.hearer.start()

    def ails(self, now: float, options: Options) -> str | None:
        """What is wrong with it, if anything is."""
        if not self.ready_at:
            return f"not ready after {options.start_s:g} s" if now - self.born > options.start_s else None
        if now - self.beat_at > options.silent_s:
            return f"no sign of life for {options.silent_s:g} s"
        if self.orders.qsize() > BACKLOG:
            return f"{BACKLOG} orders were not taken"
        patience = max(options.stall_s, 20 * self.pass_s)
        return f"busy without progress for {patience:.3g} s" if now - self.moved_at > patience else None

    def excuse(self, seconds: float) -> None:
        """We ourselves slept: nobody is to blame for that."""
        self.beat_at += seconds
        self.moved_at += seconds
        self.born += seconds

    def _tell(self) -> None:
        while (order := self.orders.get()) is not None:
            try:
                self.body.connection.send_bytes(orders.pack(order))
            except OSError:
                return  # the other thread sees it, too

    def _hear(self) -> None:
        with suppress(EOFError, OSError, msgspec.MsgspecError):
            while True:
                report = orders.report(self.body.connection.recv_bytes())
                self._mark(report)
                self.loop.call_soon_threadsafe(self.heard, self, report)
        how = self.body.reap()
        self.orders.put(None)
        self.teller.join()
        self.body.connection.close()
        self.loop.call_soon_threadsafe(self._end, how)

    def _mark(self, report: orders.AnyReport) -> None:
        # Here and not in the event loop, which may be late: what counts is when it was said.
        now = time.monotonic()
        if isinstance(report, orders.Ready):
            self.ready_at = self.beat_at = self.moved_at = now
        elif isinstance(report, orders.Beat):
            self.beat_at, self.pass_s = now, report.pass_ms / 1000
            if not report.busy or report.progress != self.progress:
                self.moved_at = now
            self.progress = report.progress

    def _end(self, how: str) -> None:
        self.ended.set()
        self.heard(self, how)


class Engine:
    """A place for an engine: the one that lives there now, and those before it. taken: sessions that it serves."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state: Literal["starting", "warm", "pausing", "broken", "stopped"] = "starting"
        self.life: Life | None = None
        self.world: wire.World | None = None
        self.slots = self.most = self.crashes = 0
        self.shrunk_at = 0.0
        self.taken: set[int] = set()
        self.again_at = self.pass_ms = 0.0
        self.why = self.digest = self.machine = ""

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self.taken)) if self.state == "warm" else 0

    def say(self, order: orders.AnyOrder) -> None:
        if self.life is not None:
            self.life.orders.put(order)


class Supervisor:
    """Keeps engines alive. heard: called with each report; lost: when an engine is gone, with all it knew."""

    def __init__(
        self,
        options: Options,
        target: Target,
        metrics: Metrics,
        heard: Callable[[Engine, orders.AnyReport], None],
        lost: Callable[[Engine], None],
    ) -> None:
        self.options, self.target, self.metrics, self.heard, self.lost = options, target, metrics, heard, lost
        self.engines = [Engine(number) for number in range(options.engines)]
        self.lives: set[Life] = set()

    def start(self) -> None:
        for engine in self.engines:
            self._start(engine)

    async def watch(self) -> None:
        """Look after them, without end."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            late, last = now - last - LOOK, now
            for engine in self.engines:
                if late > 1 and engine.life is not None:
                    engine.life.excuse(late)
                self._look(engine, now)

    async def close(self) -> None:
        """Tell them to leave, and see that they do."""
        for engine in self.engines:
            engine.say(orders.Stop())
            engine.state, engine.life = "stopped", None
        lives = list(self.lives)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE):
                await asyncio.gather(*(life.ended.wait() for life in lives))
        for life in lives:
            if not life.ended.is_set():
                life.body.kill()
        with suppress(TimeoutError):  # a process in the kernel's hands may not even be killed
            async with asyncio.timeout(2 * LEAVE):
                await asyncio.gather(*(life.ended.wait() for life in lives))

    def _look(self, engine: Engine, now: float) -> None:
        life = engine.life
        if life is None:
            if engine.state == "pausing" and now >= engine.again_at:
                self.metrics.restarts.inc()
                self._start(engine)
        elif why := life.ails(now, self.options):
            self.metrics.stalls.inc()
            life.body.kill()
            self._fell(engine, why)  # without waiting for its end: a call that hangs in a driver may never end
        elif engine.crashes and life.ready_at and now - life.ready_at > self.options.steady_s:
            engine.crashes = 0

    def _start(self, engine: Engine) -> None:
        body: type[Body] = InProcess if self.options.in_process else Spawned
        engine.state = "starting"
        events.tell("engine starting", engine=engine.number, again=engine.crashes)
        try:
            engine.life = Life(body(self.target, {**self.options.told}), self._reported)
        except OSError as wrong:  # no memory, no descriptors: perhaps later
            self._fell(engine, f"it could not be started: {wrong}")
        else:
            self.lives.add(engine.life)

    def _reported(self, life: Life, report: orders.AnyReport | str) -> None:
        if life.ended.is_set():
            self.lives.discard(life)
        engine = next((each for each in self.engines if each.life is life), None)
        if engine is None:  # of one that is given up
            return
        if isinstance(report, str):
            self._fell(engine, f"it ended: {report}")
            return
        if isinstance(report, orders.Ready):
            engine.state, engine.slots, engine.world = "warm", report.sessions, report.world
            engine.most = report.sessions
            engine.digest, engine.machine = report.digest, report.machine
            took = round(life.ready_at - life.born, 2)
            events.tell("engine ready", engine=engine.number, seconds=took, sessions=engine.slots)
        elif isinstance(report, orders.Unfit):
            engine.crashes = self.options.crashes
            self._fell(engine, report.message)
            return
        elif isinstance(report, orders.Beat):
            engine.pass_ms = report.pass_ms
        self.heard(engine, report)

    def _fell(self, engine: Engine, why: str) -> None:
        engine.life, engine.crashes, engine.why = None, engine.crashes + 1, why
        if engine.crashes >= self.options.crashes:
            given_up = f"given up after {engine.crashes} failures in a row; the last: {why}"
            engine.state, engine.why = "broken", why if engine.crashes > self.options.crashes else given_up
            events.warn("engine broken", engine=engine.number, why=engine.why)
        else:
            pause = min(LONGEST_PAUSE, self.options.backoff_s * 2 ** (engine.crashes - 1))
            engine.state, engine.again_at = "pausing", time.monotonic() + pause
            events.warn("engine lost", engine=engine.number, why=why, again_s=pause, sessions=len(engine.taken))
        self.lost(engine)
