"""An engine process: sessions of one world on one device, told what to do and reporting through a pipe.

One thread serves, another encodes pictures and reports. It leaves when the pipe closes.
"""

import io
import math
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

from forcing import media
from forcing.codecs import Pixels
from forcing.engine.graphs import on_cuda
from forcing.engine.saved import dumps, loads
from forcing.engine.schedule import Engine, Full
from forcing.engine.session import Session, Setup, Shown
from forcing.kit import SmallKit
from forcing.rollout import Plan
from forcing.serve import orders, wire
from forcing.serve.beside import Beside
from forcing.serve.journal import fingerprint
from forcing.serve.texts import Text, Texts, Then
from forcing.serve.viewer import Heard, Viewer
from forcing.train.compute import place
from forcing.world import World

BEAT, SAVE = 0.2, 1.0  # seconds between signs of life, and between what a session can be saved by
TEXT = 0.01  # seconds until it is asked again whether a text is there
SMALL = 128 * 128  # pictures of so few pixels are sent without loss
QUALITY = 85
MOST_EXPORT = 16_000_000  # bytes of latents


@dataclass(frozen=True)
class Options:
    """world: its folder. name, hint, first: what viewers are told of it, see `wire.World`. fps: pictures a second.

    reality: name of the environment that the world imitates, "" for none.

    sessions, rings, batch: see `Engine`. frame: (height, width) of pictures; None for what the world was made for.
    """

    world: str
    fps: float
    sessions: int = 8
    rings: int | None = None
    batch: int = 4
    device: str = "cpu"
    frame: tuple[int, int] | None = None
    reality: str = ""
    threads: int | None = None
    name: str = ""
    hint: str = ""
    first: str | None = None


def main(
    connection: Connection,
    options: Mapping[str, Any],
    plans: Callable[[World], Mapping[int, Plan]] = lambda _: {},
) -> None:
    """Serve until told to stop, or until nobody listens. plans: by passes a frame, what viewers may choose from."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway decides when to leave
    given = Options(**options)
    try:
        host = opened(replace(given, device=place(given.device)), plans, partial(Host, connection))
    except (ValueError, OSError) as wrong:
        connection.send_bytes(orders.pack(orders.Unfit(_told(wrong))))
        return
    host.run()
    if any(film.is_alive() for film in host.films) and multiprocessing.parent_process() is not None:
        os._exit(0)  # it would be torn out of the middle of its arithmetic, with a noise


H = TypeVar("H")


def opened(
    options: Options,
    plans: Callable[[World], Mapping[int, Plan]],
    made: Callable[[Options, World, Mapping[int, Plan]], H],
) -> H:
    """What is made of the world that is named, in this process as the options say."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    fast = None if options.device == "cpu" else torch.bfloat16  # float32 has no fast kernels there
    world = World.load(Path(options.world), device=options.device, dtype=fast)
    return made(options, world, plans(world))


