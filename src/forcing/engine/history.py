"""What a session has shown: clean latents, what was told, and the random state before each chunk.

A thousandth of the keys and values that were made of it, and enough to make them again: after a prompt switch, a crash,
a move to another machine, or once an idle session has given its memory back.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from forcing.cond import Cond
from forcing.shapes import Latents


@dataclass(frozen=True)
class Chunk:
    """Clean frames [1, F, channels, height, width] and what they were told.

    frame: number of the first, in the session. place: its number in the scene, which a cut begins. random: state of the
    session's noise before it.
    """

    latents: Latents
    cond: Cond
    prompt: str | None
    frame: int
    place: int
    random: Tensor

    @property
    def frames(self) -> int:
        return self.latents.shape[1]


@dataclass(frozen=True)
class Recache:
    """From frame `frame` of the session on, all before it is as if it had been told this."""

    frame: int
    prompt: str | None
    static: Mapping[str, Tensor]


class History:
    """The newest chunks, at most `most` frames of them, and the first ones of the scene for the sink."""

    def __init__(self, most: int, sink: int = 0) -> None:
        self.most, self.sink = most, sink
        self.chunks: deque[Chunk] = deque()
        self.first: list[Chunk] = []  # of this scene, as many as the sink needs
        self.recached: list[Recache] = []
        self._frames = 0

    @property
    def last(self) -> Chunk | None:
        return self.chunks[-1] if self.chunks else None

    def add(self, chunk: Chunk) -> None:
        if chunk.place == 0:
            self.first, self.recached = [], []
        if chunk.place < self.sink:
            self.first.append(chunk)
        self.chunks.append(chunk)
        self._frames += chunk.frames
        while self._frames - self.chunks[0].frames >= self.most:
            self._frames -= self.chunks.popleft().frames
        while len(self.recached) > 1 and self.recached[1].frame <= self.chunks[0].frame:
            self.recached.pop(0)

    def held(self, frames: int) -> list[Chunk]:
        """What a cache of `frames` frames holds of this scene: chunks of the sink, and the newest ones."""
        sink = [chunk for chunk in self.first if chunk.place < self.sink]
        newest = self.newest(frames - sum(chunk.frames for chunk in sink), since=self.sink)
        if not self.recached:
            return [*sink, *newest]
        last = self.recached[-1]
        return [
            replace(chunk, cond=Cond(last.static, chunk.cond.per_frame)) if chunk.frame < last.frame else chunk
            for chunk in (*sink, *newest)
        ]

    def newest(self, frames: int, since: int = 0) -> list[Chunk]:
        """The newest chunks of this scene, from its frame `since` on: as few as hold `frames` frames."""
        found: list[Chunk] = []
        for chunk in reversed(self.chunks):
            if frames <= 0 or chunk.place < since:
                break
            found.insert(0, chunk)
            frames -= chunk.frames
            if chunk.place == 0:
                break
        return found

    def back(self, frame: int) -> Chunk:
        """Forget what was shown from frame `frame` on; returns the chunk that began there.

        ValueError where no chunk that is kept begins there.
        """
        starts = [chunk.frame for chunk in self.chunks]
        if frame not in starts:
            kept = f"{starts[0]} to {starts[-1]}" if starts else "nothing yet"
            raise ValueError(f"frame {frame} is not the beginning of a chunk that is kept; there are {kept}")
        while True:
            chunk = self.chunks.pop()
            self._frames -= chunk.frames
            self.first = [each for each in self.first if each.frame < chunk.frame]
            self.recached = [each for each in self.recached if each.frame < chunk.frame]
            if chunk.frame == frame:
                return chunk

    def fork(self) -> "History":
        other = History(self.most, self.sink)
        other.chunks, other._frames = self.chunks.copy(), self._frames
        other.first, other.recached = list(self.first), list(self.recached)
        return other

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def __len__(self) -> int:
        """Frames that are kept."""
        return self._frames
