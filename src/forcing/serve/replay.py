"""A session made again from its log, to the bit: each chunk is told what it heard then, and made as it was made then.

The engine process's own work, without a process. A pass that other sessions shared is made with as many clips: what
they hold does not matter to the sums, how many they are does. Each chunk is compared with what was shown.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import Pipe

import torch

from forcing.codecs import Pixels
from forcing.engine.passes import Model, Pass, Together, drive
from forcing.engine.saved import dumps
from forcing.engine.session import Session, Shown
from forcing.rollout import Plan
from forcing.serve import host, orders
from forcing.serve.journal import Back, Chunk, Fork, Forked, Log, Open, fingerprint
from forcing.shapes import Latents
from forcing.train.compute import place
from forcing.world import World


@dataclass(frozen=True)
class Made:
    """Pictures of a chunk: uint8 [F, H, W, 3]. latent: its first latent frame. keys: None where none were heard.

    same: whether they are what was shown; None where the log does not say.
    """

    generation: int
    latent: int
    pictures: Pixels
    prompt: str | None
    keys: list[str | int] | None
    same: bool | None


class Unlike(Exception):
    """What the engine says where the log says otherwise."""


class Sharing:
    """Makes passes for as many sessions as shared them then: for copies of one. clips: of each pass."""

    def __init__(self, model: Model, clips: list[int]) -> None:
        self.model, self.clips, self.together = model, deque(clips), Together()

    def __call__(self, asked: Pass) -> Latents:
        if not self.clips:
            raise Unlike("it was made in fewer passes than here")
        return self.together(self.model, [asked] * max(1, self.clips.popleft()))[0]


class Studio(host.Host):
    """An engine that makes one chunk when it is asked to, and reports to nobody."""

    def __init__(self, options: host.Options, world: World, plans: Mapping[int, Plan]) -> None:
        self.ours, theirs = Pipe()
        super().__init__(theirs, replace(options, sessions=2, rings=None), world, plans)

    @staticmethod
    def open(options: host.Options, plans: Callable[[World], Mapping[int, Plan]]) -> "Studio":
        """With the world that is named. plans: by passes a frame, what viewers could choose from."""
        return host.opened(replace(options, device=place(options.device)), plans, Studio)

    @property
    def machine(self) -> str:
        return host.machine(self.engine.setup.device)

    def close(self) -> None:
        for number in list(self.sessions):
            self._close(number)
        self.texts.close()
        self.ours.close()
        self.connection.close()

    def obey(self, order: orders.ForSession) -> None:
        """Unlike, saying why, where it cannot be."""
        self._obey(order)
        while self.texts.waiting:
            self.texts.done()
            time.sleep(0.001)

    @torch.no_grad()
    def chunk(self, number: int, line: Chunk) -> Shown:
        """The next one of a session, which is told what the line says."""
        viewer, session = self.viewers[number], self.sessions[number]
        if unknown := [key for key in line.keys or [] if isinstance(key, str) and key not in viewer.keys]:
            raise Unlike(f"there is no key {unknown[0]!r} here")
        viewer.tapped = deque(line.keys or [])
        if line.asked is not None:
            viewer.asked.append(orders.Ask(number, 0, *line.asked))
        if line.woken and not session.asleep:
            session.sleep()
        elif line.settled and session.stream.waits:
            drive(self._sharing([line.settled]), session.stream.settle())
        try:
            return drive(self._sharing(line.shared), session.work())
        except ValueError as wrong:
            raise Unlike(str(wrong)) from None

    def save(self, session: Session) -> bytes:
        return dumps(session, session.setup.how.window)

    def _sharing(self, clips: list[int]) -> Sharing:
        return Sharing(self.world.model, clips)

    def _say(self, report: orders.AnyReport) -> None:
        if isinstance(report, orders.Failed):
            raise Unlike(report.message)


class Replay:
    """log: what to make again. saved: states that were gone on from, by generation and latent frame, as they are met.

    differ: latent frames whose pictures are not those that were shown.
    """

    def __init__(self, log: Log, studio: Studio, number: int = 1, saved: set[tuple[int, int]] | None = None) -> None:
        self.log, self.studio, self.number = log, studio, number
        self.wanted = log.saved | (saved or set())
        self.saved: dict[tuple[int, int], bytes] = {}
        self.differ: list[int] = []
        self.turns: deque[Open | Back] = deque()  # ordered, but no chunk has followed yet
        self.forked: Fork | None = None
        self.at = 0

    def run(self, until: Callable[[Chunk], bool] = lambda _: False) -> Iterator[Made]:
        """All chunks, or those before the first of which `until` holds. ValueError where they are not the log's."""
        for number, line in self.log.lines:
            self.at = number
            try:
                match line:
                    case Open() | Back():
                        self.turns.append(line)
                    case Fork():
                        self.forked = line
                    case Chunk() if until(line):
                        return
                    case Chunk():
                        yield self._chunk(line)
            except Unlike as wrong:
                raise self._wrong(f"{wrong}: it is of another world, or damaged") from None

    def turn(self, generation: int) -> None:
        """Do what was ordered up to this generation."""
        while self.turns and self.turns[0].generation <= generation:
            match turn := self.turns.popleft():
                case Back():
                    self.studio.obey(orders.Back(self.number, turn.generation, turn.frame))
                case Open():
                    image, saved = self._beside(turn.image, "png"), self._saved(turn)
                    numbers = (self.number, turn.generation, turn.prompt, turn.seed, turn.steps)
                    beside = orders.Walk(turn.prompt, turn.seed) if turn.reality and saved is None else None
                    self.studio.obey(orders.Open(*numbers, image, saved, beside))
            self._keep()

    def _chunk(self, line: Chunk) -> Made:
        if self.forked is not None:
            self._fork(line)
        self.turn(line.generation)
        if self.number not in self.studio.sessions:
            raise self._wrong("no line before opens a session")
        viewer, session = self.studio.viewers[self.number], self.studio.sessions[self.number]
        if viewer.generation != line.generation:
            raise self._wrong(f"its chunk is of generation {line.generation}, which no line before begins")
        first = 0 if session.start is not None else session.frame
        if first != line.latent:
            lost = "lines are missing, or it is of another world"
            raise self._wrong(f"its chunk begins with latent frame {line.latent}, and here it would be {first}: {lost}")
        shown = self.studio.chunk(self.number, line)
        self._keep()
        pictures = shown.pictures
        same = fingerprint(pictures.tobytes()) == line.pictures if line.pictures else None
        if same is False:
            self.differ.append(line.latent)
        return Made(line.generation, shown.frame, pictures, viewer.prompt, line.keys, same)

    def _keep(self) -> None:
        """What is gone on from later."""
        viewer, session = self.studio.viewers[self.number], self.studio.sessions[self.number]
        key = viewer.generation, session.frame
        if key in self.wanted:
            self.saved[key] = self.studio.save(session)

    def _wrong(self, message: str) -> ValueError:
        return ValueError(f"{self.log.path}, line {self.at}: {message}")

    def _saved(self, said: Open) -> bytes | None:
        if said.saved is not None and said.saved not in self.saved:
            lost = f"latent frame {said.saved[1]} of generation {said.saved[0]}"
            raise self._wrong(f"the session goes on from {lost}, which no line before makes")
        return self._beside(said.save, "session") if said.saved is None else self.saved[said.saved]

    def _beside(self, name: str | None, kind: str) -> bytes | None:
        if name is None:
            return None
        path = self.log.path.parent / f"{name}.{kind}"
        if not path.is_file():
            raise self._wrong(f"the session begins with a file that is not there: {path}")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise self._wrong(f"{path} is not the file that the session began with")
        return data

    def _fork(self, line: Chunk) -> None:
        """Make the session again that this one goes on from, up to where it does."""
        assert self.forked is not None
        fork, self.forked = self.forked, None
        turns = [turn for turn in self.turns if turn.generation <= line.generation]
        if any(isinstance(turn, Open) and turn.saved is None for turn in turns):
            return  # it was begun anew before it showed anything
        path = self.log.path.with_name(f"{fork.of}.jsonl")
        if not path.is_file():
            raise self._wrong(f"it is a fork of a session whose log is not there: {path}")
        other = Replay(Log.read(path), self.studio, self.number + 1, self.wanted)
        own = [number for number, said in other.log.lines if isinstance(said, Forked) and said.to == self.log.path.stem]
        if not own:
            raise self._wrong(f"it is a fork of {path}, which does not say so")
        # where it was gone back before anything was shown, all that was made until then was there to be gone back from
        latent = line.latent if line.generation == fork.generation else None

        def reached(said: Chunk) -> bool:
            late = said.generation > fork.generation or latent is None or said.latent >= latent
            return other.at > own[0] and late

        for _ in other.run(reached):
            pass
        other.turn(fork.generation)
        self.studio.obey(orders.Fork(other.number, self.number))
        self.studio.obey(orders.Close(other.number))
        self.saved |= other.saved
        self.differ += other.differ


def check(log: Log, world: World) -> None:
    """ValueError where a log says that it is of another world."""
    engine = log.engine
    if engine is not None and engine.world and engine.world != world.digest:
        raise ValueError(f"{log.path} is of another world than this {world.recipe.name}: their digests differ")
