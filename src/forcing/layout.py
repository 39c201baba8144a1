"""Who sits where in time and who may look at whom.

An attention pattern is a value, not a class: frame times (they drive RoPE), a boolean table over frames, and a past.
Backbones widen the table to tokens. `Past` is a frozen snapshot to read from; `Cache` is what changes, with one verb
for making room (`past`) and one for committing (`settle`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forcing.shapes import Bool, Float, FrameMask, Times

Frames = tuple[tuple[Tensor, Tensor], ...]  # keys and values of each frame [B, tokens, heads, dim]


@dataclass(frozen=True)
class Layout:
    """`times` [F]: frame index of each frame of the input. `mask` [F, F]: may row attend to column; None = all may.

    Frames of `past`, if any, are visible to every frame of the input, unless the mask has columns for them, too, which
    come first: [F, P + F]. mute: so many first frames are there for their keys and values alone; no velocity comes back
    for them, and the last layer of a network need not make one.
    """

    times: Times
    mask: FrameMask | None = None
    past: "Past | None" = None
    mute: int = 0

    def on(self, device: torch.device) -> Times:
        """The times on a device: those that follow one another without a copy from the host, which would wait."""
        if self.times.device == device:
            return self.times
        start, frames = int(self.times[0]), len(self.times)
        follow = torch.equal(self.times.double(), _times(start, start + frames))
        return _times(start, start + frames, device) if follow else self.times.to(device)

    def table(self) -> FrameMask | None:
        """The mask with the past's columns first: [F, P + F], or None when everything is visible."""
        if self.mask is None or self.past is None or self.past.held == 0 or len(self.mask) < self.mask.shape[1]:
            return self.mask
        return torch.cat(
            [torch.ones(len(self.mask), self.past.held, dtype=torch.bool, device=self.mask.device), self.mask], 1
        )


def full(frames: int) -> Layout:
    """Bidirectional: every frame sees every frame."""
    return Layout(_times(0, frames))


def causal(frames: int, chunk: int) -> Layout:
    """Chunk-causal: a frame sees its own chunk and all chunks before it."""
    number = _chunks(frames, chunk)
    return Layout(_times(0, frames), number[:, None] >= number)


def teacher_forced(frames: int, chunk: int) -> Layout:
    """For a [clean; noisy] sequence of 2 x `frames`: noisy chunk i sees clean chunks < i and itself."""
    number = _chunks(frames, chunk)
    before, same = number[:, None] > number, number[:, None] == number
    clean = torch.cat([before | same, torch.zeros_like(same)], 1)
    noisy = torch.cat([before, same], 1)
    times = _times(0, frames)
    return Layout(torch.cat([times, times]), torch.cat([clean, noisy]))


def after(past: "Past", frames: int, mute: int = 0) -> Layout:
    """The next `frames` frames, seeing each other and the past."""
    return Layout(_times(past.end, past.end + frames), past=past, mute=mute)


def merged(past: "Past", chunk: int) -> Layout:
    """The newest clean chunk, to be settled, and the next noisy one in one pass: [clean; noisy] of 2 x `chunk` frames.

    The noisy chunk sees the clean one, and of the past what will be left when that has settled. The clean one is mute.
    """
    see = torch.ones(2 * chunk, past.held + 2 * chunk, dtype=torch.bool)
    see[:chunk, past.held + chunk :] = False
    see[chunk:, list(past.leaving)] = False
    return Layout(_times(past.end, past.end + 2 * chunk), see, past, mute=chunk)


@dataclass(frozen=True)
class Abreast:
    """Layouts of clips that share a pass and nothing else; each has its share of the batch, in order.

    All have as many frames, and as many mute ones.
    """

    layouts: tuple[Layout, ...]
    clips: tuple[int, ...]

    def on(self, device: torch.device) -> Float[Tensor, "b f"]:
        """Frame index of each frame of each clip, on a device."""
        times = [one.on(device).expand(clips, -1) for one, clips in zip(self.layouts, self.clips, strict=True)]
        return torch.cat(times)

    @property
    def mute(self) -> int:
        return self.layouts[0].mute


