"""A server of this machine: started in a process of its own and stopped again, and what it uses."""

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forcing.serve import gateway
from forcing.serve.options import Options
from forcing.serve.supervisor import Target

LEAVE_S = 15.0  # for a server to stop by itself
_PROC = Path("/proc")


@contextmanager
def served(options: Options, target: Target) -> Iterator[tuple[str, int]]:
    """A server's address and process. It is gone when the block ends, or when this process does."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, options, target), name="server")
    process.start()
    theirs.close()
    try:
        try:
            url = ours.recv()
        except EOFError:
            raise ConnectionError("the server ended before it was there") from None
        yield url, process.pid or 0
    finally:
        ours.close()
        process.join(LEAVE_S)
        process.kill()
        process.join()


def _serve(connection: Connection, options: Options, target: Target) -> None:
    os.setsid()  # Ctrl-C is for whoever started us, and who tells us to leave by closing the pipe
    asyncio.run(_served(connection, options, target))


async def _served(connection: Connection, options: Options, target: Target) -> None:
    loop = asyncio.get_running_loop()

    def begun(server: gateway.Server) -> None:
        ended = threading.Thread(target=_ended, args=(connection, loop, server.leave), daemon=True)
        ended.start()

    await gateway.serve(options, target, connection.send, begun)


def _ended(connection: Connection, loop: asyncio.AbstractEventLoop, leave: Callable[[], None]) -> None:
    with suppress(EOFError, OSError):
        connection.recv()
    loop.call_soon_threadsafe(leave)


def listening(port: int) -> int | None:
    """The process of this machine that listens at a port, where that can be seen."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for file in _PROC.glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(file.readlink()) in sockets:
                return int(file.parts[2])
    return None


class Usage:
    """Processor time and memory of a server and of the processes that it started, while it is looked at."""

    def __init__(self, pid: int | None) -> None:
        self.pid, self.began = pid, time.monotonic()
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self.most = {"gateway": 0, "engines": 0}
        self.look()
        self.first = dict(self.last)

    def look(self) -> None:
        """Now and then: memory is the most that was seen."""
        now = {"gateway": 0, "engines": 0}
        for pid, seconds, size in _family(self.pid):
            self.last[pid] = seconds
            now["gateway" if pid == self.pid else "engines"] += size
        self.most = {name: max(size, self.most[name]) for name, size in now.items()}

    def told(self) -> dict[str, Any] | None:
        """cpu: cores in use on average. None where nothing can be seen."""
        if not self.last:
            return None
        took, cpu = time.monotonic() - self.began, {"gateway": 0.0, "engines": 0.0}
        for pid, seconds in self.last.items():
            cpu["gateway" if pid == self.pid else "engines"] += seconds - self.first.get(pid, 0.0)
        return {name: {"cpu": round(cpu[name] / took, 3), "most_mb": round(self.most[name] / 1e6)} for name in cpu}


def _family(pid: int | None) -> list[tuple[int, float, int]]:
    """Number, seconds of processor time and bytes in memory of a process and of all below it."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    known, parents = {}, {}
    for file in _PROC.glob("[0-9]*/stat") if pid else ():
        with suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            number = int(file.parts[2])
            parents[number] = int(fields[1])
            known[number] = (int(fields[11]) + int(fields[12])) / tick, int(fields[21]) * page
    family = [] if pid is None or pid not in known else [pid]
    for one in family:  # grows while it is read: the processes below are found, and those below them
        family += [number for number, parent in parents.items() if parent == one]
    return [(one, *known[one]) for one in family]
