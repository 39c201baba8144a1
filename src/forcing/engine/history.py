"""What a session has shown: clean latents, what was told, and the random state before each chunk.

Far smaller than the keys and values that were made of it, and enough to make them again: after a prompt switch, a
crash, a move to another machine, or once an idle session has given its memory back.
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

    @property
    def scene(self) -> int:
        """The frame of the session that its scene began with."""
        return self.frame - self.place


@dataclass(frozen=True)
class Recache:
    """From frame `frame` of the session on, all of the scene before it is as if it had been told this."""

    frame: int
    prompt: str | None
    static: Mapping[str, Tensor]


class History:
    """The newest chunks, at most `most` frames of them, and for the sink the first ones of the scenes they are of."""

    def __init__(self, most: int, sink: int = 0) -> None:
        self.most, self.sink = most, sink
        self.chunks: deque[Chunk] = deque()
        self.first: list[Chunk] = []  # of each scene, as many as the sink needs
        self.recached: list[Recache] = []
        self._frames = 0

    @property
    def last(self) -> Chunk | None:
        return self.chunks[-1] if self.chunks else None

    def add(self, chunk: Chunk) -> None:
        if chunk.place < self.sink:
            self.first.append(chunk)
        self.chunks.append(chunk)
        self._frames += chunk.frames
        while self._frames - self.chunks[0].frames >= self.most:
            self._frames -= self.chunks.popleft().frames
        self._trim()

    def held(self, frames: int, last: Recache | None = None) -> list[Chunk]:
        """What a cache of `frames` frames holds of this scene: chunks of the sink, and the newest ones.

        last: what all of it is told from now on; None for what it was told.
        """
        scene = next((each[-1].scene for each in (self.chunks, self.first) if each), 0)
        sink = [chunk for chunk in self.first if chunk.scene == scene]
        newest = self.newest(frames - sum(chunk.frames for chunk in sink), since=self.sink)
        last = last or next(reversed(self.recached), None)  # that of an older scene has nothing before it here
        if last is None:
            return [*sink, *newest]
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

    def fork(self, frames: int | None = None) -> "History":
        """Another that goes on from here. frames: of how many of this scene, the newest; None for all that is kept."""
        other = History(self.most, self.sink)
        other.chunks = self.chunks.copy() if frames is None else deque(self.newest(frames))
        other._frames = sum(chunk.frames for chunk in other.chunks)
        other.first, other.recached = list(self.first), list(self.recached)
        other._trim()
        return other

    def _trim(self) -> None:
        """Forget what is of no use to any chunk that is kept, nor to one that follows it."""
        if self.chunks:
            oldest = self.chunks[0]
            self.first = [chunk for chunk in self.first if chunk.scene >= oldest.scene]
            self.recached = [each for each in self.recached if each.frame > oldest.scene]
            while len(self.recached) > 1 and self.recached[1].frame < oldest.frame:
                self.recached.pop(0)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def __len__(self) -> int:
        """Frames that are kept."""
        return self._frames
