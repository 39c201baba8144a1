"""What a browser and the gateway say to each other: JSON both ways, and pictures one way in binary messages.

The page's protocol.js has the same names and numbers; a test compares them.
"""

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

PROTOCOL = 1
MOST_CONTROL = 16 * 1024  # bytes of a control message
MOST_PROMPT = 2000  # characters
MOST_KEYS = 16  # in one message

Switch = Literal["blend", "cut", "recache"]
What = Literal["film", "session"]
Id = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Prompt = Annotated[str, msgspec.Meta(max_length=MOST_PROMPT)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Names = Annotated[list[Name], msgspec.Meta(max_length=MOST_KEYS)]


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """What a browser says."""


class Hello(Said, frozen=True, tag="hello"):
    """First of all. ticket: from POST /api/sessions, or the `resume` token of a session whose socket was lost."""

    ticket: Name
    protocol: int = PROTOCOL


class Begin(Said, frozen=True, tag="begin"):
    """Begin, or begin anew. image, save: of an upload. steps: passes a frame, None for the world's own.

    reality: show the environment itself beside, under the same keys.
    """

    prompt: Prompt | None = None
    seed: Seed = 0
    steps: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    image: Name | None = None
    reality: bool = False
    save: Name | None = None


class Ask(Said, frozen=True, tag="prompt"):
    """Another prompt, from the next chunk on; None for no prompt."""

    id: Id
    text: Prompt | None
    switch: Switch = "blend"


class Press(Said, frozen=True, tag="keys"):
    """The keys that are down now, and those that went down and up since the last message."""

    id: Id
    held: Names = []
    tapped: Names = []


class Grant(Said, frozen=True, tag="grant"):
    """The browser is ready for so many more chunks. frame: the newest that it has shown, and its age then.

    A new generation, and a new socket, have been granted nothing: the window is granted again when they are told of.
    """

    chunks: Annotated[int, msgspec.Meta(ge=0, le=8)]
    frame: Id | None = None
    age_ms: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None


class Pause(Said, frozen=True, tag="pause"):
    on: bool


class Back(Said, frozen=True, tag="back"):
    """Go back to before latent frame `frame`."""

    frame: Id


class Fork(Said, frozen=True, tag="fork"):
    """A second session that goes on from here, or from before latent frame `frame`; the answer is its ticket."""

    id: Id
    frame: Id | None = None


class Export(Said, frozen=True, tag="export"):
    """What is kept, as an MP4 or as a session that another one can begin with; the answer is where to fetch it."""

    id: Id
    what: What = "film"


class Ping(Said, frozen=True, tag="ping"):
    """A sign of life, answered by the gateway's clock."""

    id: Id


class Bye(Said, frozen=True, tag="bye"):
    """The session is over, and cannot be resumed."""


Control = Hello | Begin | Ask | Press | Grant | Pause | Back | Fork | Export | Ping | Bye


class Told(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    """What the gateway says."""


class World(msgspec.Struct, frozen=True):
    """What can be seen. fps: pictures a second that are aimed at. reality: whether there is an environment beside.

    hint: what a viewer should know first. first: the prompt to begin with, where none is asked for.

    frames: pictures of a latent frame. chunk: latent frames of a chunk. steps: passes a frame to choose from.
    """

    name: str
    prompts: list[str]  # empty: any text will do
    keys: list[str]
    width: int
    height: int
    fps: float
    frames: int
    chunk: int
    steps: list[int]
    reality: bool = False
    hint: str = ""
    first: str | None = None


class Ready(Told, frozen=True, tag="ready"):
    """The answer to hello. resume: a ticket for when the socket is lost. session: names it in logs."""

    session: str
    resume: str
    world: World
    protocol: int = PROTOCOL


class Accepted(Told, frozen=True, tag="accepted"):
    """A prompt was understood, and will be applied."""

    id: int


class Applied(Told, frozen=True, tag="applied"):
    """From this latent frame on it is so. event: of a prompt. Keys are echoed in frames' headers."""

    id: int
    frame: int
    generation: int


State = Literal["queued", "starting", "live", "paused", "detached", "recovering", "draining", "closed"]


class Stands(Told, frozen=True, tag="state"):
    """Where the session stands; pictures of another generation than this are not to be shown."""

    state: State
    generation: int
    message: str = ""


class Went(Told, frozen=True, tag="went"):
    """It went back: the next picture is of latent frame `frame`, under the prompt of that time, also while paused."""

    frame: int
    prompt: str | None
    generation: int


class Stats(Told, frozen=True, tag="stats"):
    """Once a second. fps: pictures a second that the model makes for this session. pass_ms: of one pass."""

    fps: float
    pass_ms: float
    sessions: int


class Ticket(Told, frozen=True, tag="ticket"):
    """The answer to fork."""

    id: int
    ticket: str


class Exported(Told, frozen=True, tag="exported"):
    """The answer to export: fetch it there, once, within minutes."""

    id: int
    url: str


class Pong(Told, frozen=True, tag="pong"):
    """clock_us: the gateway's clock, which frames' headers are in."""

    id: int
    clock_us: int


class Warned(Told, frozen=True, tag="warning"):
    message: str


Code = Literal[
    "bad_message", "bad_ticket", "bad_prompt", "bad_key", "bad_image", "bad_save", "bad_steps", "too_fast",
    "not_begun", "not_kept", "busy", "failed", "engine", "expired", "draining", "protocol",
]  # fmt: skip


class Wrong(Told, frozen=True, tag="error"):
    """id: of what it answers. retryable: whether trying again can help."""

    code: Code
    message: str
    retryable: bool = False
    id: int | None = None


NORMAL, GOING_AWAY, UNSUPPORTED, POLICY, TOO_BIG, FAILED, TRY_LATER = 1000, 1001, 1003, 1008, 1009, 1011, 1013

VERSION, JPEG, PNG = 1, 1, 2
_HEADER = struct.Struct("<BBBBIIIQQIII")  # 44 bytes
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Picture:
    """One binary message. frame: number of the picture in the session; latent: of the latent frame that it belongs to.

    made_us: the gateway's clock when it was there. event: newest keys that had been heard when its chunk was begun.
    took_us: from then until its chunk was there. mark: of the session. image, reality: encoded pictures.
    """

    generation: int
    frame: int
    latent: int
    made_us: int
    event: int
    took_us: int
    mark: int
    image: bytes
    reality: bytes = b""
    codec: int = JPEG

    def pack(self) -> bytes:
        numbers = (self.generation, self.frame, self.latent, self.made_us, self.event, self.took_us, self.mark)
        return _HEADER.pack(VERSION, self.codec, 0, 0, *numbers, len(self.image)) + self.image + self.reality

    @staticmethod
    def unpack(data: bytes) -> "Picture":
        """ValueError for what `pack` did not make."""
        if len(data) < HEADER_BYTES or data[0] != VERSION:
            raise ValueError(f"not a picture: {len(data)} bytes that begin with {data[:4]!r}")
        _, codec, _, _, generation, frame, latent, made, event, took, mark, length = _HEADER.unpack_from(data)
        if len(data) < HEADER_BYTES + length or codec not in (JPEG, PNG):
            raise ValueError(f"a picture of codec {codec} that is cut short, or of another codec")
        image, reality = data[HEADER_BYTES:][:length], data[HEADER_BYTES + length :]
        return Picture(generation, frame, latent, made, event, took, mark, image, reality, codec)
