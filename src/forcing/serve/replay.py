"""A session made again from its log: each chunk hears what it heard then, and shows what it showed.

The engine process's own work, without a process: `host.Host` obeys the orders of the log, and makes a chunk when the
log has one. Which keys a chunk heard is known by the newest event that it heard.

The arithmetic is the same, the order of its sums is not always: where the engine settled a chunk in a pass of its own,
or passes were shared with other sessions, some of the pictures' numbers differ by one.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Annotated, Any

import msgspec

from forcing.codecs import Pixels
from forcing.engine.saved import dumps
from forcing.engine.session import Session, Shown
from forcing.rollout import Plan
from forcing.serve import host, orders, wire
from forcing.train.compute import place
from forcing.world import World

NOW = 1e9  # pictures a second: no waiting
Frame = Annotated[int, msgspec.Meta(ge=0)]
Generation = Annotated[int, msgspec.Meta(ge=1)]


class Line(msgspec.Struct, frozen=True, tag_field="what"):
    """Of a log; a line may say more than is read here. at: seconds since 1970."""

    at: float


class Open(Line, frozen=True, tag="open"):
    """saved: the generation that it went on from, where it is said. engine: what the engine was told."""

    generation: Generation
    prompt: str | None
    seed: wire.Seed
    steps: int | None = None
    image: str | None = None
    reality: bool = False
    resumed: bool = False
    saved: int | None = None
    engine: dict[str, Any] = {}


class Ask(Line, frozen=True, tag="ask"):
    event: wire.Id
    prompt: str | None
    switch: wire.Switch


class Press(Line, frozen=True, tag="press"):
    event: wire.Id
    held: list[str]
    tapped: list[str]


class Back(Line, frozen=True, tag="back"):
    frame: wire.Id
    generation: Generation


class Fork(Line, frozen=True, tag="fork"):
    of: str
    generation: int


class Forked(Line, frozen=True, tag="forked"):
    to: str


class Chunk(Line, frozen=True, tag="chunk"):
    latent: Frame
    event: wire.Id
    generation: Generation


class Applied(Line, frozen=True, tag="applied"):
    event: wire.Id
    frame: Frame
    generation: Generation


class Refused(Line, frozen=True, tag="refused"):
    event: int | None
    code: str


class End(Line, frozen=True, tag="end"):
    reason: str


AnyLine = Open | Ask | Press | Back | Fork | Forked | Chunk | Applied | Refused | End
_line = msgspec.json.Decoder(AnyLine)


@dataclass(frozen=True)
class Log:
    """Numbered lines of a file. cut: whether its end is missing, as of a gateway that was killed."""

    path: Path
    lines: list[tuple[int, AnyLine]]
    cut: bool

    @staticmethod
    def read(path: Path) -> "Log":
        """ValueError, naming the line, for what is no log."""
        texts = path.read_bytes().split(b"\n")
        rest, lines = texts.pop(), []
        for number, text in enumerate(texts, 1):
            try:
                lines.append((number, _line.decode(text)))
            except (msgspec.MsgspecError, ValueError, RecursionError) as wrong:
                raise ValueError(f"{path}, line {number}: not a line of a session's log ({wrong})") from None
        if not lines or not isinstance(lines[0][1], Open | Fork | End):
            raise ValueError(f"{path} is not a session's log from its beginning: the first line is an open or a fork")
        return Log(path, lines, bool(rest) or not isinstance(lines[-1][1], End))

    @property
    def chunks(self) -> int:
        return sum(isinstance(line, Chunk) for _, line in self.lines)

    @property
    def engine(self) -> Mapping[str, Any]:
        """What the log says of the engine."""
        return next((line.engine for _, line in self.lines if isinstance(line, Open) and line.engine), {})

    def cuts(self) -> set[int]:
        """Latent frames before which the session, or one that it was forked from, was taken up again."""
        found: set[int] = set()
        waits = False
        for _, line in self.lines:
            if isinstance(line, Chunk) and waits:
                found.add(line.latent)
            if isinstance(line, Open | Fork | Chunk):
                waits = isinstance(line, Fork) or (isinstance(line, Open) and line.resumed)
        return found


@dataclass(frozen=True)
class Made:
    """Pictures of a chunk: uint8 [F, H, W, 3]. latent: its first latent frame. told: its keys, None for none."""

    generation: int
    latent: int
    pictures: Pixels
    prompt: str | None
    keys: list[str | int] | None


class Unlike(Exception):
    """What the engine says where the log says otherwise."""


class Studio(host.Host):
    """An engine that makes one chunk when it is asked to, and reports to nobody."""

    def __init__(self, options: host.Options, world: World, plans: Mapping[int, Plan]) -> None:
        self.ours, theirs = Pipe()
        super().__init__(theirs, replace(options, fps=NOW, sessions=2, rings=None), world, plans)
        self.made: Shown | None = None

    @staticmethod
    def open(options: host.Options, plans: Callable[[World], Mapping[int, Plan]]) -> "Studio":
        """With the world that is named. plans: by passes a frame, what viewers could choose from."""
        options = replace(options, device=place(options.device))
        world = World.load(Path(options.world), device=options.device)
        return Studio(options, world, plans(world))

    def close(self) -> None:
        for number in list(self.sessions):
            self._close(number)
        self.ours.close()
        self.connection.close()

    def obey(self, order: orders.ForSession) -> None:
        """Unlike, saying why, where it cannot be."""
        self._obey(order)

    def chunk(self, number: int) -> Shown:
        """The next one of a session."""
        self.made = None
        self._obey(orders.Grant(number, 1))
        while self.made is None:
            self._tick()
        return self.made

    def _say(self, report: orders.AnyReport) -> None:
        if isinstance(report, orders.Failed) or (isinstance(report, orders.Refused) and report.event is not None):
            raise Unlike(report.message)

    def _shown(self, number: int, session: Session, shown: Shown, now: float) -> None:  # noqa: ARG002
        self.viewers[number].applied.clear()
        self.made = shown


@dataclass
class Replay:
    """log: what to make again. saved: by generation and latent frame, from what can be gone on. doubts: in words."""

    log: Log
    studio: Studio
    number: int = 1

    def __post_init__(self) -> None:
        self.cuts = self.log.cuts()
        self.saved: dict[tuple[int, int], bytes] = {}
        self.doubts: list[str] = []
        self.ahead: deque[Open | Press | Back] = deque()  # ordered, but not heard by a chunk yet
        self.asks: dict[int, Ask] = {}
        self.applied: dict[tuple[int, int], list[int]] = {}  # events, by generation and latent frame
        self.forked: tuple[int, Fork] | None = None
        self.at = 0

    def run(self, until: Callable[[Chunk], bool] = lambda _: False) -> Iterator[Made]:
        """All chunks, or those before the first of which `until` holds. ValueError where they are not the log's."""
        for number, line in self.log.lines:
            self.at = number
            try:
                match line:
                    case Open() | Press() | Back():
                        self.ahead.append(line)
                    case Fork():
                        self.forked = number, line
                    case Ask():
                        self.asks[line.event] = line
                    case Applied():
                        self.applied.setdefault((line.generation, line.frame), []).append(line.event)
                    case Chunk() if until(line):
                        return
                    case Chunk():
                        yield self._chunk(line)
            except Unlike as wrong:
                raise self._wrong(f"{wrong}: it is of another world, or damaged") from None

    def _wrong(self, message: str) -> ValueError:
        return ValueError(f"{self.log.path}, line {self.at}: {message}")

    def _chunk(self, line: Chunk) -> Made:
        if self.forked is not None:
            self._fork(line)
        self._hear(line)
        viewer, session = self.studio.viewers[self.number], self.studio.sessions[self.number]
        first = 0 if session.start is not None else session.frame
        if first != line.latent:
            lost = "lines are missing, or it is of another world"
            raise self._wrong(f"its chunk begins with latent frame {line.latent}, and here it would be {first}: {lost}")
        for event in self.applied.pop((line.generation, line.latent), []):
            if event not in self.asks:
                raise self._wrong(f"prompt {event} is applied, and no line before asks for it")
            ask = self.asks[event]
            self.studio.obey(orders.Ask(self.number, event, ask.prompt, ask.switch))
        shown = self.studio.chunk(self.number)
        if session.frame in self.cuts:
            self.saved[viewer.generation, session.frame] = dumps(session, session.setup.how.window)
        told = shown.told
        keys = None if told is None or told.actions is None else list(told.actions)
        return Made(viewer.generation, shown.frame, shown.pictures, viewer.prompt, keys)

    def _hear(self, line: Chunk) -> None:
        """Obey what was ordered before this chunk was begun."""
        viewers, ahead = self.studio.viewers, self.ahead
        anew = [n for n, said in enumerate(ahead) if isinstance(said, Open) and said.generation <= line.generation]
        for _ in range(anew[-1] if anew else 0):
            ahead.popleft()  # what was said before it does not matter any more
        self._refused(line)
        while self.number not in viewers or viewers[self.number].generation != line.generation:
            if not ahead:
                raise self._wrong(f"its chunk is of generation {line.generation}, which no line before begins")
            self._obey(ahead.popleft(), line)
        while viewers[self.number].event != line.event:
            if not ahead or not isinstance(ahead[0], Press):
                raise self._wrong(f"its chunk heard keys {line.event}, which no line before says")
            self._obey(ahead.popleft(), line)
        if ahead and isinstance(ahead[0], Press) and ahead[0].event == line.event:
            self.doubts.append(f"line {self.at}: keys {line.event} were said twice; this chunk may have heard both")

    def _refused(self, line: Chunk) -> None:
        """Going back to where one cannot is a new generation, and nothing else: what is under way is not given up."""
        while turn := next((said for said in self.ahead if isinstance(said, Open | Back)), None):
            viewer, session = self.studio.viewers.get(self.number), self.studio.sessions.get(self.number)
            if viewer is None or session is None or isinstance(turn, Open) or turn.generation > line.generation:
                return
            if turn.frame < session.frame and any(chunk.frame <= turn.frame for chunk in session.history):
                return
            self.ahead.remove(turn)
            viewer.generation = turn.generation

    def _obey(self, said: Open | Press | Back, line: Chunk) -> None:
        match said:
            case Press():
                if unknown := [key for key in (*said.held, *said.tapped) if key not in self.studio.world.keys.names]:
                    raise Unlike(f"there is no key {unknown[0]!r} here")
                self.studio.obey(orders.Press(self.number, said.event, said.held, said.tapped))
            case Back():
                self.studio.obey(orders.Back(self.number, said.generation, said.frame))
            case Open():
                image, saved = self._image(said.image), self._saved(said, line) if said.resumed else None
                numbers = (self.number, said.generation, said.prompt, said.seed, said.steps)
                self.studio.obey(orders.Open(*numbers, image, saved, said.reality))

    def _saved(self, said: Open, line: Chunk) -> bytes:
        """From what a session that lost its engine went on: the next chunk says how far that was."""
        known = [key for key in self.saved if key[1] == line.latent and said.saved in (None, key[0])]
        if not known:
            raise self._wrong(f"the session goes on from latent frame {line.latent}, which was never made before it")
        if len(known) > 1:
            self.doubts.append(f"line {self.at}: it went on from one of {len(known)} pasts; the newest is taken")
        return self.saved[max(known)]

    def _image(self, name: str | None) -> bytes | None:
        if name is None:
            return None
        path = self.log.path.parent / f"{name}.png"
        if not path.is_file():
            raise self._wrong(f"the session begins with an image that is not there: {path}")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise self._wrong(f"{path} is not the image that the session began with")
        return data

    def _fork(self, line: Chunk) -> None:
        """Make the session again that this one goes on from, up to where it does."""
        assert self.forked is not None
        (self.at, fork), self.forked = self.forked, None
        if line.generation != fork.generation:  # it was begun anew, or lost, before it showed anything
            if any(isinstance(said, Open) and not said.resumed for said in self.ahead):
                return
            raise self._wrong("a fork that was lost before it showed anything cannot be made again")
        path = self.log.path.with_name(f"{fork.of}.jsonl")
        if not path.is_file():
            raise self._wrong(f"it is a fork of a session whose log is not there: {path}")
        other = Replay(Log.read(path), self.studio, self.number + 1)
        other.cuts |= self.cuts
        own = [number for number, said in other.log.lines if isinstance(said, Forked) and said.to == self.log.path.stem]
        if not own:
            raise self._wrong(f"it is a fork of {path}, which does not say so")

        def reached(said: Chunk) -> bool:
            return other.at > own[0] and (said.generation > fork.generation or said.latent >= line.latent)

        for _ in other.run(reached):
            pass
        self.studio.obey(orders.Fork(other.number, self.number))
        self.studio.obey(orders.Close(other.number))
        self.saved, self.doubts = other.saved, other.doubts


def check(log: Log, world: World) -> None:
    """ValueError where a log says that it is of another world."""
    digest = log.engine.get("digest")
    if digest is not None and digest != world.digest:
        raise ValueError(f"{log.path} is of another world than this {world.recipe.name}: their digests differ")
