"""How a gateway serves: addresses, limits and leases."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

MOST_FPS = 120  # more would not leave a viewer's messages any room


@dataclass(frozen=True)
class Options:
    """Names that end in `_s` are seconds.

    sessions: at once, of each engine. queue: who may wait for one. fps: pictures a second that are aimed at, None for
    the engine's own. token: a secret that whoever begins a session must know. origins: pages of other hosts that may
    connect, as "https://example.org". logs: a folder for a file of controls of each session. engine: what the engines
    are told besides. in_process: engines as threads, for debugging. events: say all that happens as JSON lines.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    engines: int = 1
    sessions: int = 8
    queue: int = 64
    fps: float | None = None
    token: str | None = None
    origins: tuple[str, ...] = ()
    logs: Path | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    in_process: bool = False
    events: bool = False
    connections: int = 2000  # in all; more are turned away at once
    ticket_s: float = 30.0  # until a ticket must be used, and asked after while it is in the queue
    hello_s: float = 5.0  # for the first message of a socket
    send_s: float = 3.0  # for one message to leave
    heartbeat_s: float = 15.0  # without any message, a socket is lost
    detach_s: float = 60.0  # without a socket, a session is over
    idle_s: float = 600.0  # without a control, a session is over where others wait
    lifetime_s: float = 3600.0  # so is one that is as old
    drain_s: float = 10.0  # for viewers to leave by themselves when the gateway stops
    start_s: float = 600.0  # for an engine to be ready
    silent_s: float = 5.0  # without a sign of life, an engine is dead
    stall_s: float = 20.0  # busy without progress, an engine hangs
    backoff_s: float = 0.5  # before the first restart; twice as long before each after it
    steady_s: float = 60.0  # after so long, what went wrong before is forgotten
    crashes: int = 5  # in a row, before an engine is given up

    def __post_init__(self) -> None:
        for name, least in (("engines", 1), ("sessions", 1), ("queue", 0), ("crashes", 1), ("port", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.port > 65535:
            raise ValueError(f"port is {self.port}: it must be at most 65535")
        for each in fields(self):
            if each.name.endswith("_s") and not getattr(self, each.name) > 0:
                raise ValueError(f"{each.name} is {getattr(self, each.name)}: it must be above 0")
        if self.fps is not None and not 0 < self.fps <= MOST_FPS:
            raise ValueError(f"fps is {self.fps}: it must be above 0 and at most {MOST_FPS}")
        if self.token == "":
            raise ValueError("token is empty: leave it out, or give a secret")
        for origin in self.origins:
            if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise ValueError(f"origin is {origin!r}: write it as https://example.org, without a path")

    @property
    def told(self) -> dict[str, Any]:
        """What each engine is told."""
        fps = {} if self.fps is None else {"fps": self.fps}
        return {**self.engine, "sessions": self.sessions, **fps}
