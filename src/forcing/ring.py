"""A cache for streaming: the same past as `layout.Cache`, without an allocation or a copy of what stays.

All keys and values live in one tensor. Frames held come first, in any order: attention does not ask for it, since keys
are rotated already. The newest forward writes behind them, and what settles stays where it was written until the window
is full; from then on it takes the place of what leaves. Frames that leave next stand first, so that what either half
of a merged pass may see is one run of frames.
"""

from dataclasses import dataclass, field

from torch import Tensor

from forcing.layout import Cache, Past


@dataclass(frozen=True)
class Reading(Past):
    """A past whose keys and values are in a `Ring`: good until that settles."""

    ring: "Ring" = field(kw_only=True)

    def extend(self, layer: int, k: Tensor, v: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        if frames is None:
            raise ValueError("a ring must be told how many frames are written to it")
        return self.ring.write(layer, k, v, frames)


class Ring(Cache):
    """Keys and values of settled frames, for inference alone: readings are not snapshots.

    layers: of the network. window, sink: as in `Cache`. chunk: frames that are denoised together; room for them is kept
    at all times, so that nothing has to leave when a chunk begins.
    """

    def __init__(self, layers: int, *, window: int, sink: int = 0, chunk: int = 1) -> None:
        super().__init__(layers, window=window, sink=sink)
        if chunk < 1 or chunk + sink > window:
            raise ValueError(f"a window of {window} frames with {sink} sink frames has no room for chunks of {chunk}")
        self.chunk, self.most = chunk, window - chunk
        self._store: Tensor | None = None  # [layers, 2, B, most + 2 chunks, tokens, heads, dim]
        self._places: list[int] = []  # where each frame held is, the oldest first
        self._written = 0  # frames of the newest forward

    def past(self, room: int) -> Reading:
        """What is held."""
        if not 1 <= room <= self.chunk:
            raise ValueError(f"this ring keeps room for {self.chunk} frames, not for {room}")
        self._written = 0
        leaving = range(self.sink, self.sink + self._leaving(self.held))
        places = tuple(i - self.sink if i < self.held else i for i in leaving)
        return Reading(self.held, self.end, (), {}, places, ring=self)

    def write(self, layer: int, k: Tensor, v: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, heads, dim] of all that is held and of the input, as views; the input is written."""
        if frames > 2 * self.chunk:
            raise ValueError(f"this ring keeps room for {2 * self.chunk} frames, not for {frames}")
        if self._store is None:
            frame = (k.shape[0], self.most + 2 * self.chunk, k.shape[1] // frames, *k.shape[2:])
            self._store = k.new_zeros((len(self.layers), 2, *frame))
        start, stop = self.held, self.held + frames
        self._written = frames
        own = self._store[layer]
        for part, value in zip(own, (k, v), strict=True):
            part[:, start:stop].copy_(value.unflatten(1, (frames, -1)))
        keys, values = (part[:, :stop].flatten(1, 2) for part in own)
        return keys, values

    def wrote(self, frames: int) -> None:
        """Take it that a forward has written so many frames: one that was recorded, and replayed on this memory."""
        self._written = frames

    @property
    def nbytes(self) -> int:
        """Bytes of its memory."""
        return 0 if self._store is None else self._store.nbytes

    @property
    def tokens(self) -> int:
        """Of a frame; 0 before the first was written."""
        return 0 if self._store is None else self._store.shape[4]

    @property
    def where(self) -> int | None:
        """The address of its memory."""
        return None if self._store is None else self._store.data_ptr()

    def settle(self, frames: int) -> None:
        """Commit the first `frames` frames of the newest forward."""
        if not 1 <= frames <= self._written:
            raise RuntimeError(f"settle({frames}) needs a forward pass of so many frames since past()")
        at = [*self._places, *range(self.held, self.held + frames)]
        del at[self.sink : self.sink + max(0, len(at) - self.most)]
        self.held = len(at)
        self.end += frames
        self._places = self._arranged(at)
        self._move({old: new for old, new in zip(at, self._places, strict=True) if old != new})
        self._written = 0

    def drop(self) -> None:
        """Forget everything, and give the memory back."""
        self.clear()
        self._store = None

    def become(self, other: "Ring") -> None:
        """Hold what another ring of the same sizes holds, in the memory that this one has, if it has any."""
        if (self.window, self.sink, self.chunk) != (other.window, other.sink, other.chunk):
            raise ValueError("rings of different sizes cannot hold the same")
        own, store = self._store, other._store
        if own is not None and store is not None and own.shape == store.shape and own.dtype == store.dtype:
            own.copy_(store)  # passes may have been recorded on it
        elif store is not None:
            self._store = store.clone()
        self.held, self.end, self._places = other.held, other.end, list(other._places)

    def _move(self, moves: dict[int, int]) -> None:
        """Copy frames to other places, none before what is there has been copied; places that leave are free."""
        spare = self.most + 2 * self.chunk - 1  # held the noisy half of the newest forward
        while moves and self._store is not None:
            old, new = next(((old, new) for old, new in moves.items() if new not in moves), (next(iter(moves)), spare))
            self._store[:, :, :, new].copy_(self._store[:, :, :, old])
            last = moves.pop(old)
            if new != last:  # a circle
                moves[spare] = last

    def clear(self, end: int = 0) -> None:
        """Forget everything but the memory; the next frame is number `end`."""
        super().clear(end)
        self._places, self._written = [], 0

    def _arranged(self, at: list[int]) -> list[int]:
        """Where frames that are at `at` should be: without holes, those that leave next first, and else unmoved."""
        first = range(max(0, min(self._leaving(len(at)), len(at) - self.sink)))
        free = set(range(len(at))) - set(first)
        places: list[int | None] = [None] * len(at)
        for i, now in enumerate(at):
            if i - self.sink in first:
                places[i] = i - self.sink
            elif now in free:
                places[i] = now
        free -= set(places)
        return [free.pop() if place is None else place for place in places]

    def _leaving(self, held: int) -> int:
        """How many frames the next chunk drives out, where so many are held."""
        return max(0, held + self.chunk - self.most)
