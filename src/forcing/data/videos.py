"""Clips of video files: frames as they are seen at a given rate, all of one size, decoded in order.

However long a video is, no more of it than one clip is in memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

from forcing.codecs import Pixels
from forcing.data.captions import UnusableError

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

Fit = Literal["crop", "pad"]

SLOWEST = 0.9  # a source may have so much of the rate that is asked for
GAP = 1  # longest time, in seconds, between two frames of a source

# Among the formats that FFmpeg knows are playlists: a file could have it open others, here or elsewhere.
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,gif,mpegts,mpeg,flv,asf"}
_TIMELESS = (
    "avi"  # its frames follow one another at a fixed rate, and what FFmpeg says of their times is in another order
)
_MICRO = 10**6
_FILTER = Image.Resampling.LANCZOS
_WHOLE = 0.9  # of the length that a file claims; one that ends before was cut off


@dataclass(frozen=True)
class Cut:
    """How videos become clips.

    size: (height, width) in pixels. frames: of a clip. fps: frames a second that clips play at. fit: what is done with
    another aspect, "crop" the middle or "pad" with black. stride: frames from one clip's start to the next, default
    `frames`. most: clips of one video, default all.
    """

    size: tuple[int, int] = (480, 832)
    frames: int = 81
    fps: float = 16.0
    fit: Fit = "crop"
    stride: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.frames < 1:
            raise ValueError(f"clips of {self.frames} frames of {self.size[1]}x{self.size[0]}: give at least 1 of each")
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps is {self.fps}: it must be above 0 and at most 240")
        if self.fit not in ("crop", "pad"):
            raise ValueError(f"fit is {self.fit!r}: choose crop or pad")
        for name, value in (("stride", self.stride), ("clips", self.most)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")


def clips(path: Path, cut: Cut) -> Iterator[tuple[float, Pixels]]:
    """(start in seconds, uint8 [F, H, W, 3]) of each clip of a video, in order. UnusableError says why there is none.

    It may come after some clips, where a file is damaged further on.
    """
    step = cut.stride or cut.frames
    window: deque[np.ndarray] = deque(maxlen=cut.frames)
    seen, made = 0, 0
    with _readable():
        for frame in _played(path, cut):
            window.append(frame)
            seen += 1
            if seen >= cut.frames and (seen - cut.frames) % step == 0:
                yield (seen - cut.frames) / cut.fps, np.stack(window)
                made += 1
                if made == cut.most:
                    return
    if not made:
        raise UnusableError(f"has {seen} frames at {cut.fps:g} fps, and a clip takes {cut.frames}")


def ending(path: Path, cut: Cut) -> Pixels:
    """uint8 [F, H, W, 3]: the last frames of a video, at most `cut.frames`. UnusableError says why there are none."""
    with _readable():
        window = deque(_played(path, cut), maxlen=cut.frames)
    return np.stack(window)


def fitted(picture: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """A picture [H, W, 3] at `size` (height, width), its proportions kept: the middle is cropped, or black added."""
    height, width = size
    done = (ImageOps.fit if fit == "crop" else ImageOps.pad)(Image.fromarray(picture), (width, height), _FILTER)
    return np.asarray(done)


def library() -> ModuleType:
    """PyAV. ValueError where it is not installed."""
    try:
        import av
    except ModuleNotFoundError as missing:
        raise ValueError('videos need the package av: pip install "forcing[video]"') from missing
    return av


def _played(path: Path, cut: Cut) -> Iterator[np.ndarray]:
    """What is seen at each tick of the rate: the frame that is nearest in time."""
    rate = Fraction(cut.fps).limit_denominator(1001)
    shown: tuple[Fraction, VideoFrame] | None = None
    ticks = 0
    for time, frame in _frames(path, cut.fps):
        if shown is not None:
            nearer = math.floor((shown[0] + time) / 2 * rate) + 1 - ticks
            if nearer > 0:
                yield from repeat(_fitted(shown[1], cut), nearer)
                ticks += nearer
        if frame is not None:
            shown = time, frame


def _frames(path: Path, fps: float) -> Iterator[tuple[Fraction, VideoFrame | None]]:
    """(seconds from the first, frame) in the order of time, then None when the last one has ended."""
    with library().open(str(path.absolute()), metadata_errors="ignore", options=_OPTIONS) as file:
        if not file.streams.video:
            raise UnusableError("holds no video")
        stream = file.streams.video[0]
        rate = stream.average_rate
        if not rate or rate < SLOWEST * fps:
            needs = f"and clips at {fps:g} fps take at least {SLOWEST * fps:.3g}"
            raise UnusableError(f"has only {float(rate):.3g} fps, {needs}" if rate else "does not tell its frame rate")
        counted = file.format.name == _TIMELESS
        first, last = None, Fraction(0)
        for number, frame in enumerate(file.decode(stream)):
            if frame.is_corrupt or (frame.pts is None and not counted):
                raise UnusableError(f"is damaged at frame {number}")
            at = number / rate if counted else frame.pts * frame.time_base
            first = at if first is None else first
            if at - first > last + GAP:
                raise UnusableError(f"has no frame between {float(last):.2f} and {float(at - first):.2f} seconds")
            if number == 0 or at - first > last:  # two frames at a time: players show the first, too
                last = at - first
                yield last, frame
        end, claimed = last + 1 / rate, _claimed(file, stream)
        if end < _WHOLE * claimed:
            raise UnusableError(f"ends after {float(end):.2f} of {float(claimed):.2f} seconds")
        yield end, None


def _claimed(file: InputContainer, stream: VideoStream) -> Fraction:
    # How long the video says that it is. Where only the whole file says so, its sound may be what lasts longer.
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    return Fraction(file.duration or 0, _MICRO) if len(file.streams) == 1 else Fraction(0)


def _fitted(frame: VideoFrame, cut: Cut) -> np.ndarray:
    upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)  # phones film lying on their side
    return fitted(upright, cut.size, cut.fit)


@contextmanager
def _readable() -> Iterator[None]:
    av = library()
    try:
        yield
    except UnusableError:
        raise
    except av.FFmpegError as error:
        raise UnusableError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UnusableError(f"cannot be read: {error}") from error
