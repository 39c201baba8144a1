"""An engine process without a model: it obeys and reports like the real one. Its pictures say whose they are.

Its sessions are told apart by their seeds where one of them is to fail: see `Scene.faults`.
"""

import io
import multiprocessing
import os
import time
import zlib
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image

from forcing.serve import orders, wire

BLOCK, BITS, BEAT = 8, 32, 0.1
FAULTS = ("raise", "memory", "nan", "hang", "exit", "poison")


class Marks(NamedTuple):
    """What a picture says. frame: its number. event: low 32 bits. prompt: CRC-32 of its UTF-8, 0 for none.

    keys: bit n is set where key n of the world is down. seed: low 32 bits.
    """

    session: int
    generation: int
    frame: int
    event: int
    prompt: int
    keys: int
    seed: int


def paint(marks: Marks, width: int = 320, height: int = 192) -> np.ndarray:
    """A picture, uint8 [height, width, 3], at least 256 x 64, that `read` can read after JPEG.

    Each number is a row of 32 blocks of 8 x 8 pixels from the left, white for a 1 and black for a 0, the most
    significant bit first: `Marks` in their order, from the top, and then the exclusive or of all of them with all ones.
    Around them is a colour of the prompt's, with a bar that moves.
    """
    if width < BITS * BLOCK or height < (len(marks) + 1) * BLOCK:
        raise ValueError(f"{width}x{height} pixels are too few: at least {BITS * BLOCK}x{(len(marks) + 1) * BLOCK}")
    hue = np.frombuffer(marks.prompt.to_bytes(4, "big"), np.uint8)[1:]
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = hue // 2 + 64
    picture[:, 4 * marks.frame % width :][:, :BLOCK] = 255 - hue
    numbers = np.array([*marks, _check(marks)], ">u4").view(np.uint8).reshape(-1, 4)
    blocks = np.unpackbits(numbers, axis=1).repeat(BLOCK, 0).repeat(BLOCK, 1)
    picture[: blocks.shape[0], : blocks.shape[1]] = 255 * blocks[:, :, None]
    return picture


def read(picture: np.ndarray) -> Marks:
    """What `paint` was told. ValueError where it cannot be read."""
    rows = len(Marks._fields) + 1
    blocks = picture[: rows * BLOCK, : BITS * BLOCK].reshape(rows, BLOCK, BITS, BLOCK, 3).mean((1, 3, 4)) > 127
    *numbers, check = (int(row) for row in np.packbits(blocks, axis=1).view(">u4")[:, 0])
    marks = Marks(*numbers)
    if _check(marks) != check:
        raise ValueError(f"a picture that nobody painted, or a damaged one: {marks}")
    return marks


def _check(marks: Marks) -> int:
    check = 0xFFFFFFFF
    for number in marks:
        check ^= number
    return check


@dataclass(frozen=True)
class Scene:
    """fps: pictures a second of each session, pass_s: seconds a chunk takes; prompt_s: until a prompt is understood.

    faults: by seed, what becomes of a session after so many chunks (`after`): "raise", "memory", "nan" end it; "hang"
    and "exit" the process, "poison" does so each time that the session is opened. start_s: before it is ready.
    """

    sessions: int = 8
    fps: float | None = 16.0
    pass_s: float = 0.002
    width: int = 320
    height: int = 192
    frames: int = 1
    chunk: int = 1
    prompts: tuple[str, ...] = ()
    keys: tuple[str, ...] = ("left", "right", "forward")
    start_s: float = 0.0
    prompt_s: float = 0.0
    save: int = 4
    keep: int = 512
    after: int = 3
    faults: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for fault in self.faults.values():
            if fault not in FAULTS:
                raise ValueError(f"fault is {fault!r}: choose from {', '.join(FAULTS)}")

    @property
    def world(self) -> wire.World:
        size, fps = (self.width, self.height), self.fps or 0.0
        rest = (fps, self.frames, self.chunk, [1, 2, 4], True)
        return wire.World("mock", list(self.prompts), list(self.keys), *size, *rest)