@dataclass(frozen=True)
class Past:
    """What the cache held when it was asked: a snapshot that later writes and evictions leave as it is.

    So a checkpointed block that is recomputed during backward sees what its forward saw.
    """

    held: int  # frames that can be attended to
    end: int  # index of the next frame
    layers: tuple[Frames, ...]  # shared between snapshots: each frame is in memory once, however many saw it
    fresh: dict[int, tuple[Tensor, Tensor, int | None]]  # layer -> keys, values, frames of the newest forward
    leaving: tuple[int, ...] = ()  # of these frames, then the next chunk's, those that the chunk after it will not see

    def extend(self, layer: int, k: Tensor, v: Tensor, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, heads, dim] of the past and of the input, in that order.

        frames: of the input, for those who will settle fewer.
        """
        self.fresh[layer] = (k, v, frames)
        held = self.layers[layer]
        if not held:
            return k, v
        return torch.cat([*(key for key, _ in held), k], 1), torch.cat([*(value for _, value in held), v], 1)


class Cache:
    """Keys and values of settled frames: at most `window` frames including the chunk being denoised.

    The first `sink` frames are never evicted; the oldest others are.
    """

    def __init__(self, layers: int, *, window: int, sink: int = 0) -> None:
        if window < 1 or not 0 <= sink < window:
            raise ValueError(f"need window >= 1 and 0 <= sink < window, got window {window} and sink {sink}")
        self.window, self.sink = window, sink
        self.held, self.end = 0, 0
        self.layers: list[Frames] = [()] * layers
        self._reading: Past | None = None

    def past(self, room: int) -> Past:
        """Make room for `room` frames inside the window, and return a snapshot of what stays."""
        if room < 1 or room + self.sink > self.window:
            raise ValueError(f"a window of {self.window} frames with {self.sink} sink frames has no room for {room}")
        self._evict(max(0, self.held + room - self.window))
        leaving = tuple(range(self.sink, self.sink + max(0, self.held + 2 * room - self.window)))
        self._reading = Past(self.held, self.end, tuple(self.layers), {}, leaving)
        return self._reading

    def settle(self, frames: int) -> None:
        """Commit the first `frames` frames of the newest forward: they are the past from now on."""
        if self._reading is None or not self._reading.fresh:
            raise RuntimeError("settle() needs a forward pass since past()")
        reading, self._reading = self._reading, None
        for layer, held in enumerate(reading.layers):
            self.layers[layer] = (*held, *_frames(*reading.fresh[layer], frames))
        self.held += frames
        self.end += frames

    def clear(self, end: int = 0) -> None:
        """Forget everything; the next frame is number `end`."""
        self.held, self.end, self._reading = 0, end, None
        self.layers = [()] * len(self.layers)

    def _evict(self, frames: int) -> None:
        if frames == 0:
            return
        # new tuples: snapshots given out earlier keep the frames that they were made of
        self.layers = [held[: self.sink] + held[self.sink + frames :] for held in self.layers]
        self.held -= frames


def widen(table: FrameMask, queries: int, keys: int) -> Bool[Tensor, "tq tk"]:
    """A frame table as a token mask, for `queries` and `keys` tokens a frame."""
    return table.repeat_interleave(queries, 0).repeat_interleave(keys, 1)


def _frames(k: Tensor, v: Tensor, asked: int | None, frames: int) -> Frames:
    """The first `frames` frames of keys and values of `asked` frames."""
    split = [each.unflatten(1, (asked or frames, -1)).unbind(1)[:frames] for each in (k, v)]
    if asked is not None and frames < asked:  # what is not settled should not stay in memory with what is
        split = [tuple(frame.clone() for frame in each) for each in split]
    return tuple(zip(*split, strict=True))


def _times(start: int, stop: int, device: torch.device | None = None) -> Times:
    return torch.arange(start, stop, dtype=torch.float64, device=device)  # float32 cannot count beyond 2^24


def _chunks(frames: int, chunk: int) -> Tensor:
    if chunk < 1 or frames % chunk:
        raise ValueError(f"{frames} frames do not divide into chunks of {chunk}")
    return torch.arange(frames) // chunk
