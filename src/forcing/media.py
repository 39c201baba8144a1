"""Clips as files: MP4, GIF and PNG sheets. Pixel art stays crisp, and a file appears whole or not at all.

A clip is uint8 [F, H, W, 3]. Writers take it piece by piece, as it is generated.
"""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from forcing import files

FORMATS = (".mp4", ".gif", ".png")

_MARGIN = 4  # pixels between the frames of a sheet
_PAPER = 24  # the grey between them
_INK, _SHADE = (255, 255, 255), (0, 0, 0)
_HEADINGS = {"left": (-1, 0), "right": (1, 0), "forward": (0, -1), "up": (0, -1), "back": (0, 1), "down": (0, 1)}


def save(path: Path, clip: np.ndarray, *, fps: float = 8.0, scale: int = 1) -> Path:
    """Write a clip in the format that the name of `path` ends in."""
    with writer(path, fps=fps, scale=scale) as out:
        out.add(clip)
    return path


def writer(path: Path, *, fps: float = 8.0, scale: int = 1) -> Film | Whole:
    """What writes the format that the name of `path` ends in: `add` frames within its `with` block.

    The file appears when the block ends without an error. Each pixel becomes `scale` x `scale`.
    """
    check(path, fps=fps, scale=scale)
    if path.suffix.lower() == ".mp4":
        return Film(path, fps, scale)
    return Whole(path, fps, scale)


def check(path: Path, *, fps: float, scale: int) -> None:
    """ValueError, before any work, for what cannot be written."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} has the extension {path.suffix!r}; clips are written as {', '.join(FORMATS)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if not 0 < fps <= 240:
        raise ValueError(f"fps is {fps}: it must be above 0 and at most 240")
    if not 1 <= scale <= 64:
        raise ValueError(f"scale is {scale}: it must be a whole number from 1 to 64")
    if path.suffix.lower() == ".mp4":
        _av()


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Nearest neighbour: each pixel of [..., H, W, 3] becomes `scale` x `scale`."""
    return frames.repeat(scale, -3).repeat(scale, -2)