@dataclass
class Viewer:
    """What it has been told, and how far it is. latent: the next frame's number."""

    session: int
    generation: int
    prompt: str | None
    seed: int
    reality: bool = False
    latent: int = 0
    event: int = 0
    held: list[str] = field(default_factory=list)
    tapped: list[str] = field(default_factory=list)
    asks: deque[tuple[float, orders.Ask]] = field(default_factory=deque)
    credit: int = 0
    paused: bool = False
    peeks: bool = False  # one chunk although it is paused, to see where it went back to
    due: float = 0.0
    well: bool = False  # went on from what was saved: no fault again


def main(connection: Connection, options: Mapping[str, Any]) -> None:
    """Serve until told to stop, or until nobody listens."""
    scene = msgspec.convert(dict(options), Scene)
    time.sleep(scene.start_s)
    with suppress(EOFError, OSError):
        Mock(connection, scene).run()
    connection.close()


class Mock:
    """The engine: who is due first is served first, and overload makes everyone later by the same measure."""

    def __init__(self, connection: Connection, scene: Scene) -> None:
        self.connection, self.scene = connection, scene
        self.viewers: dict[int, Viewer] = {}
        self.progress, self.beaten, self.hangs, self.stopped = 0, 0.0, False, False

    def run(self) -> None:
        self.say(orders.Ready(self.scene.world, self.scene.sessions))
        while not self.stopped:
            self.beat()
            wait = BEAT if self.hangs else min(BEAT, self.tick())
            while self.connection.poll(wait):
                self.obey(orders.order(self.connection.recv_bytes()))
                wait = 0.0

    def say(self, report: orders.AnyReport) -> None:
        self.connection.send_bytes(orders.pack(report))

    def beat(self) -> None:
        now = time.monotonic()
        if now - self.beaten >= BEAT:
            self.beaten = now
            busy = self.hangs or any(each.due <= now for each in self.wanting())
            self.say(orders.Beat(self.progress, busy, 1000 * self.scene.pass_s))

    def wanting(self) -> list[Viewer]:
        return [each for each in self.viewers.values() if each.credit > 0 and (each.peeks or not each.paused)]

    def tick(self) -> float:
        """Make a chunk, if one is due; returns the seconds until one is."""
        viewer = min(self.wanting(), key=lambda each: each.due, default=None)
        now = time.monotonic()
        if viewer is None or viewer.due > now:
            return BEAT if viewer is None else viewer.due - now
        self.progress += 1
        if not self.fails(viewer):
            self.make(viewer, now)
            each = self.scene.frames * self.scene.chunk / (self.scene.fps or 1e9)
            viewer.due = max(viewer.due + each, time.monotonic())
        return 0.0

    def fails(self, viewer: Viewer) -> bool:
        fault = self.scene.faults.get(viewer.seed)
        if fault is None or viewer.latent < self.scene.after * self.scene.chunk or (viewer.well and fault != "poison"):
            return False
        if fault == "hang":
            self.hangs = True
        elif fault in ("exit", "poison"):
            if multiprocessing.parent_process() is not None:
                os._exit(3)
            raise EOFError("an engine in a thread leaves")
        else:
            del self.viewers[viewer.session]
            told = {"raise": "a pass failed", "memory": "not enough memory", "nan": "pictures are not finite"}[fault]
            self.say(orders.Failed(viewer.session, told, "busy" if fault == "memory" else "failed"))
        return True

    def make(self, viewer: Viewer, began: float) -> None:
        asked: tuple[str | None, wire.Switch] | None = None
        while viewer.asks and viewer.asks[0][0] <= began:
            ask = viewer.asks.popleft()[1]
            viewer.prompt, asked = ask.prompt, (ask.prompt, ask.switch)
            self.say(orders.Applied(viewer.session, ask.event, viewer.latent, viewer.generation))
        event, pictures = viewer.event, self.pictures(viewer)
        time.sleep(self.scene.pass_s)
        first, took = viewer.latent * self.scene.frames, round(1e6 * (time.monotonic() - began))
        reality = pictures if viewer.reality else []
        numbers = (viewer.session, viewer.generation, first, viewer.latent, event, took)
        self.say(orders.Frames(*numbers, wire.JPEG, pictures, reality, asked=asked))
        viewer.latent += self.scene.chunk
        viewer.credit, viewer.peeks = viewer.credit - 1, False
        if viewer.latent // self.scene.chunk % self.scene.save == 0:
            self.say(orders.Saved(viewer.session, viewer.generation, viewer.latent, self.saved(viewer)))

    @staticmethod
    def saved(viewer: Viewer) -> bytes:
        return msgspec.msgpack.encode((viewer.prompt, viewer.seed, viewer.latent))

    def pictures(self, viewer: Viewer) -> list[bytes]:
        scene, down = self.scene, {*viewer.held, *viewer.tapped}
        keys = sum(1 << n for n, key in enumerate(scene.keys) if key in down)
        viewer.tapped = []
        prompt = 0 if viewer.prompt is None else zlib.crc32(viewer.prompt.encode())
        first, event, seed = viewer.latent * scene.frames, viewer.event % 2**32, viewer.seed % 2**32
        made = []
        for frame in range(first, first + scene.frames * scene.chunk):
            marks = Marks(viewer.session, viewer.generation, frame, event, prompt, keys, seed)
            data = io.BytesIO()
            Image.fromarray(paint(marks, scene.width, scene.height)).save(data, "JPEG", quality=85)
            made.append(data.getvalue())
        return made

    def obey(self, order: orders.AnyOrder) -> None:
        if isinstance(order, orders.Stop):
            self.stopped = True
        elif isinstance(order, orders.Open):
            self.open(order)
        elif isinstance(order, orders.Fork):
            other = deepcopy(self.viewers[order.session])
            other.session, other.credit, other.paused, other.asks = order.other, 0, False, deque()
            self.viewers[order.other] = other
        elif order.session in self.viewers:
            self.steer(order, self.viewers[order.session])

    def open(self, order: orders.Open) -> None:
        self.viewers.pop(order.session, None)
        if len(self.viewers) >= self.scene.sessions:
            self.say(orders.Failed(order.session, f"all {self.scene.sessions} sessions are taken", "busy"))
            return
        viewer = Viewer(order.session, order.generation, order.prompt, order.seed, order.beside is not None)
        if order.saved is not None:
            viewer.prompt, viewer.seed, viewer.latent = msgspec.msgpack.decode(order.saved)
        viewer.due, viewer.well = time.monotonic(), order.saved is not None
        self.viewers[order.session] = viewer

    def steer(self, order: orders.ForSession, viewer: Viewer) -> None:
        match order:
            case orders.Ask():
                viewer.asks.append((time.monotonic() + self.scene.prompt_s, order))
            case orders.Press(event=event, held=held, tapped=tapped):
                viewer.event, viewer.held = event, held
                viewer.tapped += tapped
            case orders.Grant(chunks=chunks):
                viewer.credit += chunks
            case orders.Pause(on=on):
                viewer.paused, viewer.peeks = on, False
            case orders.Back(generation=generation, frame=frame):
                viewer.generation, viewer.credit = generation, 0
                if not max(0, viewer.latent - self.scene.keep) <= frame < viewer.latent:
                    kept = f"frames {max(0, viewer.latent - self.scene.keep)} to {viewer.latent - 1} are kept"
                    self.say(orders.Refused(viewer.session, "not_kept", f"frame is {frame}: {kept}"))
                else:
                    viewer.latent, viewer.peeks = frame - frame % self.scene.chunk, viewer.paused
                    self.say(orders.Went(viewer.session, generation, viewer.latent, viewer.prompt))
            case orders.Export(request=request, what="session"):
                self.say(orders.Exported(viewer.session, request, self.saved(viewer)))
            case orders.Export(request=request):
                name = f"film of {viewer.session} up to {viewer.latent}".encode()
                self.say(orders.Exported(viewer.session, request, b"\0\0\0\x18ftypmp42" + name))
            case orders.Close():
                del self.viewers[order.session]
