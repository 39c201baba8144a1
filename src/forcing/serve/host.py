"""An engine process: sessions of one world on one device, told what to do and reporting through a pipe.

One thread serves, another encodes pictures and reports. It leaves when the pipe closes.
"""

import io
import math
import queue
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
from forcing.engine.schedule import Engine
from forcing.engine.session import Session, Setup, Shown, Told
from forcing.envs.gym import Env, open_envs
from forcing.kit import SmallKit
from forcing.rollout import Plan
from forcing.serve import orders, wire
from forcing.serve.journal import fingerprint
from forcing.train.compute import place
from forcing.world import World

BEAT, SAVE = 0.2, 1.0  # seconds between signs of life, and between what a session can be saved by
SMALL = 128 * 128  # pictures of so few pixels are sent without loss
QUALITY = 85
MOST_EXPORT = 16_000_000  # bytes of latents
MOST_TAPS = 4  # that wait for a frame
IDLE = "wait"  # the key that stands for none, where a world has it


@dataclass(frozen=True)
class Options:
    """world: its folder. name: what viewers are told that it is. fps: pictures a second.

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


def main(
    connection: Connection,
    options: Mapping[str, Any],
    plans: Callable[[World], Mapping[int, Plan]] = lambda _: {},
) -> None:
    """Serve until told to stop, or until nobody listens. plans: by passes a frame, what viewers may choose from."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway decides when to leave
    given = Options(**options)
    opened(replace(given, device=place(given.device)), plans, partial(Host, connection)).run()


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
    heard: Heard | None = None  # by the chunk in progress
    env: Env | None = None
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
        if self.env is not None:
            self.env.close()
            self.env = None

    def _key(self) -> str | int:
        if self.tapped:
            return self.tapped.popleft()
        if self.held:
            return self.held[-1]
        return IDLE if IDLE in self.keys else -1


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
        self.progress, self.pass_ms, self._beaten = 0, 0.0, 0.0
        self._reports: queue.SimpleQueue[Callable[[], orders.AnyReport] | None] = queue.SimpleQueue()
        self._gone = threading.Event()

    def run(self) -> None:
        reporter = threading.Thread(target=self._report, daemon=True)
        reporter.start()
        self.engine.warm()
        setup = self.engine.setup
        self._say(orders.Ready(self._described(), self.options.sessions, setup.digest, machine(setup.device)))
        try:
            while not self._gone.is_set() and self._obeyed():
                self._tick()
        finally:
            self._reports.put(None)
            reporter.join(timeout=5)

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
        )

    # ---- what is told

    def _obeyed(self) -> bool:
        """Do what the gateway says, waiting for it where there is nothing to make; False when that is to leave."""
        wait = self.engine.wait()
        wait = BEAT if wait is None else min(wait, BEAT)
        while self.connection.poll(wait):
            try:
                order = orders.order(self.connection.recv_bytes())
            except EOFError:
                return False
            if isinstance(order, orders.Stop):
                return False
            self._obey(order)
            wait = 0.0
        return True

    def _obey(self, order: orders.ForSession) -> None:
        number = order.session
        try:
            if isinstance(order, orders.Open):
                self._open(order)
            elif isinstance(order, orders.Fork):
                self._fork(order)
            elif number in self.sessions:
                self._steer(order, self.sessions[number], self.viewers[number])
        except Exception as wrong:
            event = order.event if isinstance(order, orders.Ask | orders.Press) else None
            code = {orders.Ask: "bad_prompt", orders.Back: "not_kept"}.get(type(order), "failed")
            if isinstance(order, orders.Open) or number not in self.sessions:
                self._close(number)
                self._say(orders.Failed(number, _told(wrong), "busy" if isinstance(wrong, RuntimeError) else code))
            else:
                self._say(orders.Refused(number, code, _told(wrong), event))

    def _steer(self, order: orders.ForSession, session: Session, viewer: Viewer) -> None:
        match order:
            case orders.Ask():
                self._check(order.prompt)
                viewer.asked.append(order)
            case orders.Press():
                viewer.press(order)
            case orders.Grant():
                self.engine.credit(session, order.chunks)
            case orders.Pause():
                self.engine.pause(session, order.on)
            case orders.Back():
                self._back(order, session, viewer)
            case orders.Export(what="session"):
                self._export(order, partial(self._kept, session))
            case orders.Export():
                chunks = [chunk.latents for chunk in session.history]
                made = partial(filmed, self.world, chunks, self.options.fps)
                threading.Thread(target=self._export, args=(order, made), daemon=True).start()
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
        viewer.prompt = viewer.prompt if last is None else last.prompt
        viewer.leave()  # it cannot go back
        self._save(order.session)

    def _open(self, order: orders.Open) -> None:
        if order.steps is not None and order.steps not in self.plans:
            raise ValueError(f"steps is {order.steps}: choose from {', '.join(map(str, sorted(self.plans)))}")
        self._check(order.prompt)
        plan = None if order.steps is None else self.plans[order.steps]
        viewer = Viewer(
            order.session, order.generation, order.prompt, self.world.keys.names, self.engine.setup.how.chunk
        )
        start = None if order.start is None else self._pictures(order.start)
        if order.reality and order.saved is None:
            viewer.env, start = self._environment(order, start)
        self._close(order.session)
        if order.saved is not None:
            session = self.engine.adopt(loads(self.engine.setup.by(plan), viewer.listen, order.saved))
            last = session.history.last
            viewer.prompt = order.prompt if last is None else last.prompt
        else:
            session = self.engine.open(viewer.listen, seed=order.seed, start=start, plan=plan)
        self.engine.credit(session, 0)
        self.viewers[order.session], self.sessions[order.session] = viewer, session

    def _fork(self, order: orders.Fork) -> None:
        one = self.viewers[order.session]
        viewer = Viewer(order.other, one.generation, one.prompt, one.keys, one.chunk)
        self.sessions[order.other] = self.engine.fork(self.sessions[order.session], viewer.listen)
        self.engine.credit(self.sessions[order.other], 0)
        self.viewers[order.other] = viewer

    def _close(self, number: int) -> None:
        session, viewer = self.sessions.pop(number, None), self.viewers.pop(number, None)
        if session is not None:
            self.engine.close(session)
        if viewer is not None:
            viewer.leave()

    def _check(self, prompt: str | None) -> None:
        self.world.text.encode([prompt])  # ValueError for a prompt that is not known

    def _pictures(self, image: bytes) -> Pixels:
        """An image as one picture of the world's size, its middle."""
        height, width = self.options.frame or self.world.kit.frame
        with Image.open(io.BytesIO(image)) as opened:
            fitted = ImageOps.fit(opened.convert("RGB"), (width, height))
        return np.array(fitted)[None]

    def _environment(self, order: orders.Open, start: Pixels | None) -> tuple[Env, Pixels]:
        if not self.options.reality or start is not None:
            raise ValueError("there is no environment to compare with" if start is None else "an image has no reality")
        envs = open_envs(self.options.reality)
        env = next((env for env in envs if env.prompt == order.prompt), envs[0])
        for other in envs:
            if other is not env:
                other.close()
        return env, env.reset(order.seed % 2**31)[None]

    # ---- what is made

    def _tick(self) -> None:
        began = time.perf_counter()
        happened = self.engine.tick()
        now = time.perf_counter()
        if self.engine.ticked:
            self.progress += 1
            self.pass_ms = 0.9 * self.pass_ms + 0.1 * 1000 * (now - began) if self.pass_ms else 1000 * (now - began)
        for session, what in happened:
            number = next(number for number, each in self.sessions.items() if each is session)
            if isinstance(what, Shown):
                self._shown(number, what, now)
            else:
                self._failed(number, what)
        if now - self._beaten > BEAT:
            self._beaten = now
            self._say(orders.Beat(self.progress, self.engine.wait() == 0.0, self.pass_ms))

    def _shown(self, number: int, shown: Shown, now: float) -> None:
        viewer = self.viewers[number]
        told = shown.told if isinstance(shown.told, Heard) else viewer.heard or Heard()
        viewer.heard = None if viewer.heard is told else viewer.heard  # of the next one, where this one was in the way
        if told.ask is not None:
            self._say(orders.Applied(number, told.ask.event, shown.frame, viewer.generation))
        asked = None if told.ask is None else (told.ask.prompt, told.ask.switch)
        keys = None if shown.told is None or told.actions is None else list(told.actions)
        frame, latent, reality = _number(shown.frame, self.world.codec.stride[0]), shown.frame, []
        if viewer.env is not None:
            reality = self._reality(viewer.env, shown)
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
        if now - viewer.saved > SAVE:
            self._save(number)

    def _save(self, number: int) -> None:
        """What the session can go on from, if this process ends."""
        session, viewer = self.sessions[number], self.viewers[number]
        viewer.saved = time.perf_counter()
        data = dumps(session, session.setup.how.window)
        self._say(orders.Saved(number, viewer.generation, session.frame, data))

    def _reality(self, env: Env, shown: Shown) -> list[np.ndarray]:
        if shown.told is None:
            return [env.frame()]
        keys = {name: n for n, name in enumerate(env.names)}
        actions = shown.told.actions or []
        return [env.step(keys[str(action)]) if str(action) in keys else env.frame() for action in actions]

    def _failed(self, number: int, what: Exception) -> None:
        self.sessions.pop(number, None)
        self.viewers.pop(number).leave()
        full = isinstance(what, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(what)
        self._say(orders.Failed(number, _told(what), "busy" if full else "failed"))

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