def sheet(clip: np.ndarray, columns: int | None = None, margin: int = _MARGIN) -> np.ndarray:
    """All frames of a clip in reading order as one image [H, W, 3]; about twice as wide as high by default."""
    frames, height, width, _ = clip.shape
    across = min(frames, columns or max(1, round((2 * frames * height / width) ** 0.5)))
    down = -(-frames // across)
    image = np.full((down * (height + margin) + margin, across * (width + margin) + margin, 3), _PAPER, np.uint8)
    for i, frame in enumerate(clip):
        top, left = margin + i // across * (height + margin), margin + i % across * (width + margin)
        image[top : top + height, left : left + width] = frame
    return image


def png(image: np.ndarray) -> bytes:
    """An image [H, W, 3] as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png", optimize=True)
    return out.getvalue()


def gif(clip: np.ndarray, fps: float = 8.0, scale: int = 1) -> bytes:
    """A looping GIF file. Its colours are exact where the clip has at most 256 of them, else the nearest of 256."""
    _clip(clip)
    palette, numbers = _palette(clip)
    images = [Image.fromarray(frame, "P") for frame in numbers.repeat(scale, 1).repeat(scale, 2)]
    for image in images:
        image.putpalette(palette)
    out = io.BytesIO()
    # a GIF counts hundredths of a second; equal frames in a row are stored once, for longer
    images[0].save(
        out, "gif", save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0, disposal=1
    )
    return out.getvalue()


def with_key(frame: np.ndarray, key: str | None) -> np.ndarray:
    """A frame [H, W, 3] above a strip that shows the key that led to it: an arrow, its name, or nothing (None)."""
    side = max(8, min(frame.shape[:2]) // 6)
    image = Image.fromarray(np.pad(frame, [(0, 2 * side), (0, 0), (0, 0)], constant_values=_PAPER))
    if key is None:
        return np.asarray(image)
    draw = ImageDraw.Draw(image)
    x, y = side, frame.shape[0] + side
    if key in _HEADINGS:
        dx, dy = _HEADINGS[key]
        reach, wide = 0.8 * side, 0.6 * side
        tip = (x + dx * reach, y + dy * reach)
        feet = [(x - dx * wide / 2 + s * dy * wide, y - dy * wide / 2 + s * dx * wide) for s in (-1, 1)]
        draw.polygon([tip, *feet], fill=_INK, outline=_SHADE, width=max(1, side // 12))
    else:
        font = ImageFont.load_default(0.75 * side)
        draw.text((side // 3, y - side // 2), key, fill=_INK, font=font, stroke_fill=_SHADE, stroke_width=1)
    return np.asarray(image)


def image(path: Path) -> np.ndarray:
    """An image file as uint8 [H, W, 3], upright."""
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)  # cameras say beside the pixels how they were held
            # greys of more than 8 bits would be cut off at 255
            pixels = np.array(upright if upright.mode[0] in "IF" else upright.convert("RGB"))
    except FileNotFoundError:
        raise
    except Exception as damage:  # whatever bytes that mean something else lead the library to
        raise ValueError(f"{path} is not an image that can be read: {damage}") from damage
    if pixels.dtype == np.uint16:
        pixels = np.round(pixels / 257).astype(np.uint8)[..., None].repeat(3, -1)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{path} has pixels of {pixels.dtype}: an image has 8 or 16 bits for each colour")
    return pixels


class Whole:
    """GIF and PNG need all frames before the first byte."""

    def __init__(self, path: Path, fps: float, scale: int) -> None:
        self.path, self.fps, self.scale = path, fps, scale
        self._pieces: list[np.ndarray] = []

    def __enter__(self) -> Whole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or not self._pieces:
            return
        clip = np.concatenate(self._pieces)
        if self.path.suffix.lower() == ".gif":
            files.write(self.path, gif(clip, self.fps, self.scale))
        else:
            files.write(self.path, png(sheet(enlarge(clip, self.scale))))

    def add(self, frames: np.ndarray) -> None:
        self._pieces.append(_clip(frames).copy())


class Film:
    """H.264 through PyAV (MPEG-4 where it was built without), encoded while frames come in."""

    def __init__(self, path: Path, fps: float, scale: int) -> None:
        self.path, self.fps, self.scale = path, fps, scale
        self._av, self._draft = _av(), files.draft_of(path)
        self._file: Any = None
        self._stream: Any = None

    def __enter__(self) -> Film:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._av.open(str(self._draft), "w", format="mp4")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stream = self._stream if kind is None else None
        try:
            if stream is not None:
                self._file.mux(stream.encode())
            self._file.close()
            if stream is not None:
                os.replace(self._draft, self.path)
        finally:
            self._draft.unlink(missing_ok=True)

    def add(self, frames: np.ndarray) -> None:
        large = enlarge(_clip(frames), self.scale)
        height, width = large.shape[1:3]
        # chroma is stored for every second pixel, so sides must be even: an odd one repeats its last row or column
        large = np.pad(large, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
        if self._stream is None:
            self._stream = self._open(large.shape[2], large.shape[1])
        for frame in large:
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._file.mux(self._stream.encode(picture.reformat(format="yuv420p")))

    def _open(self, width: int, height: int) -> Any:
        rate = Fraction(self.fps).limit_denominator(1000)
        if "libx264" in self._av.codecs_available:
            # zerolatency: each frame is encoded when it comes. It also makes the bytes a function of the frames:
            # x264's lookahead, where two encoders run in one process, is not reproducible.
            stream = self._file.add_stream("libx264", rate=rate, options={"crf": "12", "tune": "zerolatency"})
        else:
            stream = self._file.add_stream("mpeg4", rate=rate, options={"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes should not depend on the number of cores either
        return stream


def _clip(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a clip is uint8 [F, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    return frames


def _palette(clip: np.ndarray) -> tuple[list[int], np.ndarray]:
    # One palette for the whole clip, so that what does not move does not flicker.
    packed = clip.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, numbers = np.unique(packed, return_inverse=True)
    if len(colours) <= 256:
        exact = [int(colour) >> by & 255 for colour in colours for by in (16, 8, 0)]
        return exact, numbers.reshape(packed.shape).astype(np.uint8)
    tall = Image.fromarray(clip.reshape(-1, clip.shape[2], 3))
    reduced = tall.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return list(reduced.getpalette() or []), np.asarray(reduced).reshape(clip.shape[:3])


def _av() -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as missing:
        raise ValueError('MP4 needs the package av: pip install "forcing[video]" (GIF and PNG do without)') from missing
    return av
