"""One session as the gateway knows it: what was told, what is to be shown, and the socket that serves it."""

import asyncio
import secrets
import time
from collections import deque
from dataclasses import dataclass, field

from forcing.serve import orders, wire
from forcing.serve.journal import Journal
from forcing.serve.supervisor import Engine

MOST_AHEAD = 8  # chunks that are made or waiting
MOST_LETTERS = 256
MOST_ASKS = 16  # prompts that are not applied yet


@dataclass(eq=False)
class Tether:
    """The session's end of a socket. leaving: how the socket is to be closed, once all letters are sent."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: tuple[int, str] | None = None

    def leave(self, code: int, reason: str) -> None:
        self.leaving = self.leaving or (code, reason)
        self.wake.set()


class Visit:
    """out: chunks that the engine may still make in this generation. owed: that may come though this socket granted
    none: what it grants is taken from them first. asks: prompts that were not applied yet, and when they were asked.
    """

    def __init__(self, number: int, name: str, now: float, journal: Journal) -> None:
        self.number, self.name, self.journal = number, name, journal
        self.ticket, self.resume = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.state: wire.State = "queued"
        self.engine: Engine | None = None
        self.tether: Tether | None = None
        self.generation = self.out = self.owed = self.event = self.exports = self.losses = self.shown = 0
        self.pictures = 0  # in all
        self.begun: wire.Begin | None = None
        self.image: bytes | None = None
        self.save: bytes | None = None
        self.prompt: str | None = None
        self.asks: dict[int, tuple[float, orders.Ask]] = {}
        self.held: list[str] = []
        self.paused = self.warned = self.greeted = False
        self.warned_at = now
        self.exporting: tuple[int, wire.Export] | None = None  # number of the request, and what was said
        self.saved: orders.Saved | None = None
        self.slot: deque[list[wire.Picture]] = deque(maxlen=MOST_AHEAD)
        self.letters: deque[wire.Told] = deque(maxlen=MOST_LETTERS)
        self.born = self.touched = self.placed_at = self.used_at = self.dry_at = now

    def say(self, order: orders.AnyOrder) -> None:
        """To its engine, if it has one now; what matters is said again when it has another."""
        if self.engine is not None:
            self.engine.say(order)

    def tell(self, message: wire.Told) -> None:
        self.letters.append(message)
        self._wake()

    def stands(self, state: wire.State, message: str = "") -> None:
        self.state = state
        self.tell(wire.Stands(state, self.generation, message))

    def anew(self) -> None:
        """The next generation: nothing that was made before is sent any more, and nothing is granted."""
        self.generation += 1
        self.out = self.owed = 0
        self.slot.clear()

    def grant(self, chunks: int) -> int:
        """How many of them the engine is to be told of."""
        owed = min(chunks, self.owed)
        self.owed -= owed
        more = max(0, min(chunks - owed, MOST_AHEAD - self.out - len(self.slot)))
        self.out += more
        return more

    def attach(self, tether: Tether) -> None:
        """Serve by this socket from now on; the one before, if it is still there, has lost it."""
        if self.tether is not None:
            self.tether.leave(wire.POLICY, "the session goes on in another window")
        self.tether, self.greeted = tether, True
        stale = (wire.Stands, wire.Stats)  # a new socket is told how things stand now
        self.letters = deque((each for each in self.letters if not isinstance(each, stale)), MOST_LETTERS)
        self.owed = self.out + len(self.slot)

    def detach(self, now: float) -> None:
        self.tether, self.touched = None, now

    def show(self, made: orders.Frames, frames: int) -> bool:
        """Take a chunk to be sent; False for one of a generation that is over. frames: pictures of a latent frame."""
        if made.generation != self.generation:
            return False
        self.out = max(0, self.out - 1)
        self.dry_at = time.monotonic()
        first = -len(made.images) % frames  # the first latent frame of some codecs is a single picture
        reality = made.reality or [b""] * len(made.images)
        at, took = time.monotonic_ns() // 1000, min(made.took_us, 2**32 - 1)
        self.slot.append(
            [
                wire.Picture(
                    generation=made.generation,
                    frame=made.frame + n,
                    latent=made.latent + (n + first) // frames,
                    made_us=at,
                    event=made.event,
                    took_us=took,
                    mark=self.number,
                    image=image,
                    reality=beside,
                    codec=made.codec,
                )
                for n, (image, beside) in enumerate(zip(made.images, reality, strict=True))
            ]
        )
        self.shown += len(made.images)
        self.pictures += len(made.images)
        if self.state in ("starting", "recovering"):
            self.stands("live")
        self._wake()
        return True

    def _wake(self) -> None:
        if self.tether is not None:
            self.tether.wake.set()
