"""A session's log as JSON lines: what it was told, and what each chunk heard of that, enough to make it again.

Orders are in the sequence in which the engine gets them, chunks in that in which it made them; which orders a chunk
follows is known by its generation. Images and sessions that it began with are files beside, named by their SHA-256.
"""

import hashlib
import io
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from forcing import files
from forcing.serve import events, wire

Frame = Annotated[int, msgspec.Meta(ge=0)]
Generation = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=4096)]


def _now() -> float:
    return round(time.time(), 3)


class Line(msgspec.Struct, frozen=True, tag_field="what", omit_defaults=True, kw_only=True):
    """`what` names its kind. at: seconds since 1970."""

    at: float = msgspec.field(default_factory=_now)


class Engine(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who serves it. told: its options. world: digest of its weights. machine: whose arithmetic it is."""

    told: dict[str, Any]
    world: str = ""
    machine: str = ""


class Open(Line, frozen=True, tag="open"):
    """saved: generation and latent frame of what it goes on from, after its engine was lost. save: of a file's data."""

    generation: Generation
    prompt: str | None
    seed: wire.Seed
    engine: Engine
    steps: int | None = None
    image: str | None = None
    reality: bool = False
    saved: tuple[Generation, Frame] | None = None
    save: str | None = None


class Fork(Line, frozen=True, tag="fork"):
    """It goes on from where another session is, in the same generation."""

    of: str
    generation: int
    engine: Engine


class Forked(Line, frozen=True, tag="forked"):
    to: str


class Ask(Line, frozen=True, tag="ask"):
    event: wire.Id
    prompt: str | None
    switch: wire.Switch


class Press(Line, frozen=True, tag="press"):
    event: wire.Id
    held: list[str]
    tapped: list[str]


class Pause(Line, frozen=True, tag="pause"):
    on: bool


class Back(Line, frozen=True, tag="back"):
    frame: wire.Id
    generation: Generation


class Chunk(Line, frozen=True, tag="chunk"):
    """latent: its first latent frame. event: newest keys that were heard. keys: one for each latent frame.

    asked: another prompt that begins here, and how. woken, settled, shared: see `engine.session.Making`. pictures:
    their `fingerprint`.
    """

    generation: Generation
    latent: Frame
    event: wire.Id
    keys: list[str | int] | None = None
    asked: tuple[str | None, wire.Switch] | None = None
    woken: bool = False
    settled: Count = 0
    shared: list[Count] = []
    pictures: str = ""


class Refused(Line, frozen=True, tag="refused"):
    event: int | None
    code: str


class End(Line, frozen=True, tag="end"):
    reason: str


AnyLine = Open | Fork | Forked | Ask | Press | Pause | Back | Chunk | Refused | End
_line = msgspec.json.Decoder(AnyLine)


def fingerprint(pictures: bytes) -> str:
    """Of the numbers of all pictures of a chunk."""
    return hashlib.blake2b(pictures, digest_size=8).hexdigest()


class Journal:
    """The file has its name once the session is over; until then it is a draft beside. folder: None for no file."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = None if folder is None else folder / f"{name}.jsonl"
        self.file: io.BufferedWriter | None = None
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = files.draft_of(self.path).open("wb")
            except OSError as wrong:
                self._lost(wrong)

    def note(self, line: AnyLine) -> None:
        if self.file is None:
            return
        try:
            self.file.write(msgspec.json.encode(line) + b"\n")
            self.file.flush()  # of a gateway that is killed, the draft has all but the last line
        except OSError as wrong:
            self._lost(wrong)

    def beside(self, data: bytes | None, kind: str) -> str | None:
        """The name of data that belongs to the log, and is written beside it."""
        if data is None:
            return None
        name = hashlib.sha256(data).hexdigest()
        if self.path is not None and not (path := self.path.parent / f"{name}.{kind}").exists():
            with suppress(OSError):
                files.write(path, data)
        return name

    def end(self) -> None:
        if self.file is not None and self.path is not None:
            try:
                self.file.close()
                os.replace(files.draft_of(self.path), self.path)
            except OSError as wrong:
                self._lost(wrong)
            self.file = None

    def _lost(self, wrong: OSError) -> None:
        """A full disk, or a folder that is gone, ends the log and not the session."""
        self.file = None
        events.warn("log lost", path=str(self.path), why=str(wrong))


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
    def engine(self) -> Engine | None:
        """Who served it first; None for a session that was never begun."""
        return next((line.engine for _, line in self.lines if isinstance(line, Open | Fork)), None)

    @property
    def machines(self) -> set[str]:
        """Whose arithmetic it is."""
        return {line.engine.machine for _, line in self.lines if isinstance(line, Open | Fork)}

    @property
    def saved(self) -> set[tuple[int, int]]:
        """Generations and latent frames from which it went on after its engine was lost."""
        return {line.saved for _, line in self.lines if isinstance(line, Open) and line.saved is not None}
