"""A session as bytes: what it has shown lately, from which another engine, elsewhere or later, makes its memory again.

It goes on as it would have, if nothing has been evicted from its window; otherwise from the window alone.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from forcing.cond import Cond
from forcing.engine.history import Chunk, Recache
from forcing.engine.session import Session, Setup, Told
from forcing.recipe import Sampling, dump, parse

FORMAT = 2
DAMAGE = (SafetensorError, LookupError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError)


def dumps(session: Session, frames: int | None = None) -> bytes:
    """A safetensors file: latents, keys and noise states of the chunks that are kept, and what was told as JSON.

    frames: of how many of this scene at least, the newest; None for all. Not while a chunk is being made.
    """
    history = session.history.fork(frames)
    kept = {chunk.frame: chunk for chunk in (*history.first, *history)}
    chunks = [kept[frame] for frame in sorted(kept)]
    tensors: dict[str, Tensor] = {"random": session.random.get_state()}
    for n, chunk in enumerate(chunks):
        tensors |= {f"{n}.latents": chunk.latents, f"{n}.random": chunk.random}
        tensors |= {f"{n}.told.{name}": value for name, value in chunk.cond.per_frame.items()}
    if session.start is not None:
        tensors["start"] = session.start
    document = {
        "format": FORMAT,
        "world": session.setup.digest,
        "sampling": dump(session.setup.how),
        "seed": session.seed,
        "frame": session.frame,
        "place": session.place,
        "given": session.given,
        "generation": session.generation,
        "chunks": [{"frame": each.frame, "place": each.place, "prompt": each.prompt} for each in chunks],
        "first": [each.frame for each in history.first],
        "kept": [each.frame for each in history],
        "recached": [{"frame": each.frame, "prompt": each.prompt} for each in history.recached],
    }
    apart = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}  # some share memory
    return save(apart, {"session": json.dumps(document)})


def loads(setup: Setup, listen: Callable[[int], Told], data: bytes) -> Session:
    """The session that `dumps` wrote, by its own plan, for a viewer who listens now.

    ValueError for damage, for another world, and where the past is kept otherwise.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["session"])
        tensors = load(data)
        return _session(_own(setup, document), listen, document, tensors)
    except DAMAGE as damage:
        raise ValueError(f"this is no session that can go on here ({type(damage).__name__}: {damage})") from damage


def _own(setup: Setup, document: Mapping[str, Any]) -> Setup:
    """The setup by the plan that the session had. ValueError where anything else differs."""
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']!r}, this version reads {FORMAT}")
    how, here = parse(Sampling, document["sampling"]), setup.how
    for name in ("chunk", "window", "sink", "guidance"):
        if getattr(how, name) != getattr(here, name):
            raise ValueError(f"its {name} is {getattr(how, name)}, here it is {getattr(here, name)}")
    if document["world"] != setup.digest:
        raise ValueError("another world made it")
    return setup.by(how.plan)


def _session(
    setup: Setup, listen: Callable[[int], Told], document: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Session:
    session = Session(setup, listen, seed=document["seed"])
    texts = {prompt: setup.text(prompt) for prompt in {each["prompt"] for each in document["chunks"]}}
    chunks = {each["frame"]: _chunk(setup, n, each, texts, tensors) for n, each in enumerate(document["chunks"])}
    history = session.history
    for frame in document["kept"]:
        history.add(chunks[frame])
    history.first = [chunks[frame] for frame in document["first"]]
    history.recached = [
        Recache(each["frame"], each["prompt"], setup.text(each["prompt"])) for each in document["recached"]
    ]
    session.frame, session.place = int(document["frame"]), int(document["place"])
    session.given, session.generation = int(document["given"]), int(document["generation"])
    session.random.set_state(tensors["random"])
    if "start" in tensors:
        session.start = tensors["start"].to(setup.device)
    session.go_on()
    return session


def _chunk(
    setup: Setup,
    n: int,
    told: Mapping[str, Any],
    texts: Mapping[str | None, Mapping[str, Tensor]],
    tensors: Mapping[str, Tensor],
) -> Chunk:
    latents, named = tensors[f"{n}.latents"].to(setup.device), f"{n}.told."
    if tuple(latents.shape[2:]) != setup.size:
        raise ValueError(f"its latents are {list(latents.shape[2:])}, here they are {list(setup.size)}")
    per_frame = {
        name.removeprefix(named): value.to(setup.device) for name, value in tensors.items() if name.startswith(named)
    }
    cond = Cond(texts[told["prompt"]], per_frame)
    return Chunk(latents, cond, told["prompt"], int(told["frame"]), int(told["place"]), tensors[f"{n}.random"])