class Host:
    """The engine, its viewers, and the pipe."""

    def __init__(
        self, connection: Connection, options: Options, world: World, plans: Mapping[int, Plan] = MappingProxyType({})
    ) -> None:
        self.connection, self.options, self.world, self.plans = connection, options, world, plans
        setup = Setup.of(world, frame=options.frame)
        on_gpu = torch.device(options.device).type == "cuda"
        self.engine = Engine(
            setup,
            sessions=options.sessions,
            rings=options.rings,
            batch=min(options.batch, options.sessions if options.rings is None else options.rings),
            fps=options.fps,
            recorder=on_cuda() if on_gpu else None,
        )
        self.viewers: dict[int, Viewer] = {}
        self.sessions: dict[int, Session] = {}
        self.numbers: dict[Session, int] = {}
        self.texts = Texts(lambda prompt: world.cond([prompt], None, 1).static)
        self.held: dict[int, deque[orders.ForSession]] = {}  # of who waits for a text to begin with
        self.films: list[threading.Thread] = []
        self.progress, self.busy, self.pass_ms = 0, False, 0.0
        self._reports: queue.SimpleQueue[Callable[[], orders.AnyReport] | None] = queue.SimpleQueue()
        self._gone = threading.Event()

    def run(self) -> None:
        began = time.perf_counter()
        self.engine.warm()
        for prompt in self._described().prompts:
            self.engine.setup.text(prompt)
        self.pass_ms = 1000 * (time.perf_counter() - began) / 8  # at first: a guess that is rather too high
        setup = self.engine.setup
        self._say(orders.Ready(self._described(), self.options.sessions, setup.digest, machine(setup.device)))
        threads = [threading.Thread(target=each, daemon=True) for each in (self._report, self._beat)]
        for thread in threads:
            thread.start()
        try:
            while not self._gone.is_set() and self._obeyed():
                self._tick()
        finally:
            self.texts.close()
            self._reports.put(None)
            for thread in (*threads, *self.films):
                thread.join(timeout=1)

    def _described(self) -> wire.World:
        world, setup = self.world, self.engine.setup
        height, width = self.options.frame or world.kit.frame
        return wire.World(
            name=self.options.name or world.recipe.name,
            prompts=list(world.kit.text.prompts) if isinstance(world.kit, SmallKit) else [],
            keys=list(world.keys.names),
            width=width,
            height=height,
            fps=self.options.fps,
            frames=world.codec.stride[0],
            chunk=setup.how.chunk,
            steps=sorted(self.plans),
            reality=bool(self.options.reality),
            hint=self.options.hint,
            first=self.options.first,
        )

    # ---- what is told

    def _obeyed(self) -> bool:
        """Do what the gateway says, waiting for it where there is nothing to make; False when that is to leave."""
        wait = self.engine.wait()
        self.busy = wait == 0.0
        wait = min(BEAT if wait is None else wait, TEXT if self.texts.waiting else BEAT)
        heard: list[orders.ForSession] = []
        while self.connection.poll(wait):
            try:
                order = orders.order(self.connection.recv_bytes())
            except EOFError:
                return False
            if isinstance(order, orders.Stop):
                return False
            heard.append(order)
            wait = 0.0
        self.busy = self.busy or bool(heard)
        for n, order in enumerate(heard):
            again = (isinstance(later, orders.Open) and later.session == order.session for later in heard[n + 1 :])
            if isinstance(order, orders.Export | orders.Fork) or not any(again):  # else it is begun anew at once
                self._obey(order)
            self.progress += 1
        self.texts.done()
        return True

    def _obey(self, order: orders.ForSession) -> None:
        if isinstance(order, orders.Open):
            self._await(order)
        elif order.session in self.held:
            self.held[order.session].append(order)
        elif isinstance(order, orders.Ask) and order.session in self.viewers:
            self._ask(order)
        else:
            self._do(order)

    def _do(self, order: orders.ForSession) -> None:
        number = order.session
        try:
            if isinstance(order, orders.Open):
                self._open(order)
            elif isinstance(order, orders.Fork):
                self._fork(order)
            elif number in self.sessions:
                self._steer(order, self.sessions[number], self.viewers[number])
            elif isinstance(order, orders.Export):
                self._export(order, partial(filmed, self.world, [], self.options.fps))
        except Exception as wrong:
            if isinstance(order, orders.Fork):
                self._fail(order.other, wrong)
            elif isinstance(order, orders.Open) or number not in self.sessions:
                self._fail(number, wrong)
            else:
                event = order.event if isinstance(order, orders.Press) else None
                code = "not_kept" if isinstance(order, orders.Back) else "failed"
                self._say(orders.Refused(number, code, _told(wrong), event))

    def _await(self, order: orders.Open) -> None:
        """Begin once the text is there; what is said until then waits, too."""
        self._close(order.session)
        held = self.held[order.session] = deque([order])

        def begin(made: Text | Exception) -> None:
            if self.held.get(order.session) is not held:
                return  # it was begun anew, or is over
            del self.held[order.session]
            if isinstance(made, Exception):
                self._fail(order.session, made, "bad_prompt")
                return
            self._keep(order.prompt, made)
            for each in held:
                self._do(each) if isinstance(each, orders.Open) else self._obey(each)

        self._text(order.prompt, begin)

    def _ask(self, order: orders.Ask) -> None:
        """Another prompt, once its text is there: until then the old one goes on."""
        viewer = self.viewers[order.session]

        def ask(made: Text | Exception) -> None:
            viewer.waits -= 1
            if self.viewers.get(order.session) is not viewer:
                return
            if isinstance(made, Exception):
                self._say(orders.Refused(order.session, "bad_prompt", _told(made), order.event))
                return
            self._keep(order.prompt, made)
            viewer.asked.append(order)

        viewer.waits += 1
        self._text(order.prompt, ask, after=viewer.waits > 1)

    def _text(self, prompt: str | None, then: Then, *, after: bool = False) -> None:
        """Do it at once where the text is there. after: what was asked for before comes before."""
        shared = self.engine.setup.shared
        if shared is not None and shared.knows(prompt) and not after:
            then(self.engine.setup.text(prompt))
        else:
            self.texts.ask(prompt, then)

    def _keep(self, prompt: str | None, made: Text) -> None:
        setup = self.engine.setup
        if setup.shared is not None and not setup.shared.knows(prompt):
            setup.shared.keep(prompt, made, setup.device)

    def _steer(self, order: orders.ForSession, session: Session, viewer: Viewer) -> None:
        match order:
            case orders.Press():
                viewer.press(order)
            case orders.Grant():
                self.engine.credit(session, order.chunks)
            case orders.Pause():
                viewer.paused, viewer.peeks = order.on, False
                self.engine.pause(session, order.on)
            case orders.Back():
                self._back(order, session, viewer)
            case orders.Export(what="session"):
                self._export(order, partial(self._kept, session))
            case orders.Export():
                chunks = [chunk.latents for chunk in session.history]
                made = partial(filmed, self.world, chunks, self.options.fps)
                self.films = [film for film in self.films if film.is_alive()]
                self.films.append(threading.Thread(target=self._export, args=(order, made), daemon=True))
                self.films[-1].start()
            case orders.Close():
                self._close(order.session)

    def _back(self, order: orders.Back, session: Session, viewer: Viewer) -> None:
        viewer.generation = order.generation
        self.engine.credit(session, None)  # what was granted before is void
        self.engine.credit(session, 0)
        starts = [chunk.frame for chunk in session.history if chunk.frame <= order.frame]
        if order.frame < session.frame and starts:
            self.engine.back(session, starts[-1])  # any frame of a chunk means it
        else:
            self.engine.back(session, order.frame)  # which says what there is
        viewer.unhear()
        last = session.history.last
        viewer.prompt = viewer.first if last is None else last.prompt
        if viewer.beside is not None:
            viewer.beside.back(max(0, session.frame - 1))  # it began with the first frame
        if viewer.paused:  # one chunk, to see where that is
            viewer.peeks = True
            self.engine.pause(session, False)
        self._say(orders.Went(order.session, viewer.generation, session.frame, viewer.prompt))
        self._save(order.session)

    def _open(self, order: orders.Open) -> None:
        if order.steps is not None and order.steps not in self.plans:
            raise ValueError(f"steps is {order.steps}: choose from {', '.join(map(str, sorted(self.plans)))}")
        plan = None if order.steps is None else self.plans[order.steps]
        viewer = Viewer(
            order.session, order.generation, order.prompt, self.world.keys.names, self.engine.setup.how.chunk
        )
        viewer.first = order.prompt
        start = None if order.start is None else self._pictures(order.start)
        if order.beside is not None:
            start = self._beside(viewer, order.beside, start, begins=order.saved is None)
        if order.saved is not None:
            session = self.engine.adopt(loads(self.engine.setup.by(plan), viewer.listen, order.saved))
            last = session.history.last
            viewer.prompt = order.prompt if last is None else last.prompt
        else:
            session = self.engine.open(viewer.listen, seed=order.seed, start=start, plan=plan)
        self.engine.credit(session, 0)
        self._seat(order.session, viewer, session)

    def _seat(self, number: int, viewer: Viewer, session: Session) -> None:
        self.viewers[number], self.sessions[number], self.numbers[session] = viewer, session, number

    def _fork(self, order: orders.Fork) -> None:
        if order.session not in self.sessions:
            raise ValueError("the session that it goes on from is over")
        one = self.viewers[order.session]
        viewer = Viewer(order.other, one.generation, one.prompt, one.keys, one.chunk)
        session = self.engine.fork(self.sessions[order.session], viewer.listen)
        self.engine.credit(session, 0)
        viewer.first = one.first
        viewer.beside = None if one.beside is None else one.beside.fork()
        self._seat(order.other, viewer, session)

    def _close(self, number: int) -> None:
        session, viewer = self.sessions.pop(number, None), self.viewers.pop(number, None)
        self.held.pop(number, None)
        if session is not None:
            del self.numbers[session]
            self.engine.close(session)
        if viewer is not None:
            viewer.leave()

    def _pictures(self, image: bytes) -> Pixels:
        """An image as one picture of the world's size, its middle."""
        height, width = self.options.frame or self.world.kit.frame
        with Image.open(io.BytesIO(image)) as opened:
            fitted = ImageOps.fit(opened.convert("RGB"), (width, height))
        return np.array(fitted)[None]

    def _beside(self, viewer: Viewer, walk: orders.Walk, start: Pixels | None, *, begins: bool) -> Pixels | None:
        """Step the environment beside. Its picture is what the session begins with, if it begins."""
        if not self.options.reality or start is not None:
            raise ValueError("there is no environment to compare with" if start is None else "an image has no reality")
        with suppress(ValueError) if not begins else nullcontext():  # a walk that is too long to be made again
            viewer.beside = Beside(self.options.reality, walk)
        return viewer.beside.frame()[None] if viewer.beside is not None and begins else None

    # ---- what is made

    def _tick(self) -> None:
        began, self.busy = time.perf_counter(), True
        happened = self.engine.tick()
        now = time.perf_counter()
        if self.engine.ticked:
            self.progress += 1
            self.pass_ms = 0.9 * self.pass_ms + 0.1 * 1000 * (now - began) if self.pass_ms else 1000 * (now - began)
        for session, what in happened:
            number = self.numbers.get(session)
            if number is None:  # it has failed just now
                continue
            if isinstance(what, Exception):
                self._fail(number, what)
                continue
            try:
                self._shown(number, what, now)
            except Exception as wrong:
                self._fail(number, wrong)

    def _shown(self, number: int, shown: Shown, now: float) -> None:
        viewer = self.viewers[number]
        told = shown.told if isinstance(shown.told, Heard) else viewer.heard or Heard()
        viewer.heard = None if viewer.heard is told else viewer.heard  # of the next one, where this one was in the way
        if told.ask is not None:
            self._say(orders.Applied(number, told.ask.event, shown.frame, viewer.generation))
        asked = None if told.ask is None else (told.ask.prompt, told.ask.switch)
        keys = None if shown.told is None or told.actions is None else list(told.actions)
        frame, latent, reality = _number(shown.frame, self.world.codec.stride[0]), shown.frame, []
        if viewer.beside is not None:
            reality = [viewer.beside.frame()] if keys is None else viewer.beside.heard(keys)
        if viewer.peeks:
            viewer.peeks = False
            self.engine.pause(self.sessions[number], True)
        heard, took, generation = told.event, round(1e6 * max(0.0, now - told.at)), viewer.generation

        def frames() -> orders.AnyReport:
            try:
                pictures = shown.pictures
            except ValueError as wrong:  # on a GPU it is known only now
                return orders.Failed(number, _told(wrong))
            codec, images = _encoded(pictures)
            beside, how = _encoded(np.stack(reality))[1] if reality else [], shown.making
            made = (number, generation, frame, latent, heard, took, codec, images, beside, keys, asked)
            return orders.Frames(*made, how.woken, how.settled, list(how.shared), fingerprint(pictures.tobytes()))

        self._reports.put(frames)
        if now - viewer.saved > SAVE or told.ask is not None:
            self._save(number)

    def _save(self, number: int) -> None:
        """What the session can go on from, if this process ends."""
        session, viewer = self.sessions[number], self.viewers[number]
        viewer.saved = time.perf_counter()
        data = dumps(session, session.setup.how.window)
        walk = None if viewer.beside is None else viewer.beside.walk
        self._say(orders.Saved(number, viewer.generation, session.frame, data, walk))

    def _fail(self, number: int, what: Exception, code: str = "failed") -> None:
        """The session is over, and says why."""
        self._close(number)
        full = isinstance(what, MemoryError | torch.OutOfMemoryError | Full) or "DefaultCPUAllocator" in str(what)
        self._say(orders.Failed(number, _told(what), "busy" if full else code))

    def _kept(self, session: Session) -> bytes:
        """All that is kept, where that is not too much; else as much of the newest."""
        self.engine.finish(session)
        frame = 4 * math.prod(session.setup.size)  # bytes
        return dumps(session, max(session.setup.how.window, MOST_EXPORT // frame))

    def _export(self, order: orders.Export, make: Callable[[], bytes]) -> None:
        try:
            self._say(orders.Exported(order.session, order.request, make()))
        except Exception as wrong:
            self._say(orders.Exported(order.session, order.request, b"", _told(wrong)))

    # ---- what is said

    def _beat(self) -> None:
        """Signs of life, however long a pass takes: who hangs is known by its progress."""
        while not self._gone.wait(BEAT):
            self._say(orders.Beat(self.progress, self.busy, self.pass_ms))

    def _say(self, report: orders.AnyReport) -> None:
        self._reports.put(lambda: report)

    def _report(self) -> None:
        try:
            with suppress(OSError):  # nobody listens any more
                while (made := self._reports.get()) is not None:
                    self.connection.send_bytes(orders.pack(made()))
        finally:
            self._gone.set()  # whatever ended it: an engine that cannot report is of no use


def filmed(world: World, chunks: list[torch.Tensor], fps: float) -> bytes:
    """An MP4 of latents [1, F, C, h, w], decoded anew; small pictures are enlarged."""
    if not chunks:
        raise ValueError("nothing has been shown yet")
    decode = world.codec.decoder()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        scale = max(1, 448 // max(world.kit.frame))
        with media.writer(path, fps=fps, scale=scale) as film, torch.no_grad():
            for latents in chunks:
                film.add(decode(latents)[0])
        return path.read_bytes()


def _encoded(pictures: Pixels) -> tuple[int, list[bytes]]:
    lossless = pictures.shape[1] * pictures.shape[2] <= SMALL
    out = []
    for picture in pictures:
        data = io.BytesIO()
        if lossless:
            Image.fromarray(picture).save(data, "PNG", compress_level=1)
        else:
            Image.fromarray(picture).save(data, "JPEG", quality=QUALITY)
        out.append(data.getvalue())
    return (wire.PNG if lossless else wire.JPEG), out


def machine(device: torch.device) -> str:
    """Whose arithmetic it is: the same sums may round differently elsewhere."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {on}, {torch.get_num_threads()} threads"


def _number(latent: int, stride: int) -> int:
    """Of the first picture of a latent frame: the first covers one, the others `stride`."""
    return 0 if latent == 0 else 1 + stride * (latent - 1)


def _told(wrong: BaseException) -> str:
    return str(wrong) or type(wrong).__name__
