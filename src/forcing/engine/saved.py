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

FORMAT = 1


def dumps(session: Session, frames: int | None = None) -> bytes:
    """A safetensors file: latents, keys and noise states of the chunks that are kept, and what was told as JSON.

    frames: how many of them at least, the newest; None for all.
    """
    newest = [*session.history] if frames is None else session.history.newest(frames)
    kept = {chunk.frame: chunk for chunk in (*session.history.first, *newest)}
    chunks = [kept[frame] for frame in sorted(kept)]
    tensors: dict[str, Tensor] = {"random": session.random.get_state()}
    for n, chunk in enumerate(chunks):
        tensors |= {f"{n}.latents": chunk.latents, f"{n}.random": chunk.random}
        tensors |= {f"{n}.told.{name}": value for name, value in chunk.cond.per_frame.items()}
    if session.start is not None:
        tensors["start"] = session.start
    document = {
        "format": FORMAT,
        "seed": session.seed,
        "frame": session.frame,
        "place": session.place,
        "generation": session.generation,
        "chunks": [{"frame": each.frame, "place": each.place, "prompt": each.prompt} for each in chunks],
        "first": len(session.history.first),
        "kept": [each.frame for each in newest],
        "recached": [{"frame": each.frame, "prompt": each.prompt} for each in session.history.recached],
    }
    apart = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}  # some share memory
    return save(apart, {"session": json.dumps(document)})


def loads(setup: Setup, listen: Callable[[int], Told], data: bytes) -> Session:
    """The session that `dumps` wrote, for a viewer who listens now. ValueError for damage and for other sizes."""
    try:
        length = int.from_bytes(data[:8], "little")
        document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["session"])
        tensors = load(data)
        if document["format"] != FORMAT:
            raise ValueError(f"it has format {document['format']!r}, this version reads {FORMAT}")  # noqa: TRY301
        return _session(setup, listen, document, tensors)
    except (SafetensorError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as damage:
        raise ValueError(f"this is no session that can go on here ({type(damage).__name__}: {damage})") from damage


def _session(
    setup: Setup, listen: Callable[[int], Told], document: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Session:
    session = Session(setup, listen, seed=document["seed"])
    texts = {prompt: setup.text(prompt) for prompt in {each["prompt"] for each in document["chunks"]}}
    chunks = {each["frame"]: _chunk(setup, n, each, texts, tensors) for n, each in enumerate(document["chunks"])}
    history = session.history
    for frame in document["kept"]:
        history.add(chunks[frame])
    history.first = [chunks[each["frame"]] for each in document["chunks"][: document["first"]]]
    history.recached = [
        Recache(each["frame"], each["prompt"], setup.text(each["prompt"])) for each in document["recached"]
    ]
    session.frame, session.place = int(document["frame"]), int(document["place"])
    session.generation = int(document["generation"])
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
