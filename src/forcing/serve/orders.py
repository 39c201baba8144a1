"""What the gateway and an engine process say to each other, as msgpack through a pipe.

Sessions are numbers that the gateway gives out; the same number is never used again.
"""

import msgspec

from forcing.serve.wire import Switch, What, World


class Walk(msgspec.Struct, frozen=True, array_like=True):
    """What the environment beside a session began with, and its keys since, a byte each."""

    prompt: str | None
    seed: int
    steps: bytes = b""


class Order(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From the gateway."""


class Open(Order, frozen=True):
    """Begin a session, or begin it anew. start: an encoded image to go on from. saved: a session to go on with instead.

    steps: passes a frame, None for the world's own. beside: step the environment beside, which has walked so far.
    """

    session: int
    generation: int
    prompt: str | None
    seed: int
    steps: int | None = None
    start: bytes | None = None
    saved: bytes | None = None
    beside: Walk | None = None


class Ask(Order, frozen=True):
    """Another prompt from the next chunk on."""

    session: int
    event: int
    prompt: str | None
    switch: Switch


class Press(Order, frozen=True):
    session: int
    event: int
    held: list[str]
    tapped: list[str]


class Grant(Order, frozen=True):
    """So many more chunks may be made; a session that was opened, or has gone back, has been granted nothing yet."""

    session: int
    chunks: int


class Pause(Order, frozen=True):
    session: int
    on: bool


class Back(Order, frozen=True):
    """Go back to before latent frame `frame`. Where it is refused, too, the generation is taken and grants are void."""

    session: int
    generation: int
    frame: int


class Fork(Order, frozen=True):
    """Session `other` begins where `session` stands, in the same generation; it is granted nothing yet.

    Where that cannot be, `other` has failed.
    """

    session: int
    other: int


class Export(Order, frozen=True):
    session: int
    request: int
    what: What = "film"


class Close(Order, frozen=True):
    session: int


class Stop(Order, frozen=True):
    """Leave, once what is being made is done."""


ForSession = Open | Ask | Press | Grant | Pause | Back | Fork | Export | Close
AnyOrder = ForSession | Stop


class Report(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """From an engine process."""


class Ready(Report, frozen=True):
    """Warm, and able to serve so many sessions. digest: of the world's weights. machine: whose arithmetic it is."""

    world: World
    sessions: int
    digest: str = ""
    machine: str = ""


class Unfit(Report, frozen=True):
    """It can serve nobody, and would not if it were started again."""

    message: str


class Beat(Report, frozen=True):
    """A sign of life, several times a second. progress: what it has done so far. busy: whether there is more to do."""

    progress: int
    busy: bool
    pass_ms: float


class Frames(Report, frozen=True):
    """Pictures of one chunk. frame: number of the first picture; latent: of the chunk's first latent frame.

    event: newest keys heard when the chunk was begun. codec: of images and of reality (empty without). The rest is for
    the log: keys of each latent frame, another prompt that begins here, and so on; see `journal.Chunk`.
    """

    session: int
    generation: int
    frame: int
    latent: int
    event: int
    took_us: int
    codec: int
    images: list[bytes]
    reality: list[bytes]
    keys: list[str | int] | None = None
    asked: tuple[str | None, Switch] | None = None
    woken: bool = False
    settled: int = 0
    shared: list[int] = []
    pictures: str = ""


class Applied(Report, frozen=True):
    session: int
    event: int
    frame: int
    generation: int


class Went(Report, frozen=True):
    """It went back: the next latent frame, and the prompt of that time."""

    session: int
    generation: int
    frame: int
    prompt: str | None


class Saved(Report, frozen=True):
    """From which the session can go on in another process, before latent frame `frame`; now and then."""

    session: int
    generation: int
    frame: int
    data: bytes
    beside: Walk | None = None


class Exported(Report, frozen=True):
    """data: an MP4 or a session, or empty where `message` says why there is none."""

    session: int
    request: int
    data: bytes
    message: str = ""


class Refused(Report, frozen=True):
    """An order that cannot be, of a session that goes on. code: of `wire.Code`. event: of the order, if it had one."""

    session: int
    code: str
    message: str
    event: int | None = None


class Failed(Report, frozen=True):
    """A session that is over. code: "busy" where there was no memory for it; fewer are then served at once."""

    session: int
    message: str
    code: str = "failed"


AnyReport = Ready | Unfit | Beat | Frames | Applied | Went | Saved | Exported | Refused | Failed

_pack = msgspec.msgpack.Encoder().encode
_orders = msgspec.msgpack.Decoder(AnyOrder)
_reports = msgspec.msgpack.Decoder(AnyReport)


def pack(said: AnyOrder | AnyReport) -> bytes:
    return _pack(said)


def order(data: bytes) -> AnyOrder:
    return _orders.decode(data)


def report(data: bytes) -> AnyReport:
    return _reports.decode(data)
