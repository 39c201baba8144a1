"""How much of anything one peer may have: messages a second, mistakes, bytes that are kept."""

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Bucket:
    """So many a second, and so many at once."""

    rate: float
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.rate

    def take(self, now: float) -> bool:
        self.level = min(self.rate, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


@dataclass
class Strikes:
    """Three mistakes within ten seconds are one too many."""

    most: int = 3
    within: float = 10.0
    times: deque[float] = field(default_factory=deque)

    def strike(self, now: float) -> bool:
        """Whether this was one too many."""
        self.times.append(now)
        while now - self.times[0] > self.within:
            self.times.popleft()
        return len(self.times) >= self.most


class Shelf:
    """Bytes kept for a while under names that nobody can guess; the oldest go first where they are too many."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float]) -> None:
        self.most, self.seconds, self.clock = most, seconds, clock
        self.kept: dict[str, tuple[float, bytes]] = {}

    def put(self, data: bytes) -> str:
        name = secrets.token_urlsafe(16)
        self.kept[name] = self.clock(), data
        self.sweep()
        return name

    def get(self, name: str) -> bytes | None:
        self.sweep()
        return self.kept[name][1] if name in self.kept else None

    def take(self, name: str) -> bytes | None:
        """Once."""
        data = self.get(name)
        self.kept.pop(name, None)
        return data

    def sweep(self) -> None:
        total = sum(len(data) for _, data in self.kept.values())
        for name, (at, data) in list(self.kept.items()):
            if total > self.most or self.clock() - at > self.seconds:
                del self.kept[name]
                total -= len(data)
