"""What one viewer says, as it is heard when a chunk is begun: as late as can be."""

import time
from collections import deque
from dataclasses import dataclass, field

from forcing.engine.session import Told
from forcing.serve import orders
from forcing.serve.beside import Beside

MOST_TAPS = 4  # that wait for a frame
IDLE = "wait"  # the key that stands for none, where a world has it


@dataclass(frozen=True)
class Heard(Told):
    """event: the newest keys that count. ask: the prompt that begins here. at: seconds of the clock."""

    event: int = 0
    ask: orders.Ask | None = None
    at: float = 0.0


@dataclass(eq=False)
class Viewer:
    """What one viewer says, as it is heard when a chunk is begun."""

    number: int
    generation: int
    prompt: str | None
    keys: tuple[str, ...]
    chunk: int
    asked: deque[orders.Ask] = field(default_factory=deque)
    held: list[str] = field(default_factory=list)
    tapped: deque[str | int] = field(default_factory=deque)
    unheard: list[str] = field(default_factory=list)  # held, but no chunk has been begun since
    event: int = 0
    first: str | None = None  # the prompt that it began with
    waits: int = 0  # prompts whose text is not there yet
    heard: Heard | None = None  # by the chunk in progress
    beside: Beside | None = None
    peeks: bool = False  # shows one chunk although it is paused
    paused: bool = False
    saved: float = 0.0

    def listen(self, _frame: int) -> Told:
        """Prompts one after another; of keys, those tapped since, and else the one held last."""
        ask = self.asked.popleft() if self.asked else None
        if ask is not None:
            self.prompt = ask.prompt
        actions = [self._key() for _ in range(self.chunk)] if self.keys else None
        self.unheard.clear()
        switch = "blend" if ask is None else ask.switch
        self.heard = Heard(self.prompt, actions, switch, self.event, ask, time.perf_counter())
        return self.heard

    def unhear(self) -> None:
        """The chunk in progress is given up: its prompt is still to begin."""
        if self.heard is not None and self.heard.ask is not None:
            self.asked.appendleft(self.heard.ask)
        self.heard = None

    def press(self, order: orders.Press) -> None:
        before, self.held = self.held, [key for key in order.held if key in self.keys]
        short = [key for key in self.unheard if key not in self.held]  # down and up again between two chunks: a tap
        self.tapped.extend(key for key in (*short, *order.tapped) if key in self.keys and key not in self.held)
        self.unheard = [key for key in self.held if key in self.unheard or key not in before]
        while len(self.tapped) > MOST_TAPS:  # whoever taps faster than frames come should not steer for minutes
            self.tapped.popleft()
        self.event = order.event

    def leave(self) -> None:
        """Leave the environment beside."""
        if self.beside is not None:
            self.beside.close()
            self.beside = None

    def _key(self) -> str | int:
        if self.tapped:
            return self.tapped.popleft()
        if self.held:
            return self.held[-1]
        return IDLE if IDLE in self.keys else -1
