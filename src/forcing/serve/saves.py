"""A session as a file that a viewer keeps: what the engine needs to go on, and what the page shows of it."""

import msgspec

from forcing.serve import wire

FORMAT = 1
MOST = 32_000_000  # bytes


class Save(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="forcing session"):
    """world: digest of its weights. data: the engine's, see `engine.saved`."""

    format: int
    name: str
    world: str
    prompt: wire.Prompt | None
    seed: wire.Seed
    steps: int | None
    data: bytes


_read = msgspec.msgpack.Decoder(Save)


def pack(save: Save) -> bytes:
    return msgspec.msgpack.encode(save)


def read(body: bytes, worlds: set[str]) -> Save:
    """ValueError for what is no save, or is none of these worlds (digests)."""
    try:
        save = _read.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as wrong:
        raise ValueError(f"not a session that was saved here ({type(wrong).__name__})") from None
    if save.format != FORMAT:
        raise ValueError(f"it has format {save.format}, this version reads {FORMAT}")
    if save.world not in worlds:
        raise ValueError(f"it is of another world ({save.name[:60]!a}, or this one with other weights)")
    return save
